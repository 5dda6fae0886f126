"""Runs the cells of a grid, so that a run killed at any moment goes on where it was.

Problems that ended are kept as they end; the line that a kill left half written is dropped, and
what the world failed is run again. Sampling is seeded by problem and thread, so what comes out does
not depend on where it was cut.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic

from apr.errors import DataError, EngineError
from apr.eval.cell import GRID, RESULTS, SETTING, TRACES, Cell, Grid, write_results
from apr.eval.journal import Journal
from apr.eval.run import run_problems
from apr.eval.samples import samples_of
from apr.files import new_file
from apr.interfaces import Task
from apr.methods import Method, P
from apr.runtime import Observer
from apr.trace import Trace, write_traces


def write_grid(folder: Path, grid: Grid) -> None:
    """Note what a grid is to fill; reports read it.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    record = {**grid._asdict(), "cells": [cell.to_json() for cell in grid.cells]}
    with new_file(folder / GRID) as tmp:
        tmp.write_text(json.dumps(record, indent=1), encoding="utf-8")


def run_cell(
    folder: Path,
    cell: Cell,
    method: Method[P],
    task: Task[P],
    problems: Sequence[P],
    on_trace: Callable[[Trace], None] | None = None,
) -> list[Trace]:
    """Fill the folder of ``cell`` under ``folder``, or what is missing of it.

    Args:
        on_trace: called with each trace, at once for those that were kept.

    Returns:
        Traces in problem order.

    Raises:
        EngineError: every run failed; they are kept, and run again next time.
        DataError: the traces kept are damaged otherwise than by a kill.
        StorageError: the disk is full, or the folder may not be written.
    """
    place, hear = folder / cell.name, on_trace or (lambda trace: None)
    with new_file(place / SETTING) as tmp:
        tmp.write_text(json.dumps(cell.to_json(), indent=1), encoding="utf-8")
    done = _resume(place / TRACES)
    for trace in done.values():
        hear(trace)
    missing = [(i, problem) for i, problem in enumerate(problems) if i not in done]
    if not missing and (place / RESULTS).is_file():
        return [done[i] for i in sorted(done)]
    traces = sorted(
        [*done.values(), *_run(place, cell, method, missing, done, hear)], key=_index_of
    )
    drawing = enumerate(traces) if cell.draws else ()
    drawn = [sample for i, t in drawing for sample in samples_of(t, task, problems[i], i)]
    write_traces(place / TRACES, traces)
    write_results(place, traces, drawn)
    if traces and all(t.error is not None for t in traces):
        raise EngineError(f"every run of {cell.name} failed: {traces[0].error}")
    return traces


def _run(
    place: Path,
    cell: Cell,
    method: Method[P],
    missing: list[tuple[int, P]],
    done: dict[int, Trace],
    hear: Callable[[Trace], None],
) -> list[Trace]:
    spent = max((t.meta["ended"] for t in done.values()), default=0.0)
    indexed = _Indexed(method, time.perf_counter() - spent)
    with ExitStack() as stack:
        journal = Journal(place / TRACES)
        stack.callback(journal.flush)

        def keep(trace: Trace) -> None:
            journal.append(trace)
            hear(trace)

        return asyncio.run(run_problems(indexed, missing, cell.concurrency, keep))


@dataclass(frozen=True)
class _Indexed(Generic[P]):
    """A method whose traces say which problem they are of, and when they ended."""

    within: Method[P]
    start: float

    @property
    def name(self) -> str:
        return self.within.name

    async def solve(self, problem: tuple[int, P], observer: Observer | None = None) -> Trace:
        index, posed = problem
        trace = await self.within.solve(posed, observer)
        ended = time.perf_counter() - self.start
        return replace(trace, meta={**trace.meta, "index": index, "ended": ended})


def _resume(path: Path) -> dict[int, Trace]:
    """Traces kept by index, without those that the world failed; the file holds just these after.

    Raises:
        DataError: a line other than the last is no trace.
    """
    if not path.is_file():
        return {}
    done: dict[int, Trace] = {}
    lines = path.read_bytes().split(b"\n")
    # What follows the last line break is empty, or was being written when the process was killed.
    for number, line in enumerate(lines[:-1], 1):
        try:
            trace = Trace.from_json(json.loads(line))
            if trace.error is None:
                done[_index_of(trace)] = trace
        except (ValueError, KeyError) as e:
            raise DataError(
                f"{path}, line {number}, is damaged ({e}): delete its folder and run it again"
            ) from e
    if lines[-1] or len(done) < len(lines) - 1:
        write_traces(path, done.values())
    return done


def _index_of(trace: Trace) -> int:
    return int(trace.meta["index"])
