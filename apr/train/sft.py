"""Supervised training on demonstrations: packed sequences, loss on demonstrated tokens only.

The paper's first stage (Pan et al., 2504.15466, section 3.2). Knows tokens, not tasks: data,
tokenizer and the classes of tokens to watch are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from apr.data.packing import IGNORE, Batch, PackedBatches
from apr.models.attention import packed_attention
from apr.models.llama import Llama
from apr.train.log import MetricsLog
from apr.train.optim import OptimConfig, make_optimizers, rate, set_rate
from apr.train.state import load_state, save_state


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
    """Batches whose gradients make one update."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval_every: int = 500
    """Steps between held-out losses."""
    eval_batches: int = 8
    save_every: int = 500
    """Steps between states to resume from."""


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
    watched: Mapping[str, Sequence[int]],
    progress: bool = True,
    after_eval: Callable[[int], Mapping[str, float]] | None = None,
    weights: Mapping[int, float] | None = None,
) -> Losses:
    """Train ``model`` in place, going on from the state in ``run`` if there is one.

    Args:
        watched: classes of token ids whose loss is reported apart.
        after_eval: further metrics to log at each evaluation, from the step number.
        weights: weight in the loss that is trained on, by token id, where it is not 1; losses that
            are reported are never weighted.

    Returns:
        the held-out losses at the end.

    Raises:
        CheckpointError: the state in ``run`` is damaged or of another model.
    """
    device = next(model.parameters()).device
    optimizers = make_optimizers(model, config.optim)
    facts = load_state(run, model, optimizers) or {"step": 0, "tokens": 0}
    weights_V = _weights_of(model, weights or {}).to(device)
    parameters = list(model.parameters())
    losses = Losses(float("nan"), {}, {})
    bar = tqdm(total=config.steps, initial=facts["step"], desc="sft", disable=not progress)
    with MetricsLog(run, facts["step"]) as log, bar:
        for step in range(facts["step"], config.steps):
            start = time.perf_counter()
            set_rate(optimizers, share := rate(step, config.steps, config.optim))
            micro = step * config.accumulate
            batches = [train.batch(micro + i).to(device) for i in range(config.accumulate)]
            # One divisor for the update, so that accumulation changes nothing but memory.
            num_learnt = sum(int((b.targets_BT != IGNORE).sum()) for b in batches)
            total = torch.zeros((), device=device)
            model.train()
            for batch in batches:
                loss = token_losses(model, batch)
                weighted = (loss * weights_V[_targets(batch)]).sum() / num_learnt
                weighted.backward()  # type: ignore[no-untyped-call]
                total += loss.detach().sum() / num_learnt
            norm = nn.utils.clip_grad_norm_(parameters, config.optim.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            facts = {"step": step + 1, "tokens": facts["tokens"] + num_learnt}
            metrics = {
                "loss": total.item(),
                "grad_norm": norm.item(),
                "lr_share": share,
                "tokens": facts["tokens"],
            }
            seconds = time.perf_counter() - start
            last = step + 1 == config.steps
            if last or (step + 1) % config.eval_every == 0:
                losses = evaluate(model, held_out, config.eval_batches, watched)
                metrics |= _flat(losses)
                metrics |= after_eval(step + 1) if after_eval else {}
            log.write(step + 1, metrics, {"tokens_per_second": num_learnt / seconds})
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", held_out=f"{losses.mean:.4f}")
            bar.update()
            if last or (step + 1) % config.save_every == 0:
                save_state(run, model, optimizers, facts)
    if losses.mean != losses.mean:  # Resumed after the last step: nothing was left to train.
        losses = evaluate(model, held_out, config.eval_batches, watched)
    return losses


def token_losses(model: Llama, batch: Batch) -> Tensor:
    """Cross entropy of each of the B*T positions, 0 where nothing is to be learnt."""
    attend = packed_attention(batch.segments_BT)
    hidden = model(batch.ids_BT.flatten(), batch.positions_BT.flatten(), attend)
    logits = model.logits(hidden).float()
    return F.cross_entropy(
        logits, batch.targets_BT.flatten(), ignore_index=IGNORE, reduction="none"
    )


def _targets(batch: Batch) -> Tensor:
    """Target of each of the B*T positions as an index, any where nothing is to be learnt."""
    return batch.targets_BT.flatten().clamp(min=0)


def _weights_of(model: Llama, weights: Mapping[int, float]) -> Tensor:
    """Weight of each of the V tokens in the loss."""
    weights_V = torch.ones(model.config.vocab_size)
    for id, weight in weights.items():
        weights_V[id] = weight
    return weights_V


@torch.no_grad()
def evaluate(
    model: Llama,
    batches: PackedBatches,
    num_batches: int,
    watched: Mapping[str, Sequence[int]],
) -> Losses:
    """Mean loss over the first ``num_batches`` batches, whole and by class of token."""
    model.eval()
    device = next(model.parameters()).device
    losses, targets = [], []
    for i in range(min(num_batches, batches.per_epoch)):
        batch = batches.batch(i).to(device)
        losses.append(token_losses(model, batch))
        targets.append(batch.targets_BT.flatten())
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
