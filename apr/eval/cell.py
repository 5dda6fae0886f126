"""One setting of a grid, and the folder that its results are kept in.

A folder is named by what the results depend on, so results of another checkpoint, another setting
or other problems are never taken for these. It holds::

    cell.json          the setting, and the command line that makes the same results by itself
    traces.jsonl       one trace a line: as they end while it runs, in problem order once it is done
    results.parquet    one row for each problem, in order; it appears when all have ended
    samples.parquet    one row for each sample, of best_of_n and self_consistency
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apr import config
from apr.errors import ConfigError, DataError
from apr.eval.bootstrap import Floats
from apr.eval.metrics import parallelism
from apr.eval.posed import Problems
from apr.eval.samples import Sample
from apr.files import new_file
from apr.trace import Trace, num_sampled

VERSION = 1
"""Of the files of a cell; a cell of another version is another cell."""
GRID = "grid.json"
SETTING, TRACES = "cell.json", "traces.jsonl"
RESULTS, SAMPLES = "results.parquet", "samples.parquet"

_COLUMNS: dict[str, pa.DataType] = {
    "index": pa.int64(),
    "correct": pa.bool_(),  # null where the world failed
    "claimed": pa.bool_(),
    "answer": pa.string(),
    "total_tokens": pa.int64(),
    "sequential_tokens": pa.int64(),
    "root_tokens": pa.int64(),
    "longest_context": pa.int64(),
    "peak_width": pa.int64(),
    "num_children": pa.int64(),
    "num_threads": pa.int64(),  # those that sampled
    "parallelism": pa.float64(),
    "wall_clock": pa.float64(),  # seconds of this problem
    "ended": pa.float64(),  # seconds after the cell began
    "error": pa.string(),
}
CLOCKS = ("wall_clock", "ended")
"""Columns that are measured and differ from run to run."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting of a grid."""

    model: str
    """What the grid calls the model."""
    stands_for: str
    """Row of the paper's tables that the model stands beside; empty for none."""
    checkpoint: str
    fingerprint: str
    """Of the model's weights and of all else its folder says of it."""
    method: str
    """With what tells it from its own kind, as tables name it."""
    inference: dict[str, Any]
    """How the model is run, as plain values."""
    problems: str
    """Fingerprint of the problems, in their order."""
    count: int
    concurrency: int
    """Problems at the same time."""
    command: str
    """Makes the same traces by itself."""
    besides: str = ""
    """What else was set of the method that is neither its name nor a budget, in words."""
    engine: str | None = None
    """Servers that run the model; None is the embedded engine."""
    draws: dict[str, str] = field(default_factory=dict)
    """Commands of cons@n and pass@n, which are estimated from the samples; ``{n}`` stands for n."""

    @property
    def key(self) -> str:
        """Fingerprint of all that the results depend on."""
        depends = [VERSION, self.fingerprint, self.inference, self.problems, self.concurrency]
        depends.append(self.engine)
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def title(self) -> str:
        """Method and settings in a few words."""
        seed = self.inference["seed"]
        budget = {"children": self.children, "window": self.window, "context": self.context}
        parts = [self.method, *([self.besides] if self.besides else [])]
        parts += [f"{k} {v}" for k, v in budget.items() if v is not None]
        parts += [f"T {self.temperature:g}", *([] if seed is None else [f"seed {seed}"])]
        return ", ".join([*parts, *(["alone"] if self.concurrency == 1 else [])])

    @property
    def name(self) -> str:
        """Of its folder: what a reader tells the cell by, and its key."""
        words = f"{self.model} {self.title} {self.key}".lower()
        return re.sub(r"[^a-z0-9.]+", "-", words)

    @property
    def temperature(self) -> float:
        return float(self.inference["temperature"])

    @property
    def children(self) -> int | None:
        """Number of child threads that the model is conditioned on."""
        return _optional(self.inference["children"])

    @property
    def window(self) -> int | None:
        """Context window in tokens that the model is conditioned on."""
        return _optional(self.inference["window"])

    @property
    def context(self) -> int | None:
        """Most tokens of a call, where that is limited."""
        return _optional(self.inference["limits"]["context"])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> Cell:
        """Raises ConfigError for a record that is none."""
        return config.build(Cell, record)


@dataclass(frozen=True, eq=False)
class Results:
    """A cell that has been run: figures of each problem, in order."""

    cell: Cell
    columns: dict[str, Floats]
    """Numbers of each problem; nan where the world failed, save in ``index`` and ``ended``."""
    samples: list[Sample]
    """In the order of problems and samples; empty for methods that draw none."""
    num_failed: int
    posed: Problems
    """What the problems were, in no order."""

    @property
    def seconds(self) -> float:
        """Wall clock of the whole cell."""
        return float(self.columns["ended"].max(initial=0.0))


def write_results(folder: Path, traces: list[Trace], samples: list[Sample]) -> None:
    """Write the tables of a cell; ``traces`` are in problem order.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    if samples:
        rows = pa.Table.from_pylist([s._asdict() for s in samples])
        _write(folder / SAMPLES, rows)
    _write(folder / RESULTS, pa.table(_table(traces)))


def read_results(folder: Path, cell: Cell) -> Results | None:
    """What was written for ``cell`` under ``folder``; None if it has not been run to its end.

    Raises:
        DataError: a table is damaged.
    """
    path, drawn = folder / cell.name / RESULTS, folder / cell.name / SAMPLES
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        failed = np.array([e is not None for e in table["error"].to_pylist()], bool)
        columns = {
            name: _numbers(table[name].to_pylist())
            for name, kind in _COLUMNS.items()
            if not pa.types.is_string(kind)
        }
        problems = table.drop_columns(list(_COLUMNS)).to_pylist()
        rows = pq.read_table(drawn).to_pylist() if drawn.is_file() else []
        samples = [Sample(**row) for row in rows]
    except (pa.ArrowException, KeyError, TypeError, ValueError) as e:
        raise DataError(f"{path.parent} is damaged ({e}): delete it and run the grid again") from e
    for name in columns.keys() - {"index", "ended"}:
        columns[name][failed] = np.nan
    posed = frozenset(map(json.dumps, problems))
    return Results(cell, columns, samples, int(failed.sum()), posed)


class Grid(NamedTuple):
    """What the last run of a grid was to fill."""

    cells: list[Cell]  # in their order
    machine: str  # on which it ran
    command: str  # that runs it again


def read_grid(folder: Path) -> Grid:
    """The grid that was last run into ``folder``.

    Raises:
        DataError: none was, or its list is damaged.
    """
    path = folder / GRID
    if not path.is_file():
        raise DataError(f"no grid in {folder}: name a folder that apr eval GRID.toml wrote")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        cells = [Cell.from_json(cell) for cell in record["cells"]]
        return Grid(cells, record["machine"], record["command"])
    except (ConfigError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} is damaged ({e}): run the grid again") from e


def _table(traces: list[Trace]) -> dict[str, pa.Array]:
    rows = [_row(trace) for trace in traces]
    table = {name: pa.array([r[name] for r in rows], kind) for name, kind in _COLUMNS.items()}
    # Whatever the task says of a problem (numbers and target) comes after its index.
    posed = {name: pa.array([t.problem[name] for t in traces]) for name in traces[0].problem}
    return {"index": table.pop("index"), **posed, **table}


def _row(trace: Trace) -> dict[str, Any]:
    return {
        "index": trace.meta["index"],
        "correct": None if trace.grade is None else trace.grade.correct,
        "claimed": trace.answer is not None,
        "answer": trace.answer,
        "total_tokens": trace.total_tokens,
        "sequential_tokens": trace.sequential_tokens,
        "root_tokens": num_sampled(trace.root),
        "longest_context": trace.longest_context,
        "peak_width": trace.peak_width,
        "num_children": trace.num_children,
        "num_threads": sum(bool(t.calls) for t in trace.threads),
        "parallelism": parallelism(trace),
        "wall_clock": trace.wall_clock,
        "ended": trace.meta["ended"],
        "error": trace.error,
    }


def _write(path: Path, table: pa.Table) -> None:
    with new_file(path) as tmp:
        pq.write_table(table, tmp)


def _numbers(values: list[Any]) -> Floats:
    return np.array([np.nan if v is None else float(v) for v in values], np.float64)


def _optional(value: Any) -> int | None:
    return None if value is None else int(value)
