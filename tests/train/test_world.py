"""Processes that train together make the update that one would make."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from apr.errors import ConfigError
from apr.models.llama import Llama
from apr.trace import Trace
from apr.train.grpo import GRPOConfig, train_grpo
from apr.train.log import read_metrics
from apr.train.loss import LossConfig
from apr.train.optim import Kind, OptimConfig
from apr.train.sft import SFTConfig, train_sft
from apr.train.world import World, join_world
from tests.tiny import tiny_model
from tests.train.test_sft import batches, counting
from tests.train.trees import FAILED, JOIN, NESTED, SERIAL, WIDE, call, judge, thread, trace

CONFIG = GRPOConfig(
    steps=3,
    prompts=3,
    group=3,
    inner_steps=2,
    rounds=2,
    loss=LossConfig(kl=0.1),
    optim=OptimConfig(kind=Kind.ADAMW, lr=0.01, warmup=0, decay=0.0),
    validate_every=1,
    save_every=1,
    micro_tokens=20,
)
# Problems whose rollouts differ. Of two processes the second has nothing to learn in the first
# step, neither has in the second, and both have in the third.
MIXED = {0, 2, 5, 12, 13, 14}


def sample(numbers: Sequence[int]) -> list[list[Trace]]:
    """Groups that depend on the number alone, so that they are the same whoever samples them."""

    def group(number: int) -> list[Trace]:
        other = trace(thread(0, None, "go", call((2, 3), 10 + number, 11, JOIN)))
        return [NESTED if number in MIXED else SERIAL, other, WIDE if number % 3 else FAILED]

    return [group(number) for number in numbers]


def reinforce(run: Path, world: World, steps: int) -> Llama:
    model = tiny_model().double()

    def validate() -> dict[str, float]:
        return {"weights": sum(p.abs().sum().item() for p in model.parameters())}

    config = replace(CONFIG, steps=steps)
    train_grpo(model, sample, config, run, validate, judge, progress=False, world=world)
    return model


def supervise(run: Path, world: World, steps: int) -> Llama:
    model = tiny_model().double()
    data, held_out = (batches(counting(n, seed=n)) for n in (60, 20))
    config = SFTConfig(steps, rows=2, row_length=16, accumulate=4, eval_every=2, save_every=2)
    train_sft(model, data, held_out, config, run, progress=False, world=world)
    return model


TRAININGS = {"grpo": reinforce, "sft": supervise}


def _train(rank: int, port: int, folder: Path) -> None:
    """As ``torchrun`` starts it."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with join_world() as world:
        assert (world.rank, world.size, world.is_first) == (rank, 2, rank == 0)
        assert world.totals([rank, 1.5]) == [1.0, 3.0]
        for name, train in TRAININGS.items():
            train(folder / name / ("first" if world.is_first else "second"), world, steps=2)
            model = train(folder / name / "first", world, steps=3)
            torch.save(model.state_dict(), folder / name / f"weights-{rank}.pt")
        config, data = SFTConfig(steps=1, accumulate=3), batches(counting(9, seed=0))
        with pytest.raises(ConfigError, match="cannot share the 3 batches of an update"):
            train_sft(model, data, data, config, folder, world=world)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def test_two_processes_make_the_update_of_one(tmp_path: Path) -> None:
    """In three steps, of which the third is made by processes that go on from the state."""
    context, port = multiprocessing.get_context("spawn"), _free_port()
    processes = [context.Process(target=_train, args=(r, port, tmp_path)) for r in range(2)]
    try:
        for process in processes:
            process.start()
        alone = {n: train(tmp_path / n / "alone", World(), 3) for n, train in TRAININGS.items()}
        for process in processes:
            process.join(timeout=200)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()

    for name, model in alone.items():
        one, other = (torch.load(tmp_path / name / f"weights-{rank}.pt") for rank in range(2))
        for key, weight in model.state_dict().items():
            torch.testing.assert_close(one[key], weight, rtol=1e-9, atol=1e-9)
            assert torch.equal(one[key], other[key])
        metrics, expected = (read_metrics(tmp_path / name / run) for run in ("first", "alone"))
        # Supervised training adds up the loss that it reports in float32.
        rel = 1e-6 if name == "sft" else 1e-9
        for found, line in zip(metrics, expected, strict=True):
            assert found == pytest.approx(line, rel=rel, abs=1e-12)
        # The first process alone writes files.
        assert not (tmp_path / name / "second").exists()
    metrics = read_metrics(tmp_path / "grpo" / "first")
    assert [m["groups"] for m in metrics[1:]] == [3, 0, 3]
    assert [m["problems"] for m in metrics[1:]] == [6, 6, 3]


def test_a_process_alone_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (None, "1"):
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        with join_world() as world:
            assert world == World(rank=0, size=1)
            assert world.is_first
            world.wait()
            assert world.totals([1, 2.5]) == [1, 2.5]
            parameter = nn.Parameter(torch.ones(2))
            parameter.grad = torch.tensor([3.0, 4.0])
            world.add_gradients([parameter, nn.Parameter(torch.ones(1))])
            assert parameter.grad.tolist() == [3.0, 4.0]
