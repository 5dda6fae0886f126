"""Reinforcement learning from a recipe to a checkpoint, through the real parts, but small."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apr import api, config
from apr.api.reinforce import to_train_on
from apr.countdown.problem import Problem, Split, problem, split_of
from apr.countdown.solver import SearchConfig, search
from apr.errors import CheckpointError, ConfigError, OutOfTime, ProblemError
from apr.train.log import read_metrics
from tests.test_api import RECIPE

Overrides = dict[str, Any]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows how to spawn and join, and little else."""
    home = tmp_path_factory.mktemp("start")
    optim = replace(RECIPE.sft.optim, lr=0.01, matrix_lr=0.05, warmup=1)
    recipe = replace(RECIPE, count=200, sft=replace(RECIPE.sft, steps=150, optim=optim))
    recipe = replace(recipe, sft=replace(recipe.sft, eval_every=150, save_every=150))
    api.make_data(recipe, home / "data", progress=False)
    api.train(recipe, home / "run", home / "data", progress=False)
    return home / "run" / "checkpoint"


def rl(start: Path, **changes: Any) -> api.RLRecipe:
    grpo = {
        "steps": 3,
        "prompts": 4,
        "group": 3,
        "validate_every": 2,
        "save_every": 1,
        "micro_tokens": 500,
        # Hardly an answer is right, so what is rewarded is children that come back.
        "reward": {"shape": "parl", "finished": 1.0},
        "optim": {"kind": "adamw", "lr": 1e-3, "warmup": 0, "decay": 0.0},
    }
    grpo |= changes.pop("grpo", {})
    return config.build(
        api.RLRecipe, {"checkpoint": str(start), "validation": 3, "grpo": grpo} | changes
    )


def toml(recipe: api.RLRecipe | api.Recipe, path: Path) -> Path:
    """``recipe`` as a file, by way of overrides, which TOML values are."""
    lines: list[str] = []

    def write(section: str, values: dict[str, Any]) -> None:
        plain = {k: v for k, v in values.items() if not isinstance(v, dict) and v is not None}
        lines.append(f"[{section}]" if section else "")
        lines.extend(f"{k} = {json.dumps(v)}" for k, v in plain.items())
        for key, value in values.items():
            if isinstance(value, dict):
                write(f"{section}.{key}" if section else key, value)

    write("", config.to_json(recipe))
    path.write_text("\n".join(lines))
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_makes_a_checkpoint_that_knows_where_it_comes_from(
    start: Path, tmp_path: Path
) -> None:
    recipe = rl(start)
    api.reinforce(recipe, tmp_path, progress=False)
    model = api.load(tmp_path / "checkpoint")
    assert model.recipe == api.load(start).recipe
    manifest = json.loads((tmp_path / "checkpoint" / "apr.json").read_text())
    assert config.build(api.RLRecipe, manifest["grpo"]) == recipe
    assert not same(weights(tmp_path), load_file(start / "model.safetensors"))
    (trace,) = api.evaluate(model, api.pose(RECIPE, Split.TEST, 1))
    assert trace.grade is not None


def test_problems_can_be_those_that_the_demonstrations_leave(start: Path) -> None:
    solver = SearchConfig(max_value=30, spawn_depth=1, balances=True)
    told = replace(RECIPE.demonstrations, solver=solver)
    trained = replace(RECIPE, demonstrations=told)
    plain = replace(solver, balances=False)

    def is_left(posed: Problem) -> bool:
        return search(posed, plain, random.Random(0)).goal is None

    def pose(share: float) -> list[Problem]:
        recipe = rl(start, unsolved=share)
        return [to_train_on(recipe, trained, number) for number in range(40)]

    usual = [problem(told.problems, 0, number) for number in range(40)]
    assert pose(0) == usual
    assert sum(map(is_left, usual)) < 20
    assert all(map(is_left, pose(1)))
    assert len({p.numbers for p in pose(1)}) > 20
    assert all(split_of(p.numbers) is Split.TRAIN for p in pose(1))
    assert 8 < sum(a != b for a, b in zip(pose(0.5), usual, strict=True)) < 32
    assert pose(0.5) == pose(0.5)
    with pytest.raises(ConfigError, match="unsolved is a share"):
        rl(start, unsolved=2)
    with pytest.raises(ProblemError, match=r"unsolved by the search of .*: set unsolved to 0"):
        to_train_on(rl(start, unsolved=1), RECIPE, 0)


def test_the_engine_and_the_trainer_agree_on_what_was_sampled(start: Path, tmp_path: Path) -> None:
    """At every step, so the engine samples with the weights as they are."""
    api.reinforce(rl(start, grpo={"steps": 4}), tmp_path, progress=False)
    metrics = read_metrics(tmp_path)
    assert [m["step"] for m in metrics] == [0, 1, 2, 3, 4]
    assert [m["step"] for m in metrics if "valid_accuracy" in m] == [0, 2, 4]
    assert all(m["mismatch"] < 1e-5 for m in metrics[1:])
    assert all(m["rollouts"] == 12 and m["failed_rollouts"] == 0 for m in metrics[1:])
    assert [m["kl"] > 1e-7 for m in metrics[1:]] == [True] * 4
    assert any(m["mixed_groups"] for m in metrics[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(None, marks=pytest.mark.gpu)])
def test_an_engine_of_half_precision_gets_the_weights_as_they_are(
    start: Path, tmp_path: Path, dtype: torch.dtype | None
) -> None:
    """By default on a GPU: the weights that are trained are float32, and the engine has a copy."""
    recipe = rl(start, grpo={"steps": 4, "optim": {"kind": "adamw", "lr": 0.01, "warmup": 0}})
    api.reinforce(recipe, tmp_path, progress=False, dtype=dtype)
    metrics = read_metrics(tmp_path)[1:]
    # Rounding alone; what four such steps change in a log-probability is more than ten times that.
    assert all(1e-4 < m["mismatch"] < 0.03 for m in metrics)
    trained, before = weights(tmp_path), load_file(start / "model.safetensors")
    assert not same(trained, before)
    assert {w.dtype for w in trained.values()} == {torch.float32}
    assert any((w != w.bfloat16()).any() for w in trained.values()), "small steps are kept"


def test_a_trainer_of_half_precision_agrees_with_its_engine_but_for_rounding(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A network this small may be emulated.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    recipe = rl(start, grpo={"steps": 2, "precision": "bfloat16"})
    api.reinforce(recipe, tmp_path, progress=False)
    assert all(1e-5 < m["mismatch"] < 0.03 for m in read_metrics(tmp_path)[1:])


def test_a_run_in_pieces_is_the_run_in_one(start: Path, tmp_path: Path) -> None:
    recipe = rl(start, grpo={"save_every": 10})
    api.reinforce(recipe, tmp_path / "straight", progress=False)
    # A deadline that is over lets one step be made.
    for step in (1, 2):
        with pytest.raises(OutOfTime, match=f"^out of time after step {step} of 3: "):
            api.reinforce(recipe, tmp_path / "pieces", progress=False, deadline=0.0)
        assert not (tmp_path / "pieces" / "checkpoint").exists()
    api.reinforce(recipe, tmp_path / "pieces", progress=False, deadline=0.0)
    curves = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("straight", "pieces")]
    assert curves[0] == curves[1]
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "pieces"))


def test_a_run_is_a_function_of_its_recipe(start: Path, tmp_path: Path) -> None:
    recipes = {"a": rl(start), "b": rl(start), "c": rl(start, seed=1)}
    for name, recipe in recipes.items():
        api.reinforce(recipe, tmp_path / name, progress=False)
    a, b, c = (weights(tmp_path / name) for name in recipes)
    assert same(a, b)
    assert not same(a, c)
    assert read_metrics(tmp_path / "a") == read_metrics(tmp_path / "b")


@pytest.mark.parametrize("credit", ["thread", "mixed"])
def test_children_can_be_credited_by_what_they_said(
    start: Path, tmp_path: Path, credit: str
) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    api.reinforce(rl(start), root, progress=False)
    api.reinforce(rl(start, grpo={"credit": credit}), other, progress=False)
    assert not same(weights(root), weights(other))


def test_serial_search_is_trained_by_the_same_means(start: Path, tmp_path: Path) -> None:
    recipe = rl(start, sampling={"method": "serial", "temperature": 1.0})
    api.reinforce(recipe, tmp_path, progress=False)
    assert all(m["children"] == 0 for m in read_metrics(tmp_path)[1:])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampling": {"temperature": 0.5}}, "leave sampling.temperature at 1"),
        ({"sampling": {"temperature": 1.0, "seed": 3}}, "set seed, not sampling.seed"),
        ({"sampling": {"temperature": 1.0, "children": 3}}, "not trained to heed a number"),
        ({"sampling": {"temperature": 1.0, "method": "hogwild"}}, "is nothing to train on"),
        ({"sampling": {"temperature": 1.0, "method": "best_of_n"}}, "answers from several samples"),
        ({"validation": 0}, "validation is 0: give 1 or more"),
        ({"grpo": {"group": 1}}, "group is 1: give 2 or more"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    start: Path, tmp_path: Path, changes: Overrides, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        api.reinforce(rl(start, **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "state").exists()


def test_a_run_is_of_one_recipe(start: Path, tmp_path: Path) -> None:
    api.reinforce(rl(start), tmp_path, progress=False)
    with pytest.raises(ConfigError, match="holds a run of another recipe"):
        api.reinforce(rl(start, seed=5), tmp_path, progress=False)


def test_a_missing_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        api.reinforce(rl(tmp_path / "nowhere"), tmp_path / "run", progress=False)


def _spawn(*args: str | Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, args)], env=environment, text=True, stdout=subprocess.PIPE
    )


def _finish(*args: str | Path) -> str:
    """What it printed."""
    with _spawn(*args) as process:
        printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return printed


def _wait_for(path: Path, num_lines: int) -> None:
    while not path.is_file() or path.read_bytes().count(b"\n") < num_lines:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills_at_random_moments_change_nothing(start: Path, tmp_path: Path) -> None:
    # Sixty steps and ten kills: each run gets a few steps further, and is killed anywhere in one.
    recipe = toml(rl(start, grpo={"steps": 60}), tmp_path / "rl.toml")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    _finish("-m", "apr", "grpo", recipe, "--out", straight)
    moments = random.Random(0)
    for kill in range(10):
        with _spawn("-m", "apr", "grpo", recipe, "--out", killed) as process:
            _wait_for(killed / "metrics.jsonl", num_lines=5 * kill + moments.randint(1, 5))
            time.sleep(moments.uniform(0, 0.3))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    _finish("-m", "apr", "grpo", recipe, "--out", killed)
    lines = [(run / "metrics.jsonl").read_bytes() for run in (straight, killed)]
    assert lines[0] == lines[1]
    assert same(weights(straight), weights(killed))


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "apr")


@pytest.mark.slow
def test_two_processes_of_torchrun_make_data_once_and_train_on_it(tmp_path: Path) -> None:
    recipe = toml(replace(RECIPE, sft=replace(RECIPE.sft, accumulate=2)), tmp_path / "sft.toml")
    one, two = (("--out", tmp_path / n, "--data", tmp_path / f"data-{n}") for n in ("one", "two"))
    _finish("-m", "apr", "sft", recipe, *one)
    printed = _finish(*TORCHRUN, "sft", recipe, *two)
    assert printed.count("checkpoint in") == printed.count("held-out loss") == 1
    assert printed.count("demonstrations of") == 2  # to train on, and held out
    for a, b in zip(*(read_metrics(tmp_path / n) for n in ("one", "two")), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    for name, weight in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], weight, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_of_torchrun_train_one_model(start: Path, tmp_path: Path) -> None:
    """Rollouts differ in the last digits of their logprobs at most, so the curves stay together."""
    recipe = toml(rl(start), tmp_path / "rl.toml")
    one, two = tmp_path / "one", tmp_path / "two"
    _finish("-m", "apr", "grpo", recipe, "--out", one)
    assert _finish(*TORCHRUN, "grpo", recipe, "--out", two).count("checkpoint in") == 1
    for a, b in zip(read_metrics(one), read_metrics(two), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-6)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, atol=1e-4, rtol=1e-3)
