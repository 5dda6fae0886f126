"""What a finished trace is worth: correctness, and terms for what it cost or how parallel it was.

Costs are taken from correct traces only: a wrong answer is worth nothing however cheap it was, and
a short wrong one must never beat a long right one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from apr.config import check_least
from apr.errors import ConfigError
from apr.trace import End, Trace


class Shape(StrEnum):
    """What is added to correctness."""

    CORRECT = "correct"
    """Nothing (paper, section 3.3)."""
    COST = "cost"
    """1[correct] (1 - min(most, sum of price x amount)), see ``Prices``."""
    THREADWEAVER = "threadweaver"
    """1[correct] (1 + factor min(1 - sequential / total tokens, cap)) (2512.07843)."""
    PARL = "parl"
    """1[correct] + spawned [any child] + finished (share of children that joined) (2602.02276).
    Wrong traces are paid these, too: they are for the start, and to be annealed."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a correct trace gives up, for ``Shape.COST``."""

    total_tokens: float = 0.0
    """Per 1,000 sampled tokens, over all threads."""
    sequential_tokens: float = 0.0
    """Per 1,000 tokens on the critical path."""
    children: float = 0.0
    """Per thread spawned."""
    most: float = 0.5
    """The most that cost may take of a correct trace's 1."""

    def __post_init__(self) -> None:
        check_least(
            0,
            total_tokens=self.total_tokens,
            sequential_tokens=self.sequential_tokens,
            children=self.children,
        )
        if not 0 <= self.most < 1:
            raise ConfigError(f"most is from 0 up to below 1, not {self.most}")


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """How traces are rewarded."""

    shape: Shape = Shape.CORRECT
    prices: Prices = field(default_factory=Prices)
    factor: float = 0.5
    """ThreadWeaver's factor on the share of tokens that ran beside the critical path."""
    cap: float = 0.2
    """ThreadWeaver's cap on that share."""
    spawned: float = 0.1
    """PARL's bonus for spawning at all, against collapse into serial search."""
    finished: float = 0.1
    """PARL's bonus for children that come back, against spawning for its own sake."""
    anneal: int = 0
    """Steps over which everything but correctness fades out, linearly; 0 keeps it. PARL's bonuses
    are earned without solving anything, and where nothing else is, they are all that is learnt."""

    def __post_init__(self) -> None:
        check_least(
            0,
            factor=self.factor,
            cap=self.cap,
            spawned=self.spawned,
            finished=self.finished,
            anneal=self.anneal,
        )

    def strength(self, step: int) -> float:
        """Share of the terms beside correctness that is left at ``step``, counted from 0."""
        return max(0.0, 1 - step / self.anneal) if self.anneal else 1.0


def reward(trace: Trace, config: RewardConfig, step: int = 0) -> float:
    """The reward of a trace that has a grade, at training step ``step``."""
    assert trace.grade is not None, "a trace that the world cut short has no reward"
    correct, strength = float(trace.grade.correct), config.strength(step)
    match config.shape:
        case Shape.CORRECT:
            return correct
        case Shape.COST:
            return correct * (1 - strength * _cost(trace, config.prices))
        case Shape.THREADWEAVER:
            saved = trace.total_tokens - trace.sequential_tokens
            beside = saved / max(1, trace.total_tokens)
            return correct * (1 + strength * config.factor * min(beside, config.cap))
        case Shape.PARL:
            spawned = config.spawned * (trace.num_children > 0)
            return correct + strength * (spawned + config.finished * _finished(trace))


def _cost(trace: Trace, prices: Prices) -> float:
    cost = (
        prices.total_tokens * trace.total_tokens / 1000
        + prices.sequential_tokens * trace.sequential_tokens / 1000
        + prices.children * trace.num_children
    )
    return min(prices.most, cost)


def _finished(trace: Trace) -> float:
    """Of the children that nobody cancelled the share that joined; 0 where there are none."""
    ends = [t.end for t in trace.threads[1:] if t.end is not End.CANCELLED]
    return ends.count(End.JOINED) / max(1, len(ends))
