from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apr import config as configs
from apr.dialects.tags import Tags
from apr.engine import EmbeddedEngine
from apr.errors import CheckpointError, ConfigError, EngineError
from apr.models.llama import Llama
from apr.runtime import Runtime
from apr.testing import ByteCodec
from apr.trace import Call, Trace
from apr.train.advantage import Advantage, Credit
from apr.train.attention import causal_reference
from apr.train.grpo import GRPOConfig, Sampler, train_grpo
from apr.train.log import read_metrics
from apr.train.loss import Aggregation, LossConfig
from apr.train.optim import Kind, OptimConfig, make_optimizers
from apr.train.reward import RewardConfig, Shape
from apr.train.state import save_state
from apr.types import Grade, Sampling
from tests.tiny import tiny_config, tiny_model
from tests.train.trees import (
    ADVANTAGES,
    FAILED,
    JOIN,
    NESTED,
    ROLLOUTS,
    SERIAL,
    SPAWN,
    WIDE,
    call,
    judge,
    thread,
    trace,
)

CONFIG = GRPOConfig(
    steps=1,
    prompts=1,
    group=3,
    inner_steps=1,
    optim=OptimConfig(kind=Kind.ADAMW, lr=0.01, warmup=0, decay=0.0),
    validate_every=1,
    save_every=1,
)
STILL = replace(CONFIG.optim, lr=0.0)


def always(*groups: list[Trace]) -> Sampler:
    return lambda numbers: list(groups)


def train(run: Path, sample: Sampler, config: GRPOConfig, **options: Any) -> Llama:
    model = options.pop("model", None) or tiny_model()
    train_grpo(model, sample, config, run, progress=False, **options)
    return model


def same(one: Llama, other: Llama) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


# --- one step against a slow, literal reference ---------------------------------------------------


def moved(model: Llama, seed: int) -> Llama:
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator)
    return model


def start_from(model: Llama, run: Path, config: GRPOConfig) -> None:
    """Leave a state in ``run``, so that training starts from other weights than the reference's."""
    facts = {"step": 0, "problems": 0, "tokens": 0}
    save_state(run, model, make_optimizers(model, config.optim), facts)


class Literal:
    """The update, one token after another, as the objective is written down."""

    def __init__(self, model: Llama, reference: Llama, config: GRPOConfig) -> None:
        self.model, self.reference, self.config = model, reference, config
        self.old = copy.deepcopy(model)
        self.losses: list[float] = []
        self.kl = self.norm = self.num_clipped = 0.0

    def update(self) -> None:
        (optimizer,) = make_optimizers(self.model, self.config.optim)
        for _ in range(self.config.inner_steps):
            loss = self.loss()
            self.losses.append(loss.item())
            loss.backward()
            parameters = self.model.parameters()
            self.norm = nn.utils.clip_grad_norm_(parameters, self.config.optim.clip).item()
            optimizer.step()
            optimizer.zero_grad()

    def loss(self) -> Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        advantages_GH = ADVANTAGES[self.config.advantage, self.config.credit]
        for rollout, advantages_H in zip(ROLLOUTS, advantages_GH, strict=True):
            for line, advantage in zip(rollout.threads, advantages_H, strict=True):
                for request in line.calls:
                    if request.logprobs:
                        loss = loss + self.call(request, advantage, self.weight(rollout))
        return loss

    def weight(self, rollout: Trace) -> float:
        match self.config.loss.aggregation:
            case Aggregation.ROLLOUT:
                return 1 / 3 / rollout.total_tokens
            case Aggregation.TOKEN:
                return 1 / (14 + 12 + 4)
            case Aggregation.CONSTANT:
                return 1 / 3 / self.config.loss.divisor

    def call(self, request: Call, advantage: float, weight: float) -> Tensor:
        ids, config = torch.tensor(request.prompt_ids + request.ids), self.config.loss
        loss = torch.zeros((), dtype=torch.float64)
        new_TV, old_TV, reference_TV = (
            m.logits(m(ids, torch.arange(len(ids)), causal_reference)).log_softmax(-1)
            for m in (self.model, self.old, self.reference)
        )
        for i, id in enumerate(request.ids):
            before = len(request.prompt_ids) + i - 1
            new, old = new_TV[before, id], old_TV[before, id].detach()
            reference = reference_TV[before, id].detach()
            ratio = (new - old).exp()
            gain = ratio * advantage
            if advantage > 0 and ratio > 1 + config.clip_high:
                gain = torch.tensor((1 + config.clip_high) * advantage)
                self.num_clipped += 1
            if advantage < 0 and ratio < 1 - config.clip_low:
                gain = torch.tensor((1 - config.clip_low) * advantage)
                self.num_clipped += 1
            if config.importance_cap:
                gain = gain * min((old - request.logprobs[i]).exp().item(), config.importance_cap)
            divergence = (reference - new).exp() - (reference - new) - 1
            loss = loss + weight * (config.kl * divergence - gain)
            self.kl += weight * divergence.item()
        return loss


LOSS = LossConfig(divisor=20, clip_low=0.1, clip_high=0.2, kl=0.5)
STEPS = [
    CONFIG,
    replace(CONFIG, inner_steps=3),
    replace(CONFIG, advantage=Advantage.MEAN_ONLY, loss=replace(LOSS, importance_cap=0.0)),
    replace(
        CONFIG,
        inner_steps=2,
        advantage=Advantage.LEAVE_ONE_OUT,
        credit=Credit.THREAD,
        loss=replace(LOSS, aggregation=Aggregation.TOKEN),
    ),
    replace(
        CONFIG,
        inner_steps=2,
        advantage=Advantage.MEAN_ONLY,
        credit=Credit.MIXED,
        own_weight=0.25,
        loss=replace(LOSS, aggregation=Aggregation.CONSTANT),
    ),
    replace(CONFIG, inner_steps=2, credit=Credit.THREAD, loss=LOSS, micro_tokens=8),
    replace(CONFIG, inner_steps=2, credit=Credit.THREAD, loss=replace(LOSS, kl=0.0)),
]


@pytest.mark.parametrize("config", STEPS)
def test_a_step_is_that_of_the_literal_objective(tmp_path: Path, config: GRPOConfig) -> None:
    reference = tiny_model().double()
    model = moved(reference, seed=1)
    start_from(model, tmp_path, config)
    literal = Literal(model, reference, config)
    literal.update()

    trained = train(tmp_path, always(ROLLOUTS), config, judge=judge, model=copy.deepcopy(reference))
    for found, expected in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    (metrics,) = read_metrics(tmp_path)
    num = config.inner_steps
    assert metrics["loss"] == pytest.approx(sum(literal.losses) / num, rel=1e-6)
    assert metrics["kl"] == pytest.approx(literal.kl / num if config.loss.kl else 0.0, rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(literal.norm, rel=1e-6)
    # With neither an advantage nor a reference, a child of 4 tokens is left out.
    assert metrics["trained_tokens"] == (28 if config.loss.kl else 24)
    clipped = literal.num_clipped / num / metrics["trained_tokens"]
    assert metrics["clip_fraction"] == pytest.approx(clipped)
    # The clip has nothing to hold before the first update, and some tokens after it.
    assert (clipped > 0) == (num > 1)


# --- what a step reports --------------------------------------------------------------------------


def test_a_step_reports_what_its_rollouts_reached_and_cost(tmp_path: Path) -> None:
    right = replace(SERIAL, grade=Grade(True, ""))
    config = replace(CONFIG, prompts=2, group=4, optim=STILL)
    validated = iter([0.1, 0.2])
    train(
        tmp_path,
        always([*ROLLOUTS, FAILED], [right, FAILED, right, right]),
        config,
        validate=lambda: {"accuracy": next(validated)},
    )
    before, metrics = read_metrics(tmp_path)
    assert before == {"step": 0, "valid_accuracy": 0.1}
    known = {
        "step": 1,
        "valid_accuracy": 0.2,
        "lr_share": 1.0,
        "reward": 4 / 6,
        "accuracy": 4 / 6,
        "total_tokens": 42 / 6,
        "sequential_tokens": 31 / 6,
        "children": 8 / 6,
        "calls": 18 / 6,
        "tokens_per_call": 42 / 18,
        "rollouts": 6,
        "failed_rollouts": 2,
        "groups": 2,
        "mixed_groups": 1,
        "tokens": 42,
        "problems": 2,
        "trained_tokens": 40,  # two of the 42 have no log-probability
        "kl": 0.0,
        "clip_fraction": 0.0,
    }
    assert {name: metrics[name] for name in known} == pytest.approx(known)
    assert metrics.keys() - known.keys() == {"loss", "entropy", "mismatch", "grad_norm"}


def test_entropy_and_mismatch_are_means_over_the_tokens_trained_on(tmp_path: Path) -> None:
    model, ids = tiny_model(), torch.tensor([2, 3, 25, 26, 27, JOIN])
    train(tmp_path, always([SERIAL, replace(SERIAL, grade=Grade(True, ""))]), CONFIG, model=model)
    with torch.no_grad():
        model = tiny_model()
        logits = model.logits(model(ids, torch.arange(6), causal_reference))[1:-1]
    logprobs_TV = logits.log_softmax(-1)
    sampled_T = logprobs_TV[range(4), ids[2:]]
    engine_T = torch.tensor(SERIAL.root.calls[0].logprobs)
    metrics = read_metrics(tmp_path)[-1]
    assert metrics["mismatch"] == pytest.approx((sampled_T - engine_T).abs().mean().item())
    entropy = -(logprobs_TV.exp() * logprobs_TV).sum(-1).mean().item()
    assert metrics["entropy"] == pytest.approx(entropy)


def test_an_annealed_bonus_fades_from_step_to_step(tmp_path: Path) -> None:
    bonus = RewardConfig(Shape.PARL, spawned=0.3, finished=0.0, anneal=2)
    train(tmp_path, always(ROLLOUTS), replace(CONFIG, steps=3, optim=STILL, reward=bonus))
    rewards = [m["reward"] for m in read_metrics(tmp_path)[1:]]
    assert rewards == pytest.approx([(1 + 0.6) / 3, (1 + 0.3) / 3, 1 / 3])


# --- which rollouts count -------------------------------------------------------------------------


def test_failures_of_the_engine_change_nothing_but_their_count(tmp_path: Path) -> None:
    with_failures = train(tmp_path / "a", always([FAILED, *ROLLOUTS, FAILED]), CONFIG)
    without = train(tmp_path / "b", always(ROLLOUTS), CONFIG)
    assert same(with_failures, without)
    found, expected = (read_metrics(tmp_path / name)[-1] for name in "ab")
    assert found == {**expected, "failed_rollouts": 2}


def test_a_rollout_left_alone_is_reported_and_not_trained_on(tmp_path: Path) -> None:
    model = train(tmp_path, always([NESTED, FAILED, FAILED]), CONFIG)
    assert same(model, tiny_model())
    metrics = read_metrics(tmp_path)[-1]
    assert (metrics["rollouts"], metrics["groups"], metrics["trained_tokens"]) == (1, 0, 0)


def test_a_step_in_which_every_rollout_failed_is_an_error(tmp_path: Path) -> None:
    def sample(numbers: Sequence[int]) -> list[list[Trace]]:
        return [ROLLOUTS if number < 2 else [FAILED] * 3 for number in numbers]

    with pytest.raises(EngineError, match="failed in every rollout of a step"):
        train(tmp_path, sample, replace(CONFIG, steps=3, save_every=2))
    assert [m["step"] for m in read_metrics(tmp_path)] == [0, 1, 2]
    # The run goes on once the engine is back.
    resumed = train(tmp_path, always(ROLLOUTS), replace(CONFIG, steps=3, save_every=2))
    assert same(resumed, train(tmp_path / "b", always(ROLLOUTS), replace(CONFIG, steps=3)))


def test_equal_rewards_move_nothing_but_towards_the_reference(tmp_path: Path) -> None:
    alike = always([replace(t, grade=Grade(True, "")) for t in ROLLOUTS])
    free = replace(CONFIG, steps=3, loss=LossConfig(kl=0.0))
    assert same(train(tmp_path / "free", alike, free), tiny_model())
    assert [m["trained_tokens"] for m in read_metrics(tmp_path / "free")[1:]] == [0, 0, 0]

    held = replace(free, optim=replace(CONFIG.optim, lr=2e-4), loss=LossConfig(kl=1.0))
    start_from(moved(tiny_model(), seed=1), tmp_path / "held", held)
    train(tmp_path / "held", alike, held)
    metrics = read_metrics(tmp_path / "held")
    assert [m["trained_tokens"] for m in metrics] == [28, 28, 28]
    divergences = [m["kl"] for m in metrics]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[-1] < divergences[0] / 2


def test_rollouts_that_sampled_nothing_are_no_error(tmp_path: Path) -> None:
    empty = [trace(thread(0, None, "go"), correct=correct) for correct in (True, False)]
    for aggregation in Aggregation:
        config = replace(CONFIG, loss=LossConfig(aggregation=aggregation))
        assert same(train(tmp_path / aggregation, always(empty), config), tiny_model())


# --- problems -------------------------------------------------------------------------------------


def posed(mixed: Callable[[int], bool], calls: list[list[int]]) -> Sampler:
    """Groups of the problems for which ``mixed`` holds differ; notes what was asked for."""

    def sample(numbers: Sequence[int]) -> list[list[Trace]]:
        calls.append(list(numbers))
        return [ROLLOUTS if mixed(number) else [WIDE, SERIAL] for number in numbers]

    return sample


def test_each_step_poses_the_next_problems(tmp_path: Path) -> None:
    calls: list[list[int]] = []
    config = replace(CONFIG, steps=3, prompts=2)
    train(tmp_path, posed(lambda number: number == 0, calls), config)
    assert calls == [[0, 1], [2, 3], [4, 5]]
    metrics = read_metrics(tmp_path)[1:]
    # Groups that say nothing are kept, for what the reference has to say of them.
    assert [(m["groups"], m["mixed_groups"]) for m in metrics] == [(2, 1), (2, 0), (2, 0)]
    train(tmp_path, posed(lambda number: True, calls), replace(config, steps=4))
    assert calls[3:] == [[6, 7]]


def test_a_group_whose_children_alone_differ_teaches_where_credit_is_theirs(tmp_path: Path) -> None:
    alike = always([replace(t, grade=Grade(True, "")) for t in ROLLOUTS])
    config = replace(CONFIG, rounds=2, loss=LossConfig(kl=0.0))
    for credit, kept in ((Credit.ROOT, 0), (Credit.THREAD, 1), (Credit.MIXED, 1)):
        train(tmp_path / credit, alike, replace(config, credit=credit), judge=judge)
        metrics = read_metrics(tmp_path / credit)[-1]
        assert (metrics["groups"], metrics["problems"]) == (kept, 2 - kept), credit
        assert (metrics["trained_tokens"] > 0) == bool(kept), credit


def test_groups_that_say_nothing_are_dropped_and_the_next_problems_posed(tmp_path: Path) -> None:
    calls: list[list[int]] = []
    config = replace(CONFIG, steps=3, prompts=2, rounds=3, loss=LossConfig(kl=0.0))
    model = train(tmp_path, posed({0, 5, 6, 7}.__contains__, calls), config)
    assert calls == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13]]
    metrics = read_metrics(tmp_path)[1:]
    assert [m["problems"] for m in metrics] == [6, 2, 6]
    assert [(m["groups"], m["mixed_groups"]) for m in metrics] == [(2, 2), (2, 2), (0, 0)]
    # What was sampled and dropped is reported all the same.
    assert [m["rollouts"] for m in metrics] == [2 * 3 + 4 * 2, 2 * 3, 6 * 2]
    assert [m["trained_tokens"] for m in metrics] == [56, 56, 0]
    # Nothing was learnt from the last step.
    assert same(model, train(tmp_path / "2", always(ROLLOUTS, ROLLOUTS), replace(config, steps=2)))


def test_credit_by_the_thread_needs_a_judge(tmp_path: Path) -> None:
    for credit in (Credit.THREAD, Credit.MIXED):
        with pytest.raises(ConfigError, match=f"credit '{credit}' needs a judge of threads"):
            train(tmp_path, always(ROLLOUTS), replace(CONFIG, credit=credit))
    assert list(tmp_path.iterdir()) == []


# --- validation and resume ------------------------------------------------------------------------

RUN = replace(
    CONFIG,
    steps=7,
    prompts=2,
    inner_steps=2,
    rounds=2,
    validate_every=3,
    save_every=2,
    loss=LossConfig(kl=0.1),
)


def made_up(number: int, config: GRPOConfig = RUN) -> list[Trace]:
    """A group that depends on the number alone: some right, some failed, some with a child."""
    rng = random.Random(number)

    def rollout() -> Trace:
        if rng.random() < 0.2:
            return FAILED
        ids = [rng.randrange(10, 38) for _ in range(rng.randrange(1, 5))]
        if rng.random() < 0.5:
            return trace(thread(0, None, "go", call((2, 3), *ids, JOIN)), correct=ids[0] < 24)
        root = call((2, 3), *ids, SPAWN), call((2, 3, *ids, SPAWN, 8), JOIN)
        child = call((4,), rng.randrange(10, 38), JOIN)
        return trace(
            thread(0, None, "go", *root, spawns=((1,),)),
            thread(1, 0, "x", child),
            correct=ids[0] < 24,
        )

    return [rollout() for _ in range(config.group)]


def make_up(run: Path, calls: list[str], config: GRPOConfig = RUN) -> Llama:
    """A whole run; ``calls`` gets what was asked for, problems and validations."""
    model = tiny_model()

    def sample(numbers: Sequence[int]) -> list[list[Trace]]:
        calls.append(f"{numbers[0]}-{numbers[-1]}")
        return [made_up(number) for number in numbers]

    def validate() -> dict[str, float]:
        calls.append("validate")
        return {"weights": sum(p.abs().sum().item() for p in model.parameters())}

    train_grpo(model, sample, config, run, validate, progress=False)
    return model


def test_validation_comes_first_last_and_in_between(tmp_path: Path) -> None:
    calls: list[str] = []
    make_up(tmp_path, calls, replace(RUN, rounds=1))
    assert calls == [
        "validate", "0-1", "2-3", "4-5", "validate", "6-7", "8-9", "10-11", "validate", "12-13",
        "validate",
    ]  # fmt: skip
    metrics = read_metrics(tmp_path)
    assert [m["step"] for m in metrics if "valid_weights" in m] == [0, 3, 6, 7]
    expected = sum(p.abs().sum().item() for p in tiny_model().parameters())
    assert metrics[0] == {"step": 0, "valid_weights": expected}


class _Doomed(list[str]):
    """Calls of a run that is killed at one of them."""

    def __init__(self, last: int) -> None:
        self.last = last

    def append(self, call: str) -> None:
        super().append(call)
        if len(self) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def _killed_while_sampling(run: Path) -> None:
    """In the fourth step, one after the first state."""
    make_up(run, _Doomed(7))


def _killed_while_validating(run: Path) -> None:
    """After the sixth step, two after the second state, before its line is written."""
    make_up(run, _Doomed(11))


def _killed_while_saving(run: Path) -> None:
    """Between the two moves that put the second state in the place of the first."""
    move = os.replace

    def move_or_die(source: Path, target: Path) -> None:
        if source.name == ".state.apr-new" and (run / ".state.apr-old").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        move(source, target)

    os.replace = move_or_die
    make_up(run, [])


@pytest.mark.parametrize(
    ("killed", "num_lines", "step"),
    [
        (_killed_while_sampling, 4, 2),
        (_killed_while_validating, 6, 4),
        (_killed_while_saving, 5, 2),
    ],
)
def test_a_killed_run_goes_on_to_the_same_curve_and_weights(
    tmp_path: Path, killed: Callable[[Path], None], num_lines: int, step: int
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    calls: list[str] = []
    model = make_up(straight, calls)

    process = multiprocessing.get_context("spawn").Process(target=killed, args=(resumed,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(read_metrics(resumed)) == num_lines
    calls_again: list[str] = []
    same_model = make_up(resumed, calls_again)

    # Nothing before the state was done again, and nothing after it left out.
    assert calls_again == calls[-len(calls_again) :]
    done = read_metrics(straight)[1 : step + 1]
    assert calls_again[0].startswith(f"{int(sum(m['problems'] for m in done))}-")
    curves = [(run / "metrics.jsonl").read_bytes() for run in (straight, resumed)]
    assert curves[0] == curves[1]
    assert same(same_model, model)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    model = make_up(tmp_path, [])
    curve = (tmp_path / "metrics.jsonl").read_bytes()
    calls: list[str] = []
    assert same(make_up(tmp_path, calls), model)
    assert calls == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == curve


def test_a_folder_with_a_damaged_state_is_refused(tmp_path: Path) -> None:
    train(tmp_path, always(ROLLOUTS), CONFIG)
    (tmp_path / "state" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged or of another model"):
        train(tmp_path, always(ROLLOUTS), CONFIG)


# --- the engine in the loop -----------------------------------------------------------------------


def test_a_model_learns_to_sample_what_is_rewarded(tmp_path: Path) -> None:
    """Over the engine that shares its weights: answers that begin with a byte below 64."""
    codec = ByteCodec(bos="<|begin|>")
    model = tiny_model(tiny_config(vocab_size=256 + len(codec.specials)))
    engine = EmbeddedEngine(model)
    runtime = Runtime(engine, codec, Tags(), Sampling(max_tokens=3, temperature=1.0, seed=0))

    async def solve(number: int, member: int) -> Trace:
        trace = await runtime.reseeded(8 * number + member).run(f"problem {number % 2}")
        return replace(trace, grade=Grade(trace.root.calls[0].ids[0] < 64, ""))

    async def sample_all(numbers: Sequence[int]) -> list[list[Trace]]:
        return [await asyncio.gather(*(solve(n, m) for m in range(8))) for n in numbers]

    def sample(numbers: Sequence[int]) -> list[list[Trace]]:
        engine.weights_changed()
        return asyncio.run(sample_all(numbers))

    config = replace(
        CONFIG, steps=12, prompts=4, group=8, inner_steps=2, validate_every=100, save_every=100
    )
    train(tmp_path, sample, config, model=model)
    metrics = read_metrics(tmp_path)[1:]
    rewards = [m["reward"] for m in metrics]
    assert sum(rewards[:2]) / 2 < 0.3
    assert sum(rewards[-3:]) / 3 > 0.9
    # What was sampled came from the weights as they were at each step.
    assert max(m["mismatch"] for m in metrics) < 1e-5
    # The reference stays where it was: estimates of single steps are too rough to be compared.
    assert sum(m["kl"] for m in metrics[-3:]) / 3 > 1


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        *(
            ({name: 0}, f"{name} is 0: give 1 or more")
            for name in (
                "steps", "prompts", "inner_steps", "rounds", "micro_tokens", "validate_every",
                "save_every",
            )
        ),
        ({"group": 1}, "group is 1: give 2 or more"),
        ({"own_weight": -0.1}, "own_weight is between 0 and 1, not -0.1"),
        ({"own_weight": 1.5}, "own_weight is between 0 and 1, not 1.5"),
        ({"advantage": "best"}, "'advantage' is one of 'grpo', 'mean_only', 'leave_one_out'"),
        ({"credit": "child"}, "'credit' is one of 'root', 'thread', 'mixed'"),
        ({"reward": {"shape": "short"}}, "'reward.shape' is one of 'correct', 'cost'"),
        ({"reward": {"prices": {"most": 1}}}, "most is from 0 up to below 1"),
        ({"loss": {"kl": -1}}, "kl is -1.0: give 0 or more"),
        ({"loss": {"clip": 0.2}}, "unknown key 'loss.clip'"),
    ],
)  # fmt: skip
def test_a_recipe_out_of_range_is_refused(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs.build(GRPOConfig, bad)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_defaults_are_the_papers() -> None:
    config = GRPOConfig()
    assert (config.steps, config.prompts, config.group, config.inner_steps) == (150, 64, 5, 2)
    assert (config.loss.clip_low, config.loss.clip_high, config.loss.kl) == (0.2, 0.2, 0.001)
    assert config.optim.lr == 1e-5
    assert (config.advantage, config.credit) == (Advantage.GRPO, Credit.ROOT)
    assert config.reward.shape is Shape.CORRECT
