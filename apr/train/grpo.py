"""Reinforcement learning over whole trees of threads: sample, reward, compare, update.

The paper's second stage (Pan et al., 2504.15466, section 3.3): GRPO in which parent and child
threads are trained together on the reward of the final answer. Knows neither the engine that
samples nor the task that grades: rollouts, judge and validation are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apr.config import check_least
from apr.errors import ConfigError, EngineError, OutOfTime
from apr.models.llama import Llama
from apr.trace import Trace
from apr.train.advantage import Advantage, Credit, Rollout, differ, thread_advantages
from apr.train.attention import packed_attention
from apr.train.compute import Autocast, Compute, compute_on
from apr.train.log import open_log
from apr.train.loss import LossConfig, policy_terms, token_weight
from apr.train.optim import Kind, OptimConfig, make_optimizers, rate, set_rate
from apr.train.reward import RewardConfig
from apr.train.rollouts import Judge, Sample, TokenBatch, rollouts_of, token_batches
from apr.train.state import load_state, save_state
from apr.train.world import World

Sampler = Callable[[Sequence[int]], list[list[Trace]]]
"""Problem numbers in, one group of traces for each out, sampled with the weights as they are."""


@dataclass(frozen=True, slots=True)
class GRPOConfig:
    """Settings of reinforcement learning; the defaults are the paper's (section 4.1)."""

    steps: int = 150
    """Batches of rollouts."""
    prompts: int = 64
    """Problems of a batch."""
    group: int = 5
    """Rollouts of a problem."""
    inner_steps: int = 2
    """Updates of the weights on each batch."""
    advantage: Advantage = Advantage.GRPO
    credit: Credit = Credit.ROOT
    own_weight: float = 0.5
    """Weight of a child's own advantage, for ``mixed`` credit."""
    rounds: int = 1
    """Most rounds of sampling for one batch. With more than 1, problems whose rollouts all earned
    the same are dropped and others sampled, until ``prompts`` or more remain (DAPO's dynamic
    sampling). None that was sampled is thrown away, so a batch can be larger."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(kind=Kind.ADAMW, lr=1e-5, warmup=0, decay=0.0)
    )
    micro_tokens: int = 8_192
    """Most tokens in one pass of the network; more are split, with the same gradient."""
    precision: Autocast = Autocast.AUTO
    validate_every: int = 25
    save_every: int = 5
    """Steps between states to resume from."""

    def __post_init__(self) -> None:
        check_least(
            1,
            steps=self.steps,
            prompts=self.prompts,
            inner_steps=self.inner_steps,
            rounds=self.rounds,
            micro_tokens=self.micro_tokens,
            validate_every=self.validate_every,
            save_every=self.save_every,
        )
        check_least(2, group=self.group)
        if not 0 <= self.own_weight <= 1:
            raise ConfigError(f"own_weight is between 0 and 1, not {self.own_weight}")


class Gathered(NamedTuple):
    """The rollouts of one step, of this process."""

    kept: list[list[Rollout]]  # groups to train on
    seen: list[Rollout]  # all that were sampled
    num_problems: int  # problems posed, over all processes
    num_failed: int  # traces that the world cut short


def train_grpo(
    model: Llama,
    sample: Sampler,
    config: GRPOConfig,
    run: Path,
    validate: Callable[[], Mapping[str, float]] = dict,
    judge: Judge | None = None,
    progress: bool = True,
    world: World | None = None,
    compute: Compute | None = None,
    deadline: float = inf,
) -> None:
    """Train ``model`` in place, going on from the state in ``run`` if there is one.

    Args:
        validate: metrics of the weights as they are; called by the first process before the first
            step, every ``validate_every`` steps, and after the last.
        judge: what each thread was worth by itself; needed for credit other than ``root``.
        world: the processes that train together; each samples its share of the problems, and all
            see the same folder ``run``.
        compute: how the network is run; by default as ``config`` says.
        deadline: when to stop, on the clock of ``time.monotonic``; at least one step is made.

    Raises:
        CheckpointError: the state in ``run`` is damaged or of another model.
        ConfigError: credit is to be given by the thread, and there is no judge.
        EngineError: the engine failed in every rollout of a step.
        OutOfTime: the deadline came before the end. The same call goes on from there.
    """
    if judge is None and config.credit is not Credit.ROOT:
        raise ConfigError(
            f"credit {config.credit.value!r} needs a judge of threads: hand one in, "
            f"or give credit by {Credit.ROOT.value!r}"
        )
    world = world or World()
    device = next(model.parameters()).device
    compute = compute or compute_on(device, config.precision.dtype)
    reference = _reference(model) if config.loss.kl else None
    optimizers = make_optimizers(model, config.optim)
    facts = load_state(run, model, optimizers, world)
    clock = _Clock()
    bar = tqdm(total=config.steps, desc="grpo", disable=not (progress and world.is_first))
    # A run without a state starts before step 0, at which it is validated.
    with open_log(run, -1 if facts is None else facts["step"], world) as log, bar:
        if facts is None:
            facts = {"step": 0, "problems": 0}
            log.write(0, _valid(validate, clock, world), clock.lap())
        bar.update(facts["step"])
        for step in range(facts["step"], config.steps):
            share = rate(step, config.steps, config.optim)
            set_rate(optimizers, share)
            with clock("rollout"):
                gathered = _gather(sample, config, step, facts["problems"], judge, world)
            samples = _samples(gathered.kept, config, world)
            batches = list(token_batches(samples, config.micro_tokens, compute.device))
            with clock("reference"):
                references = [_reference_logprobs(reference, b, compute) for b in batches]
            with clock("update"):
                metrics = _update(model, optimizers, batches, references, config, world, compute)
            metrics |= _figures(gathered, world)
            facts = {"step": step + 1, "problems": facts["problems"] + gathered.num_problems}
            last = step + 1 == config.steps
            # All processes stop where one is out of time.
            expired = any(world.totals([time.monotonic() >= deadline]))
            if last or (step + 1) % config.validate_every == 0:
                metrics |= _valid(validate, clock, world)
            log.write(step + 1, {**metrics, "lr_share": share}, clock.lap())
            bar.set_postfix(
                reward=f"{metrics['reward']:.3f}", accuracy=f"{metrics['accuracy']:.3f}"
            )
            bar.update()
            if last or expired or (step + 1) % config.save_every == 0:
                with clock("save"):
                    save_state(run, model, optimizers, facts, world)
            if expired and not last:
                raise OutOfTime(step + 1, config.steps)


def _gather(
    sample: Sampler,
    config: GRPOConfig,
    step: int,
    first: int,
    judge: Judge | None,
    world: World,
) -> Gathered:
    """Sample problems from number ``first`` on, this process its share of each round."""
    kept: list[list[Rollout]] = []
    seen: list[Rollout] = []
    num_failed = num_problems = 0
    for _ in range(config.rounds):
        start = first + num_problems
        numbers = range(start + world.rank, start + config.prompts, world.size)
        groups = sample(numbers)
        rewarded = [rollouts_of(group, config.reward, step, judge) for group in groups]
        num_problems += config.prompts
        num_failed += sum(map(len, groups)) - sum(map(len, rewarded))
        seen += [rollout for group in rewarded for rollout in group]
        kept += [g for g in rewarded if len(g) > 1 and (config.rounds == 1 or _teaches(g, config))]
        if world.totals([len(kept)])[0] >= config.prompts:
            break
    if not world.totals([len(seen)])[0]:
        raise EngineError("the engine failed in every rollout of a step: see the traces' errors")
    return Gathered(kept, seen, num_problems, num_failed)


def _teaches(group: Sequence[Rollout], config: GRPOConfig) -> bool:
    """Whether any of its threads has an advantage: with credit of their own, children may."""
    mixed = _is_mixed(group)
    if mixed or config.credit is Credit.ROOT:
        return mixed
    found = thread_advantages(group, config.advantage, config.credit, config.own_weight)
    return any(advantage != 0 for advantages_H in found for advantage in advantages_H)


def _is_mixed(group: Sequence[Rollout]) -> bool:
    return differ([rollout.reward for rollout in group])


def _samples(groups: Sequence[list[Rollout]], config: GRPOConfig, world: World) -> list[Sample]:
    """Training sequences of ``groups`` with what their tokens are worth.

    Those that no term of the loss depends on are left out; they count in its divisor all the same.
    """
    rollouts = [r for group in groups for r in group]
    num_rollouts, num_tokens = world.totals(
        [len(rollouts), sum(r.trace.total_tokens for r in rollouts)]
    )
    samples = []
    for group in groups:
        advantages_GH = thread_advantages(group, config.advantage, config.credit, config.own_weight)
        for rollout, advantages_H in zip(group, advantages_GH, strict=True):
            weight = token_weight(
                config.loss.aggregation,
                config.loss.divisor,
                max(1, rollout.trace.total_tokens),
                int(num_rollouts),
                max(1, int(num_tokens)),
            )
            for sequence in rollout.trace.training_sequences():
                advantage = advantages_H[sequence.thread]
                if advantage or config.loss.kl:
                    samples.append(Sample(sequence, advantage, weight))
    return samples


def _update(
    model: Llama,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[TokenBatch],
    references: Sequence[Tensor | None],
    config: GRPOConfig,
    world: World,
    compute: Compute,
) -> dict[str, float]:
    """``inner_steps`` updates of the weights on one batch of rollouts; what they did."""
    parameters = list(model.parameters())
    # As the first pass finds them, the weights are those that sampled.
    olds: list[Tensor] = []
    zero = torch.zeros((), dtype=torch.float64, device=compute.device)
    sums = dict.fromkeys(("loss", "kl", "clipped", "entropy", "mismatch", "num"), zero)
    norm = torch.zeros(())
    model.train()
    for inner in range(config.inner_steps):
        for i, (batch, reference_N) in enumerate(zip(batches, references, strict=True)):
            new_N, entropy_N = token_logprobs(model, batch, compute)
            if inner == 0:
                olds.append(new_N.detach())
                mismatch = (olds[i] - batch.engine_N).abs().sum()
                for name, value in (("mismatch", mismatch), ("entropy", entropy_N.sum())):
                    sums[name] = sums[name] + value.double()
                sums["num"] = sums["num"] + len(new_N)
            terms = policy_terms(
                new_N,
                olds[i],
                batch.engine_N,
                reference_N,
                batch.advantages_N,
                batch.weights_N,
                config.loss,
            )
            terms.loss.backward()  # type: ignore[no-untyped-call]
            for name, value in (("loss", terms.loss), ("kl", terms.kl), ("clipped", terms.clipped)):
                sums[name] = sums[name] + value.detach().double() / config.inner_steps
        world.add_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, config.optim.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    totals = dict(zip(sums, world.totals(torch.stack([*sums.values()]).tolist()), strict=True))
    num = max(1, totals["num"])
    return {
        "loss": totals["loss"],
        "kl": totals["kl"],
        "clip_fraction": totals["clipped"] / num,
        "entropy": totals["entropy"] / num,
        "mismatch": totals["mismatch"] / num,
        "trained_tokens": totals["num"],
        "grad_norm": norm.item(),
    }


def token_logprobs(
    model: Llama, batch: TokenBatch, compute: Compute | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each of the N sampled tokens, and the entropy it was drawn at, in nats."""
    compute = compute or compute_on(batch.ids_T.device)
    attend = packed_attention(batch.segments_T[None], compute.device, compute.kernel)
    with compute.autocast():
        hidden_TD = model(batch.ids_T, batch.positions_T, attend)
        logits_UV = model.logits(hidden_TD[batch.before_U])
    # In bfloat16 a log-probability has two digits.
    logits_UV = logits_UV.to(torch.promote_types(logits_UV.dtype, torch.float32))
    logprobs_UV = logits_UV.log_softmax(-1)
    with torch.no_grad():
        entropy_U = -(logprobs_UV.exp() * logprobs_UV).sum(-1)
    sampled_U = batch.ids_T[batch.before_U + 1]
    logprobs_U = logprobs_UV.gather(1, sampled_U[:, None])[:, 0]
    return logprobs_U[batch.place_N], entropy_U[batch.place_N]


def _figures(gathered: Gathered, world: World) -> dict[str, float]:
    """What the rollouts of a step reached and cost, over all processes."""
    traces = [r.trace for r in gathered.seen]
    sums = {
        "reward": sum(r.reward for r in gathered.seen),
        "accuracy": sum(t.is_correct for t in traces),
        "total_tokens": sum(t.total_tokens for t in traces),
        "sequential_tokens": sum(t.sequential_tokens for t in traces),
        "children": sum(t.num_children for t in traces),
        "calls": sum(len(thread.calls) for t in traces for thread in t.threads),
    }
    counts = {
        "rollouts": len(traces),
        "failed_rollouts": gathered.num_failed,
        "groups": len(gathered.kept),
        "mixed_groups": sum(map(_is_mixed, gathered.kept)),
    }
    values = world.totals([*sums.values(), *counts.values()])
    sums = dict(zip(sums, values, strict=False))
    counts = dict(zip(counts, map(int, values[len(sums) :]), strict=True))
    tokens = sums["total_tokens"]
    means = {name: value / counts["rollouts"] for name, value in sums.items()}
    means["tokens_per_call"] = tokens / max(1.0, sums["calls"])
    return means | counts | {"tokens": tokens, "problems": gathered.num_problems}


def _reference(model: Llama) -> Llama:
    """A copy of ``model`` that stays as it is."""
    weight = model.embed_tokens.weight
    copied = Llama(model.config).to(weight.device, weight.dtype)
    copied.load_state_dict(model.state_dict())
    return copied.requires_grad_(False).eval()


@torch.no_grad()
def _reference_logprobs(
    reference: Llama | None, batch: TokenBatch, compute: Compute
) -> Tensor | None:
    return None if reference is None else token_logprobs(reference, batch, compute)[0]


def _valid(
    validate: Callable[[], Mapping[str, float]], clock: _Clock, world: World
) -> dict[str, float]:
    if not world.is_first:
        return {}
    with clock("validate"):
        return {f"valid_{name}": value for name, value in validate().items()}


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def lap(self) -> dict[str, float]:
        """Seconds of each phase and of all since the last lap, and start another."""
        now = time.perf_counter()
        lap = {f"seconds_{phase}": seconds for phase, seconds in self._seconds.items()}
        lap["seconds"] = now - self._start
        self._start, self._seconds = now, {}
        return lap
