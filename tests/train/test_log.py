from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils import tensorboard

from apr.errors import StorageError
from apr.train.log import MetricsLog, read_metrics
from tests.conftest import DiskLimit


def write(run: Path, first: int, last: int, value: float) -> None:
    with MetricsLog(run, first - 1) as log:
        for step in range(first, last + 1):
            log.write(step, {"loss": value}, {"speed": 10 * value})


def test_a_resumed_log_drops_the_lines_of_steps_to_be_made_again(tmp_path: Path) -> None:
    write(tmp_path, 1, 5, value=1.0)
    write(tmp_path, 4, 6, value=2.0)
    assert read_metrics(tmp_path) == [
        {"step": s, "loss": 1.0 if s < 4 else 2.0} for s in range(1, 7)
    ]
    timings = (tmp_path / "timings.jsonl").read_text().splitlines()
    assert [json.loads(line)["speed"] for line in timings] == [10.0] * 3 + [20.0] * 3


def test_tensorboard_shows_the_resumed_run_alone(tmp_path: Path) -> None:
    write(tmp_path, 1, 5, value=1.0)
    # TensorBoard tells files of one second apart by a counter that does not sort.
    time.sleep(1.1)
    write(tmp_path, 4, 6, value=2.0)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [
        (s, 1.0 if s < 4 else 2.0) for s in range(1, 7)
    ]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}', "\0\0\0"])
def test_a_line_torn_by_a_kill_is_mended(tmp_path: Path, torn: str) -> None:
    write(tmp_path, 1, 2, value=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write(torn)
    write(tmp_path, 3, 4, value=1.0)
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_each_line_is_on_disk_once_it_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": 1.0}, {})
        assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_a_full_disk_is_one_error(
    tmp_path: Path, disk_limit: DiskLimit, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The board has a thread that would complain of the disk at a moment of its own.
    board = nullcontext(SimpleNamespace(add_scalar=lambda *scalar: None))
    monkeypatch.setattr(tensorboard, "SummaryWriter", lambda *args, **options: board)
    with (
        disk_limit(500),
        pytest.raises(StorageError, match=r"^cannot write .* \(File too large\): make room"),
    ):
        write(tmp_path, 1, 100, value=1.0)
