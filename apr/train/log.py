"""Metrics of a run: JSON lines for programs, TensorBoard for people.

``metrics.jsonl`` is a function of recipe and seed: nothing in it depends on the clock, so that runs
can be compared line by line. What the clock says goes to ``timings.jsonl``.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO


class MetricsLog:
    """Appends to the logs of ``run``; lines of steps to be made again are dropped first."""

    def __init__(self, run: Path, step: int) -> None:
        # TensorBoard's import costs seconds and is needed by training alone.
        from torch.utils.tensorboard import SummaryWriter

        run.mkdir(parents=True, exist_ok=True)
        self._metrics = _reopen(run / "metrics.jsonl", step)
        self._timings = _reopen(run / "timings.jsonl", step)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step)

    def write(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        """Log ``step``, counted from 1."""
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
        self._metrics.close()
        self._timings.close()
        self._board.close()


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
    tmp = path.with_suffix(".tmp")
    tmp.write_text("".join(kept), encoding="utf-8")
    tmp.replace(path)
    return path.open("a", encoding="utf-8")


def _line(file: IO[str], record: dict[str, float]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()
