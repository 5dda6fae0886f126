"""Shards: the same bytes whoever makes them; what does not fit or solve is left out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from apr.data.shards import Overlong, ShardConfig, read_shards, write_shards
from apr.data.tokenizer import EOS, PAD, HFCodec, build_tokenizer
from apr.types import Demonstration, Segment

CODEC = HFCodec(build_tokenizer([f" {n}" for n in range(10)], [PAD, EOS], " ?[0-9]"))
SEVEN = ShardConfig(count=7, per_shard=3)


def tell(index: int) -> Demonstration:
    """A prompt, then its number once more than that; the odd ones are solved."""
    pieces = [f" {index}"] * (index + 1)
    told = [Segment([" 9"], False), Segment(pieces, True)]
    return Demonstration([told], [True], [0], index % 2 == 1, 0, len(pieces), len(pieces))


def ids(n: int) -> list[int]:
    return [CODEC.vocabulary[word] for word in [" 9", *[f" {n}"] * (n + 1)]]


def stored(folder: Path) -> list[list[int]]:
    data = read_shards(folder)
    return [data.ids[start:end].tolist() for start, end in pairwise(data.offsets)]


def test_shards_are_the_same_bytes_whoever_makes_them(tmp_path: Path) -> None:
    files = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        write_shards(folder, tell, CODEC, SEVEN, {}, workers, progress=False)
        assert stored(folder) == [ids(n) for n in range(7)]
        files.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert files[0] == files[1]
    assert len([name for name in files[0] if name.endswith(".parquet")]) == 3


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    write_shards(tmp_path, tell, CODEC, SEVEN, {}, progress=False)
    (tmp_path / "shard-00001.parquet").unlink()
    asked: list[int] = []

    def noted(index: int) -> Demonstration:
        asked.append(index)
        return tell(index)

    write_shards(tmp_path, noted, CODEC, SEVEN, {}, progress=False)
    assert asked == [3, 4, 5]
    assert stored(tmp_path) == [ids(n) for n in range(7)]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"solved_only": True}, {1: 3, 3: 5, 5: 7}),
        ({"context": 4, "overlong": Overlong.DROP}, {0: 2, 1: 3, 2: 4}),
        ({"context": 4, "overlong": Overlong.CUT}, {0: 2, 1: 3, 2: 4, 3: 4, 4: 4, 5: 4, 6: 4}),
    ],
)
def test_what_is_kept_is_what_the_settings_say(
    tmp_path: Path, settings: dict[str, Any], kept: dict[int, int]
) -> None:
    made = write_shards(tmp_path, tell, CODEC, ShardConfig(7, 3, **settings), {}, progress=False)
    assert stored(tmp_path) == [ids(n)[:length] for n, length in kept.items()]
    assert (made["tally"]["kept"], made["tally"]["longest"]) == (len(kept), max(kept.values()))
