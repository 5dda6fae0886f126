"""Supervised training on demonstrations: packed sequences, loss on demonstrated tokens only.

The paper's first stage (Pan et al., 2504.15466, section 3.2). Knows tokens, not tasks: data,
tokenizer and the classes of tokens to watch are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from apr.config import check_least
from apr.data.packing import IGNORE, Batch, PackedBatches, Place
from apr.errors import ConfigError, OutOfTime
from apr.models.llama import Attend, Llama
from apr.train.compute import Autocast, Compute, Inputs, compute_on
from apr.train.log import MetricsLog, NoLog, open_log
from apr.train.optim import OptimConfig, make_optimizers, rate, set_rate
from apr.train.state import load_state, save_state
from apr.train.world import World


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """Settings of supervised training."""

    steps: int
    """Updates of the weights."""
    rows: int = 16
    """Rows of a batch."""
    row_length: int = 256
    """Tokens of a row; the longest sequence must fit."""
    accumulate: int = 1
    """Batches whose gradients make one update. The processes of ``torchrun`` share them, so that
    their number changes nothing but the time."""
    precision: Autocast = Autocast.AUTO
    heard_weight: float = 1.0
    """Weight in the loss of what a thread writes once it has heard its children. It is what becomes
    of all their work, and one token in twenty of a root's."""
    spawn_weight: float = 1.0
    """Weight in the loss of what a thread writes until it has spawned children, for the first time:
    the state that it starts from, and which parts it asks for. Where the state is wrong all below
    it is in vain, and what is left out nobody finds."""
    message_weight: float = 1.0
    """Weight in the loss of what any other thread joins with. It is all that is left of its work,
    and most threads that are trained on join with nothing."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval_every: int = 500
    """Steps between held-out losses."""
    eval_batches: int = 8
    save_every: int = 500
    """Steps between states to resume from."""

    def __post_init__(self) -> None:
        check_least(
            1,
            steps=self.steps,
            rows=self.rows,
            row_length=self.row_length,
            accumulate=self.accumulate,
            eval_every=self.eval_every,
            eval_batches=self.eval_batches,
            save_every=self.save_every,
        )
        check_least(
            0,
            heard_weight=self.heard_weight,
            spawn_weight=self.spawn_weight,
            message_weight=self.message_weight,
        )


class Losses(NamedTuple):
    """Held-out loss, nats per token."""

    mean: float
    by_class: dict[str, float]  # mean loss of each watched class of tokens
    shares: dict[str, float]  # its share of the whole loss


def train_sft(
    model: Llama,
    train: PackedBatches,
    held_out: PackedBatches,
    config: SFTConfig,
    run: Path,
    watched: Mapping[str, Sequence[int]] = MappingProxyType({}),
    progress: bool = True,
    after_eval: Callable[[int], Mapping[str, float]] | None = None,
    weights: Mapping[int, float] | None = None,
    compute: Compute | None = None,
    deadline: float = inf,
    world: World | None = None,
) -> Losses:
    """Train ``model`` in place, going on from the state in ``run`` if there is one.

    Args:
        watched: classes of token ids whose loss is reported apart.
        after_eval: further metrics to log at each evaluation, from the step number.
        weights: weight in the loss that is trained on, by token id, where it is not 1; losses that
            are reported are never weighted.
        compute: how the network is run; by default as ``config`` says.
        deadline: when to stop, on the clock of ``time.monotonic``; at least one step is made.
        world: the processes that train together; all see the same folder ``run``.

    Returns:
        the held-out losses at the end.

    Raises:
        CheckpointError: the state in ``run`` is damaged or of another model.
        ConfigError: the processes cannot share the batches of an update.
        OutOfTime: the deadline came before the end. The same call goes on from there.
    """
    world = world or World()
    if config.accumulate % world.size:
        raise ConfigError(
            f"{world.size} processes cannot share the {config.accumulate} batches of an update: "
            f"set sft.accumulate to a multiple of {world.size}"
        )
    device = next(model.parameters()).device
    compute = compute or compute_on(device, config.precision.dtype)
    optimizers = make_optimizers(model, config.optim)
    facts = load_state(run, model, optimizers, world) or {"step": 0, "tokens": 0}
    update = _Update(model, optimizers, config, _weights_of(model, weights or {}), compute, world)
    losses = Losses(float("nan"), {}, {})
    shown = progress and world.is_first
    bar = tqdm(total=config.steps, initial=facts["step"], desc="sft", disable=not shown)
    feed = compute.feed(train, facts["step"] * config.accumulate + world.rank, world.size)
    with open_log(run, facts["step"], world) as log, bar, closing(feed):
        pending = _Pending(log)
        for step in range(facts["step"], config.steps):
            pending.start()
            share = rate(step, config.steps, config.optim)
            done = update(feed, share)
            facts = {"step": step + 1, "tokens": facts["tokens"] + done.num_learnt}
            metrics = {"loss": done.loss, "grad_norm": done.norm, "lr_share": share}
            pending.add(facts["step"], {**metrics, "tokens": facts["tokens"]}, done.num_learnt)
            last = facts["step"] == config.steps
            # All processes stop where one is out of time.
            expired = any(world.totals([time.monotonic() >= deadline]))
            evaluates = last or facts["step"] % config.eval_every == 0
            saves = last or expired or facts["step"] % config.save_every == 0
            if evaluates or saves or len(pending) >= compute.settle_every:
                bar.set_postfix(loss=f"{pending.settle():.4f}", held_out=f"{losses.mean:.4f}")
            if evaluates:
                losses = evaluate(model, held_out, config.eval_batches, watched, compute)
                pending.extend(_flat(losses))
                pending.extend(after_eval(facts["step"]) if after_eval else {})
            pending.write()
            bar.update()
            if saves:
                save_state(run, model, optimizers, facts, world)
            if expired and not last:
                raise OutOfTime(facts["step"], config.steps)
    if losses.mean != losses.mean:  # Resumed after the last step: nothing was left to train.
        losses = evaluate(model, held_out, config.eval_batches, watched, compute)
    return losses


class _Updated(NamedTuple):
    """What an update did; the tensors may still be on their way."""

    loss: Tensor  # mean over the tokens learnt, unweighted
    norm: Tensor  # of the gradient, before it was clipped
    num_learnt: int


class _Update:
    """One update of the weights from the next batches."""

    def __init__(
        self,
        model: Llama,
        optimizers: Sequence[Optimizer],
        config: SFTConfig,
        weights_V: Tensor,
        compute: Compute,
        world: World,
    ) -> None:
        self.model, self.optimizers, self.config = model, optimizers, config
        self.weights_V = weights_V.to(compute.device)
        self.weights_P = _place_weights(config).to(compute.device)
        self.compute, self.world = compute, world
        self.parameters = list(model.parameters())

    def __call__(self, feed: Iterator[Inputs], share: float) -> _Updated:
        set_rate(self.optimizers, share)
        batches = [next(feed) for _ in range(self.config.accumulate // self.world.size)]
        # One divisor for the update, so that accumulation changes nothing but memory.
        (num_learnt,) = map(int, self.world.totals([sum(b.num_learnt for b in batches)]))
        divisor = max(1, num_learnt)  # a batch may hold nothing but prompts that were cut off
        total = torch.zeros((), device=self.compute.device)
        self.model.train()
        for inputs in batches:
            loss_N = _losses(self.model, inputs, self.compute)
            weighted = (loss_N * self._weights(inputs)).sum() / divisor
            weighted.backward()  # type: ignore[no-untyped-call]
            total += loss_N.detach().sum() / divisor
        self.world.add_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return _Updated(self.world.add(total), norm, num_learnt)

    def _weights(self, inputs: Inputs) -> Tensor:
        """[N] of each target in the loss: of its token, times that of where it stands."""
        weights_N = self.weights_V[inputs.targets_N.clamp(min=0)]
        return weights_N * self.weights_P[inputs.places_N]


class _Pending:
    """Lines of the log whose figures may still be on the device.

    Fetching a figure makes the host wait for the device, which then waits for the host: so those of
    several steps are fetched together.
    """

    def __init__(self, log: MetricsLog | NoLog) -> None:
        self._log = log
        self._lines: list[tuple[int, dict[str, Any]]] = []
        self._timings: dict[str, float] = {}
        self._num_learnt = 0
        self._start: float | None = None

    def __len__(self) -> int:
        return len(self._lines)

    def start(self) -> None:
        """The clock runs, if it does not yet."""
        self._start = self._start or time.perf_counter()

    def add(self, step: int, metrics: dict[str, Any], num_learnt: int) -> None:
        self._lines.append((step, metrics))
        self._num_learnt += num_learnt

    def settle(self) -> float:
        """Wait for all figures, and stop the clock; the last loss."""
        assert self._start is not None
        for _, metrics in self._lines:
            metrics |= {name: _number(value) for name, value in metrics.items()}
        seconds = time.perf_counter() - self._start
        self._timings = {"tokens_per_second": self._num_learnt / seconds}
        return float(self._lines[-1][1]["loss"])

    def extend(self, metrics: Mapping[str, float]) -> None:
        """Add to the last line."""
        self._lines[-1][1].update(metrics)

    def write(self) -> None:
        """Write the lines, if they are settled."""
        if not self._timings:
            return
        for step, metrics in self._lines:
            self._log.write(step, metrics, self._timings)
        self._lines, self._timings, self._num_learnt, self._start = [], {}, 0, None


def _number(value: float | Tensor) -> float:
    return value.item() if isinstance(value, Tensor) else value


def token_losses(model: Llama, batch: Batch) -> Tensor:
    """Cross entropy of each of the B*T positions, 0 where nothing is to be learnt."""
    compute = compute_on(next(model.parameters()).device)
    return _losses(model, compute.inputs(batch), compute)


def _losses(model: Llama, inputs: Inputs, compute: Compute) -> Tensor:
    with compute.autocast():
        run = _compiled() if compute.compiled else _cross_entropy
        return run(model, inputs.ids_N, inputs.targets_N, inputs.positions_N, inputs.attend)


def _cross_entropy(
    model: Llama, ids_N: Tensor, targets_N: Tensor, positions_N: Tensor, attend: Attend
) -> Tensor:
    hidden = model(ids_N, positions_N, attend)
    logits = model.logits(hidden).float()
    return F.cross_entropy(logits, targets_N, ignore_index=IGNORE, reduction="none")


@cache
def _compiled() -> Callable[..., Tensor]:
    """One program for the whole network: its shapes are the same for every batch."""
    compiled: Callable[..., Tensor] = torch.compile(_cross_entropy, dynamic=False)
    return compiled


def _weights_of(model: Llama, weights: Mapping[int, float]) -> Tensor:
    """Weight of each of the V tokens in the loss."""
    weights_V = torch.ones(model.config.vocab_size)
    for id, weight in weights.items():
        weights_V[id] = weight
    return weights_V


def _place_weights(config: SFTConfig) -> Tensor:
    """Weight of each of the P places in the loss."""
    weights = {
        Place.SEARCH: 1.0,
        Place.SPAWN: config.spawn_weight,
        Place.JOIN: config.message_weight,
        Place.HEARD: config.heard_weight,
    }
    return torch.tensor([weights[place] for place in Place])


@torch.no_grad()
def evaluate(
    model: Llama,
    batches: PackedBatches,
    num_batches: int,
    watched: Mapping[str, Sequence[int]],
    compute: Compute | None = None,
) -> Losses:
    """Mean loss over the first ``num_batches`` batches, whole and by class of token."""
    model.eval()
    device = next(model.parameters()).device
    compute = compute or compute_on(device)
    losses, targets = [], []
    for i in range(min(num_batches, batches.per_epoch)):
        inputs = compute.inputs(batches.batch(i))
        losses.append(_losses(model, inputs, compute))
        targets.append(inputs.targets_N)
    loss, target = torch.cat(losses).double(), torch.cat(targets)
    whole = loss.sum().item()
    by_class, shares = {}, {}
    for name, ids in watched.items():
        here = loss[torch.isin(target, torch.tensor(list(ids), device=device))]
        by_class[name] = here.mean().item() if len(here) else 0.0
        shares[name] = here.sum().item() / whole
    return Losses(whole / (target != IGNORE).sum().item(), by_class, shares)


def _flat(losses: Losses) -> dict[str, float]:
    flat = {"held_out_loss": losses.mean}
    flat |= {f"held_out_loss_{name}": v for name, v in losses.by_class.items()}
    return flat | {f"share_{name}": v for name, v in losses.shares.items()}
