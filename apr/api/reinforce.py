"""From a checkpoint to a better one: the engine samples with the weights as they are trained."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import torch

from apr import config
from apr.api.model import Model, evaluate, load, pose, read_model_manifest
from apr.api.recipe import Inference, Recipe, RLRecipe
from apr.api.training import claim_run
from apr.countdown.judge import TRUTHFUL, check_judged, judge_all
from apr.countdown.problem import Problem, Split, first_problem, problem
from apr.countdown.solver import search
from apr.data.tokenizer import HFCodec
from apr.engine import EmbeddedEngine
from apr.eval.metrics import summarize
from apr.eval.run import run_problems
from apr.models.checkpoint import default_device, load_checkpoint, save_checkpoint
from apr.models.llama import Llama
from apr.runtime import Observer, derived_seed
from apr.trace import Trace
from apr.train.advantage import Credit
from apr.train.compute import compute_on
from apr.train.grpo import Sampler, train_grpo
from apr.train.rollouts import Judge
from apr.train.world import join_world

_MOST_SEARCHES = 10_000
"""For a problem that the demonstrations leave: half a minute, where they leave none."""


def reinforce(
    recipe: RLRecipe,
    run: Path,
    progress: bool = True,
    deadline: float = inf,
    dtype: torch.dtype | None = None,
) -> None:
    """Train a checkpoint further by GRPO, or go on where ``run`` stopped.

    The new checkpoint, ``run/checkpoint``, is there once training has ended. Under ``torchrun``
    every process calls this with the same arguments.

    Args:
        deadline: when to stop, on the clock of ``time.monotonic``; at least one step is made.
        dtype: in which engine and trainer compute; float32 on a CPU and bfloat16 on CUDA by
            default. The weights that are trained are float32 always, since small steps are lost in
            less.

    Raises:
        CheckpointError: the checkpoint to start from, or the state in ``run``, cannot be used.
        ConfigError: ``run`` holds another recipe's run, or the recipe asks for a condition that the
            model was not trained on, or for per-thread credit of a text that has no judge.
        EngineError: the engine failed in every rollout of a step.
        ProblemError: problems are to be ``unsolved``, and the demonstrations leave none.
        OutOfTime: the deadline came before the end. The same call goes on from there.
    """
    start = Path(recipe.checkpoint)
    with join_world() as world:
        model = load(start, recipe.engine, dtype)
        engine = model.engine
        assert isinstance(engine, EmbeddedEngine)
        network, renew = _trained(engine, start)
        sample, validate = _sampler(model, renew, recipe), _validator(model, renew, recipe)
        judge = None if recipe.grpo.credit is Credit.ROOT else _judge(model.recipe)
        if world.is_first:
            claim_run(run, recipe)
        grpo = recipe.grpo
        compute = compute_on(default_device(), grpo.precision.dtype or dtype)
        train_grpo(network, sample, grpo, run, validate, judge, progress, world, compute, deadline)
        if world.is_first:
            manifest = read_model_manifest(start).whole | {"grpo": config.to_json(recipe)}
            text = HFCodec.load(start).to_json()
            save_checkpoint(network, run / "checkpoint", text, manifest)


def _trained(engine: EmbeddedEngine, start: Path) -> tuple[Llama, Callable[[], None]]:
    """The network to train, in float32, and what lets the engine know that it has changed.

    An engine of float32 shares its weights in place; one of less has a rounded copy of them.
    """
    served = engine.model
    if next(served.parameters()).dtype is torch.float32:
        return served, engine.weights_changed
    network = load_checkpoint(start, default_device(), torch.float32)

    def renew() -> None:
        served.load_state_dict(network.state_dict())
        engine.weights_changed()

    return network, renew


@dataclass(frozen=True)
class _Seeded:
    """A method whose problems come with the seed to sample them by."""

    model: Model
    how: Inference

    @property
    def name(self) -> str:
        return self.how.method

    async def solve(self, problem: tuple[Problem, int], observer: Observer | None = None) -> Trace:
        posed, seed = problem
        return await self.model.method(replace(self.how, seed=seed)).solve(posed, observer)


def _sampler(model: Model, renew: Callable[[], None], recipe: RLRecipe) -> Sampler:
    """Groups of rollouts by the engine, with the weights as they are."""
    size = recipe.grpo.group
    method = _Seeded(model, recipe.sampling)

    def sample(numbers: Sequence[int]) -> list[list[Trace]]:
        renew()
        problems = [to_train_on(recipe, model.recipe, number) for number in numbers]
        asked = [
            (posed, derived_seed(recipe.seed, number, member))
            for number, posed in zip(numbers, problems, strict=True)
            for member in range(size)
        ]
        traces = asyncio.run(run_problems(method, asked, recipe.engine.max_batch))
        return [traces[i : i + size] for i in range(0, len(traces), size)]

    return sample


def to_train_on(recipe: RLRecipe, trained: Recipe, number: int) -> Problem:
    """Problem ``number`` of the training split: any, or one that the demonstrations leave.

    Raises:
        ProblemError: they leave none.
    """
    told = trained.demonstrations
    solver = replace(told.solver, balances=False)
    rng = random.Random(f"unsolved/{recipe.seed}/{number}")
    if rng.random() >= recipe.unsolved:
        return problem(told.problems, recipe.seed, number)

    def is_left(posed: Problem) -> bool:
        return search(posed, solver, rng).goal is None

    kind = f"unsolved by the search of {recipe.checkpoint}: set unsolved to 0"
    return first_problem(
        told.problems, recipe.seed, number, Split.TRAIN, is_left, kind, draws=_MOST_SEARCHES
    )


def _validator(
    model: Model, renew: Callable[[], None], recipe: RLRecipe
) -> Callable[[], dict[str, float]]:
    """Greedy figures on the first problems of the validation split, the same every time."""
    posed = pose(model.recipe, Split.VALID, recipe.validation)
    how = replace(recipe.sampling, temperature=0.0)

    def validate() -> dict[str, float]:
        renew()
        summary = summarize(evaluate(model, posed, how, recipe.engine.max_batch))
        names = ("accuracy", "total_tokens", "sequential_tokens", "num_children")
        return {name: getattr(summary, name) for name in names}

    return validate


def _judge(recipe: Recipe) -> Judge:
    """What each thread was worth: 1 if it told the truth about its own sub-problem, else 0."""
    told = recipe.demonstrations
    check_judged(told.telling)

    def judge(trace: Trace) -> list[float | None]:
        verdicts = judge_all(trace, told.text, told.telling, told.solver.bounds)
        return [None if v is None else float(v in TRUTHFUL) for v in verdicts]

    return judge
