"""Cells run, killed and resumed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from apr.errors import DataError, EngineError, StorageError
from apr.eval.cell import CLOCKS, RESULTS, SAMPLES, TRACES, Cell, read_results
from apr.eval.grid import run_cell
from apr.runtime import Observer
from apr.trace import Trace, read_traces
from tests.conftest import DiskLimit
from tests.eval.cells import cell, trace
from tests.methods.doubling import Doubling

PROBLEMS = list(range(30))
CELL = replace(cell(), count=len(PROBLEMS), concurrency=4)

KILLED = """
import asyncio, sys
from pathlib import Path
from tests.eval.test_grid import CELL, PROBLEMS, Slow
from tests.methods.doubling import Doubling
from apr.eval import grid, journal

class Stuck(Slow):
    async def solve(self, problem, observer=None):
        if problem >= 20:
            await asyncio.sleep(600)
        return await super().solve(problem, observer)

journal.FLUSH_EVERY = 3
grid.run_cell(Path(sys.argv[1]), CELL, Stuck(0.03), Doubling(), PROBLEMS)
"""


@dataclass
class Slow:
    """Solves every third problem, later ones first; fails those in ``broken``."""

    seconds: float = 0.0
    broken: tuple[int, ...] = ()
    name: str = "slow"
    num_solved: int = 0

    async def solve(self, problem: int, observer: Observer | None = None) -> Trace:
        await asyncio.sleep(self.seconds * (1 + (problem + 1) % 2))
        self.num_solved += 1
        correct = None if problem in self.broken else problem % 3 == 0
        solved = trace(problem, correct, (10 + problem, *range(1, 1 + problem % 4)))
        return replace(solved, meta={"model": "none"})


def run(folder: Path, method: Slow, made: Cell = CELL, **kwargs: Any) -> list[Trace]:
    return run_cell(folder, made, method, Doubling(), PROBLEMS, **kwargs)


def rows(folder: Path, made: Cell = CELL) -> list[dict[str, Any]]:
    """Of the results, without what a clock said."""
    table = pq.read_table(folder / made.name / RESULTS)
    return table.drop_columns(list(CLOCKS)).to_pylist()


def test_a_cell_leaves_traces_and_rows_in_problem_order(tmp_path: Path) -> None:
    heard: list[Trace] = []
    traces = run(tmp_path, Slow(0.001), on_trace=heard.append)
    assert [t.meta["index"] for t in heard] != PROBLEMS
    assert [t.meta["index"] for t in traces] == PROBLEMS
    assert list(read_traces(tmp_path / CELL.name / TRACES)) == traces
    (first, second, *_) = rows(tmp_path)
    assert len(rows(tmp_path)) == len(PROBLEMS)
    assert first["numbers"] == [0, 2]
    assert (first["target"], first["correct"], first["claimed"]) == (3, True, True)
    assert second == {
        "index": 1,
        "numbers": [1, 2],
        "target": 3,
        "correct": False,
        "claimed": False,
        "answer": None,
        "total_tokens": 12,
        "sequential_tokens": 12,
        "root_tokens": 11,
        "longest_context": 14,
        "peak_width": 1,
        "num_children": 1,
        "num_threads": 2,
        "parallelism": 1.0,
        "error": None,
    }
    assert not (tmp_path / CELL.name / SAMPLES).exists()


def test_a_cell_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    traces = run(tmp_path, Slow())
    before = (tmp_path / CELL.name / RESULTS).stat().st_mtime_ns
    idle, heard = Slow(), []
    assert run(tmp_path, idle, on_trace=heard.append) == traces
    assert (idle.num_solved, len(heard)) == (0, len(PROBLEMS))
    assert (tmp_path / CELL.name / RESULTS).stat().st_mtime_ns == before


def test_another_setting_is_another_cell(tmp_path: Path) -> None:
    run(tmp_path, Slow())
    others = [
        replace(CELL, fingerprint="retrained"),
        replace(CELL, problems="others"),
        replace(CELL, concurrency=5),
        replace(CELL, inference={**CELL.inference, "temperature": 0.5}),
    ]
    for other in others:
        again = Slow()
        run(tmp_path, again, other)
        assert again.num_solved == len(PROBLEMS)
    assert len({made.name for made in [CELL, *others]}) == 5
    renamed = replace(CELL, checkpoint="moved", command="other")
    assert renamed.name == CELL.name, "where it lies does not matter"


def test_killed_and_resumed_it_gives_the_same_rows(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    journal = killed / CELL.name / TRACES
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(killed)], cwd=Path(__file__).parents[2]
    ) as process:
        while not (journal.is_file() and journal.stat().st_size):
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    kept = journal.read_bytes().count(b"\n")
    assert 0 < kept < len(PROBLEMS)
    assert not (killed / CELL.name / RESULTS).exists()
    # As if the kill had come in the middle of a line.
    journal.write_bytes(journal.read_bytes()[:-40])
    rest = Slow()
    run(killed, rest)
    run(whole, Slow())
    assert rest.num_solved == len(PROBLEMS) - kept + 1
    assert rows(killed) == rows(whole)
    ended = [t.meta["ended"] for t in read_traces(journal)]
    assert min(ended) > 0, "the clock goes on where it was"


def test_what_the_world_failed_is_counted_and_run_again(tmp_path: Path) -> None:
    run(tmp_path, Slow(broken=(3, 5)))
    results = read_results(tmp_path, CELL)
    assert results is not None
    assert results.num_failed == 2
    assert [r["correct"] for r in rows(tmp_path)][3] is None
    again = Slow()
    run(tmp_path, again)
    assert again.num_solved == 2
    assert rows(tmp_path)[3]["correct"] is True


def test_a_world_that_fails_all_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"every run of .* failed: EngineError: down"):
        run(tmp_path, Slow(broken=tuple(PROBLEMS)))
    run(tmp_path, Slow())
    assert {r["error"] for r in rows(tmp_path)} == {None}


def test_a_damaged_line_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Slow())
    journal = tmp_path / CELL.name / TRACES
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], "{}\n", *lines[3:]]))
    with pytest.raises(DataError, match="line 3, is damaged"):
        run(tmp_path, Slow())


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Slow())
    (tmp_path / CELL.name / RESULTS).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is damaged"):
        read_results(tmp_path, CELL)


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, disk_limit: DiskLimit) -> None:
    with disk_limit(12_000), pytest.raises(StorageError, match="cannot write"):
        run(tmp_path, Slow())
    kept = tmp_path / CELL.name / TRACES
    assert not kept.exists() or kept.read_text().endswith("\n")
    run(tmp_path, Slow())
    assert len(rows(tmp_path)) == len(PROBLEMS)


def test_the_setting_is_kept_beside_the_results(tmp_path: Path) -> None:
    run(tmp_path, Slow())
    kept = json.loads((tmp_path / CELL.name / "cell.json").read_text())
    assert Cell.from_json(kept) == CELL
