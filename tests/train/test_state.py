from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer

from apr.errors import CheckpointError, StorageError
from apr.models.llama import Llama
from apr.train.optim import Kind, OptimConfig, make_optimizers
from apr.train.state import load_state, save_state
from tests.conftest import DiskLimit
from tests.tiny import tiny_config, tiny_model

Training = tuple[Llama, list[Optimizer]]


def start(kind: Kind = Kind.MUON, tied: bool = False, vocab_size: int = 40) -> Training:
    model = tiny_model(tiny_config(tied, vocab_size=vocab_size))
    return model, make_optimizers(model, OptimConfig(kind=kind))


def train(training: Training, seed: int) -> None:
    """One step along a random gradient."""
    model, optimizers = training
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


def same_weights(a: Training, b: Training) -> bool:
    return all(map(torch.equal, a[0].parameters(), b[0].parameters()))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("tied", [False, True])
def test_training_goes_on_exactly(tmp_path: Path, kind: Kind, tied: bool) -> None:
    first = start(kind, tied)
    for seed in range(3):
        train(first, seed)
    save_state(tmp_path, *first, {"step": 3, "tokens": 70})
    second = start(kind, tied)
    assert load_state(tmp_path, *second) == {"step": 3, "tokens": 70}
    assert same_weights(first, second)
    train(first, 3)
    train(second, 3)
    assert same_weights(first, second)


def test_a_run_without_a_state_starts_afresh(tmp_path: Path) -> None:
    training = start()
    assert load_state(tmp_path, *training) is None
    assert same_weights(training, start())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    training = start()
    train(training, 0)
    save_state(tmp_path, *training, {"step": 1})
    return tmp_path


def refused(run: Path, training: Training, words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_state(run, *training)
    assert str(run / "state") in str(caught.value)
    assert words in str(caught.value)
    assert "delete the folder to start afresh" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_state_of_another_model_or_optimizer_is_refused(saved: Path) -> None:
    refused(saved, start(vocab_size=41), "has shape (40, 24) in place of (41, 24)")
    refused(saved, start(Kind.ADAMW), "moments of 7 weights in place of 15")


@pytest.mark.parametrize("name", ["tensors.safetensors", "facts.json"])
def test_a_damaged_state_is_refused(saved: Path, name: str) -> None:
    path = saved / "state" / name
    for data in (path.read_bytes()[:-2], b"", b"\xff\xfe"):
        path.write_bytes(data)
        refused(saved, start(), "is damaged")
    path.unlink()
    refused(saved, start(), name)


def test_a_save_cut_off_at_any_moment_leaves_a_whole_state(saved: Path) -> None:
    state = saved / "state"
    (saved / ".state.apr-new").mkdir()
    (saved / ".state.apr-new" / "tensors.safetensors").write_bytes(b"half")
    assert load_state(saved, *start()) == {"step": 1}
    state.rename(saved / ".state.apr-old")  # Between the two moves of a replacement.
    training = start()
    assert load_state(saved, *training) == {"step": 1}
    save_state(saved, *training, {"step": 2})
    assert load_state(saved, *start()) == {"step": 2}
    assert [p.name for p in saved.iterdir()] == ["state"]


def test_a_full_disk_leaves_the_state_of_before(saved: Path, disk_limit: DiskLimit) -> None:
    with disk_limit(10_000), pytest.raises(StorageError, match=r"cannot write .*/state \("):
        save_state(saved, *start(), {"step": 2})
    assert load_state(saved, *start()) == {"step": 1}
    assert [p.name for p in saved.iterdir()] == ["state"]
