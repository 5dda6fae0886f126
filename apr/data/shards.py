"""Demonstrations as token shards: parquet files beside a manifest, the same bytes however made.

A shard holds the demonstrations of a range of indices, so shards can be made anywhere, in any
order, by any number of workers, and a run that was cut off goes on with those that are missing.
Knows no task: it is handed a function from an index to a demonstration.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from apr.config import check_least
from apr.data.tokenizer import HFCodec
from apr.errors import DataError, InputError
from apr.files import new_file
from apr.types import Demonstration

MANIFEST = "manifest.json"
VERSION = 1

_LEARNT = pa.schema({"ids": pa.list_(pa.int32()), "loss": pa.list_(pa.bool_())})
"""The columns of a shard that are trained on: one sequence to a row."""


class Overlong(StrEnum):
    """What becomes of a demonstration with a sequence longer than the context."""

    DROP = "drop"
    """It is left out."""
    CUT = "cut"
    """Its sequences end at the context; what the model can see is what it learns."""


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """How many demonstrations, and which are kept."""

    count: int
    """Demonstrations to make, before any filter."""
    per_shard: int = 5_000
    """Demonstrations to a shard, before any filter."""
    solved_only: bool = False
    """Leave out demonstrations that find no solution."""
    context: int = 0
    """Most tokens of one sequence; 0 for no limit."""
    overlong: Overlong = Overlong.DROP

    def __post_init__(self) -> None:
        check_least(1, count=self.count, per_shard=self.per_shard)
        check_least(0, context=self.context)


class Tally(NamedTuple):
    """What a shard, or a whole set, holds. Counts; tokens are those demonstrated."""

    made: int = 0
    solved: int = 0
    kept: int = 0
    sequences: int = 0
    children: int = 0
    total_tokens: int = 0
    sequential_tokens: int = 0
    stored_tokens: int = 0  # of what was kept, prompts and injected messages included
    longest: int = 0  # longest sequence stored

    def plus(self, other: Tally) -> Tally:
        summed = Tally(*(a + b for a, b in zip(self, other, strict=True)))
        return summed._replace(longest=max(self.longest, other.longest))


class Sequences(NamedTuple):
    """Many token sequences end to end: sequence i is ``[offsets[i], offsets[i + 1])``."""

    ids: NDArray[np.int32]
    loss: NDArray[np.bool_]  # True where the token is to be learnt
    offsets: NDArray[np.int64]


Demonstrate = Callable[[int], Demonstration]


def write_shards(
    directory: Path,
    demonstrate: Demonstrate,
    codec: HFCodec,
    config: ShardConfig,
    settings: dict[str, Any],
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Make what is missing of a set of shards, then its manifest, which is returned.

    Args:
        demonstrate: picklable, and a function of the index alone.
        settings: what the demonstrations depend on; a folder made with others is refused.

    Raises:
        DataError: the folder holds shards of other settings.
        StorageError: the disk is full, or the folder may not be written.
        InputError: a worker died.
    """
    plan = json.loads(
        json.dumps(
            {
                "version": VERSION,
                "settings": settings,
                "config": asdict(config),
                "tokenizer": codec.fingerprint,
            }
        )
    )
    _claim(directory, plan)
    names = [_name(i) for i in range(-(-config.count // config.per_shard))]
    missing = [i for i, name in enumerate(names) if not (directory / name).is_file()]
    make = partial(_make_shard, directory, demonstrate, codec.to_json(), config)
    with tqdm(total=len(names), initial=len(names) - len(missing), unit="shard",
              desc="data", disable=not progress) as bar:  # fmt: skip
        for _ in _each(make, missing, workers):
            bar.update()
    tallies = [_read_tally(directory / name) for name in names]
    total = Tally()
    for tally in tallies:
        total = total.plus(tally)
    manifest = {**plan, "shards": names, "tally": total._asdict(), **_rates(total)}
    _write_text(directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished set.

    Raises:
        DataError: there is none, it is damaged, or another version of this program wrote it.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError(f"no finished data at {directory}: make it with apr data RECIPE")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
        if not all(isinstance(name, str) for name in manifest["shards"]):
            raise TypeError("shards are names of files")
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} is damaged: delete it and run apr data again") from e
    if version != VERSION:
        raise DataError(
            f"{path} has version {version!r} and this program reads {VERSION}: make the data again"
        )
    return manifest


def read_shards(directory: Path) -> Sequences:
    """All sequences of a finished set.

    Raises:
        DataError: no manifest, or a shard that is missing or damaged (it is named).
    """
    tables = [_read_table(directory / name) for name in read_manifest(directory)["shards"]]
    lists = [table.column("ids").combine_chunks() for table in tables]
    loss = [table.column("loss").combine_chunks() for table in tables]
    lengths = np.concatenate([np.diff(x.offsets.to_numpy()) for x in lists])
    return Sequences(
        ids=np.concatenate([x.values.to_numpy() for x in lists]),
        loss=np.concatenate([x.values.to_numpy(zero_copy_only=False) for x in loss]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def encode(demonstration: Demonstration, codec: HFCodec) -> Iterator[tuple[list[int], list[bool]]]:
    """Token ids and loss marks of each sequence, begun as the runtime begins a context."""
    for sequence in demonstration.sequences:
        ids: list[int] = [] if codec.bos_id is None else [codec.bos_id]
        loss = [False] * len(ids)
        for segment in sequence:
            piece_ids = codec.encode_pieces(segment.pieces)
            ids += piece_ids
            loss += [segment.demonstrated] * len(piece_ids)
        yield ids, loss


def _each(make: Callable[[int], None], indices: list[int], workers: int) -> Iterator[None]:
    if workers <= 1 or len(indices) <= 1:
        yield from map(make, indices)
        return
    # spawn: a fork would copy whatever threads the caller runs.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(indices)), mp_context=context)
    try:
        for made in as_completed([pool.submit(make, i) for i in indices]):
            yield made.result()
    except BrokenProcessPool as e:
        raise InputError(
            "a worker that makes shards died: use fewer workers if memory ran out, and if a script "
            "of yours calls this, guard its entry with if __name__ == '__main__'"
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


def _make_shard(
    directory: Path, demonstrate: Demonstrate, tokenizer: str, config: ShardConfig, index: int
) -> None:
    codec = HFCodec(Tokenizer.from_str(tokenizer))
    ids: list[int] = []
    loss: list[bool] = []
    offsets, owners = [0], []
    tally = Tally()
    start = index * config.per_shard
    for i in range(start, min(start + config.per_shard, config.count)):
        told = demonstrate(i)
        sequences = _filter(told, list(encode(told, codec)), config)
        for sequence_ids, sequence_loss in sequences:
            ids += sequence_ids
            loss += sequence_loss
            offsets.append(len(ids))
            owners.append(i)
        tally = tally.plus(_tally(told, sequences))
    _write_shard(directory / _name(index), ids, loss, offsets, owners, tally)


def _filter(
    told: Demonstration, sequences: list[tuple[list[int], list[bool]]], config: ShardConfig
) -> list[tuple[list[int], list[bool]]]:
    if config.solved_only and not told.solved:
        return []
    if not config.context or max(len(ids) for ids, _ in sequences) <= config.context:
        return sequences
    if config.overlong is Overlong.DROP:
        return []
    return [(ids[: config.context], loss[: config.context]) for ids, loss in sequences]


def _tally(told: Demonstration, sequences: list[tuple[list[int], list[bool]]]) -> Tally:
    return Tally(
        made=1,
        solved=told.solved,
        kept=bool(sequences),
        sequences=len(sequences),
        children=told.num_children,
        total_tokens=told.total_tokens,
        sequential_tokens=told.sequential_tokens,
        stored_tokens=sum(len(ids) for ids, _ in sequences),
        longest=max((len(ids) for ids, _ in sequences), default=0),
    )


def _rates(tally: Tally) -> dict[str, Any]:
    made = max(tally.made, 1)
    return {
        "solve_rate": tally.solved / made,
        "tokens_per_demonstration": tally.total_tokens / made,
        "sequential_tokens_per_demonstration": tally.sequential_tokens / made,
        "children_per_demonstration": tally.children / made,
    }


def _write_shard(
    path: Path,
    ids: list[int],
    loss: list[bool],
    offsets: list[int],
    owners: list[int],
    tally: Tally,
) -> None:
    ends = pa.array(offsets, pa.int32())
    table = pa.table(
        {
            "demonstration": pa.array(owners, pa.int64()),
            "ids": pa.ListArray.from_arrays(ends, pa.array(np.array(ids, np.int32))),
            "loss": pa.ListArray.from_arrays(ends, pa.array(np.array(loss, np.bool_))),
        }
    ).replace_schema_metadata({"tally": json.dumps(tally._asdict())})
    with new_file(path) as tmp:
        pq.write_table(table, tmp, compression="zstd", write_page_checksum=True)


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(
            f"shard {path} is missing: run apr data again, it makes only what is missing"
        )
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        return table.select(_LEARNT.names).cast(_LEARNT)
    except (pa.ArrowException, OSError, KeyError) as e:
        raise DataError(f"shard {path} is damaged: delete it and run apr data again") from e


def _read_tally(path: Path) -> Tally:
    try:
        metadata = pq.read_schema(path).metadata
        return Tally(**json.loads(metadata[b"tally"]))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as e:
        raise DataError(f"shard {path} is damaged: delete it and run apr data again") from e


def _claim(directory: Path, plan: dict[str, Any]) -> None:
    """Note what the folder is for before the first shard, so that no other set mixes with it."""
    path = directory / "plan.json"
    text = json.dumps(plan, indent=2) + "\n"
    if not path.is_file():
        _write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise DataError(f"{directory} holds data of other settings: name another folder")


def _write_text(path: Path, text: str) -> None:
    with new_file(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def _name(index: int) -> str:
    return f"shard-{index:05d}.parquet"
