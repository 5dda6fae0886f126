"""From rewards to advantages: within a group, and from the group to each of its threads.

A rollout is one tree of threads with one reward. The paper gives that reward to every thread of the
tree. Where a task can tell what a child thread's own work was worth, a child can be compared with
those that were given the same message instead.

Axis suffixes: ``_G`` rollout of a group, ``_H`` thread of a rollout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from apr.trace import Trace
from apr.types import Ids


class Advantage(StrEnum):
    """How a return is compared with the others of its group."""

    GRPO = "grpo"
    """(r - mean) / std, the group's standard deviation (2402.03300; the paper's)."""
    MEAN_ONLY = "mean_only"
    """r - mean: groups that nearly always succeed are not blown up (2503.20783, 2512.07843)."""
    LEAVE_ONE_OUT = "leave_one_out"
    """r - mean of the others, which does not depend on r (RLOO, 2402.14740)."""


class Credit(StrEnum):
    """Whose return a child thread's tokens are trained on."""

    ROOT = "root"
    """The reward of the whole tree (the paper's)."""
    THREAD = "thread"
    """The child's own, compared with children of the group that started from the same prompt."""
    MIXED = "mixed"
    """A weighted sum of the two advantages."""


class Rollout(NamedTuple):
    """A sampled trace and what it earned."""

    trace: Trace
    reward: float
    own_H: tuple[float | None, ...]  # each thread's own return; None where nobody can tell


def differ(returns_G: Sequence[float]) -> bool:
    """Whether the group says anything; what differs by rounding alone must not be scaled up."""
    return len(returns_G) > 1 and max(returns_G) - min(returns_G) > 1e-9


def advantages(returns_G: Sequence[float], kind: Advantage) -> list[float]:
    """Each return compared with the group; all 0 where the group says nothing."""
    num = len(returns_G)
    if not differ(returns_G):
        return [0.0] * num
    mean = sum(returns_G) / num
    if kind is Advantage.LEAVE_ONE_OUT:
        scale = num / (num - 1)
    elif kind is Advantage.GRPO:
        scale = 1 / math.sqrt(sum((r - mean) ** 2 for r in returns_G) / num)
    else:
        scale = 1.0
    return [(r - mean) * scale for r in returns_G]


def thread_advantages(
    group_G: Sequence[Rollout], kind: Advantage, credit: Credit, weight: float = 0.5
) -> list[list[float]]:
    """The advantage of each thread of each rollout of one problem.

    Args:
        weight: of the child's own advantage, for ``Credit.MIXED``.

    Returns:
        advantages_GH. A root's is always that of its reward, and so is that of a child whose own
        return is not known.
    """
    root_G = advantages([r.reward for r in group_G], kind)
    own_share = {Credit.ROOT: 0.0, Credit.THREAD: 1.0, Credit.MIXED: weight}[credit]
    whole_GH = [[a] * len(r.trace.threads) for a, r in zip(root_G, group_G, strict=True)]
    if own_share == 0:
        return whole_GH
    for (g, h), own in _own_advantages(group_G, kind).items():
        whole_GH[g][h] = (1 - own_share) * root_G[g] + own_share * own
    return whole_GH


def _own_advantages(group_G: Sequence[Rollout], kind: Advantage) -> dict[tuple[int, int], float]:
    """Of each child with a return of its own, by its place: against those with the same prompt.

    A prompt is all that a child sees, so children with one prompt started from one state (the
    anchors of GiGPO, 2505.10978). Whoever has no equal has nothing to be compared with: 0.
    """
    places: dict[Ids, list[tuple[int, int]]] = {}
    returns: dict[Ids, list[float]] = {}
    for g, rollout in enumerate(group_G):
        for thread, own in zip(rollout.trace.threads[1:], rollout.own_H[1:], strict=True):
            if own is not None and thread.calls:
                prompt_ids = thread.calls[0].prompt_ids
                places.setdefault(prompt_ids, []).append((g, thread.index))
                returns.setdefault(prompt_ids, []).append(own)
    return {
        place: advantage
        for prompt_ids, where in places.items()
        for place, advantage in zip(where, advantages(returns[prompt_ids], kind), strict=True)
    }
