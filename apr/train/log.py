"""Metrics of a run: JSON lines for programs, TensorBoard for people.

``metrics.jsonl`` is a function of recipe and seed: nothing in it depends on the clock, so that runs
can be compared line by line. What the clock says goes to ``timings.jsonl``.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO

from apr.files import new_file, writing
from apr.train.world import World


class MetricsLog:
    """Appends to the logs of ``run``; lines of steps to be made again are dropped first."""

    def __init__(self, run: Path, step: int) -> None:
        # TensorBoard's import costs seconds and is needed by training alone.
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._open = ExitStack()
        self._metrics = self._open.enter_context(_reopen(run / "metrics.jsonl", step))
        self._timings = self._open.enter_context(_reopen(run / "timings.jsonl", step))
        self._board = self._open.enter_context(
            SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        )

    def write(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        """Log ``step``, counted from 1; raises StorageError where the disk is full."""
        with writing(self._run):
            _line(self._metrics, {"step": step, **metrics})
            _line(self._timings, {"step": step, **timings})
            for name, value in {**metrics, **timings}.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        # Closing writes what is left, so that a full disk is met here too.
        with writing(self._run):
            self._open.close()


class NoLog:
    """The log of a process that is not the first."""

    def write(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        pass


def open_log(run: Path, step: int, world: World) -> AbstractContextManager[MetricsLog | NoLog]:
    """The log of ``run``, which goes on after ``step``; the first process alone writes it."""
    return MetricsLog(run, step) if world.is_first else nullcontext(NoLog())


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Lines of ``metrics.jsonl``, in order."""
    with (run / "metrics.jsonl").open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def _reopen(path: Path, step: int) -> IO[str]:
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # A line cut short by a kill; what follows is to be made again.
            if record["step"] > step:
                break
            kept.append(line + "\n")
    with new_file(path) as tmp:
        tmp.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _line(file: IO[str], record: dict[str, float]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()
