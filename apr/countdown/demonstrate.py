"""From an index to a demonstration: draw a problem, search it, tell the search.

Picklable and a function of the index alone, so that workers on any machine make the same shards.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from apr.config import check_least
from apr.countdown import compact, narrate, narrate_paper
from apr.countdown.balance import balances
from apr.countdown.narrate import Telling, Text, check_telling
from apr.countdown.problem import Problem, ProblemSpec, Split, first_problem
from apr.countdown.solver import Mode, Order, Search, SearchConfig, search, start_of
from apr.errors import ConfigError
from apr.types import Demonstration


class Condition(StrEnum):
    """Which budget stands before the prompt (paper, section 4.1)."""

    NONE = "none"
    CHILDREN = "children"
    """The number of child threads the demonstration has (for APR). Where a root spawns in rounds,
    those of a round: how many rounds it takes nobody knows beforehand."""
    WINDOW = "window"
    """The context bin that its longest sequence falls into (for SoS+)."""


NARRATORS: dict[Text, Callable[..., Demonstration]] = {
    Text.COMPACT: narrate.narrate,
    Text.WHOLE: partial(narrate.narrate, message=compact.whole_message),
    Text.PAPER: narrate_paper.narrate,
}
"""What tells a search in each text."""


def _of_a_round(found: Search) -> int:
    """How many children the root spawns first."""
    return next((len(v.successors) for v in found.visits if v.mode is Mode.SPAWN), 0)


def _repeats(posed: Problem) -> bool:
    return len(set(posed.numbers)) < len(posed.numbers)


def _meets(posed: Problem) -> bool:
    """Whether products on both sides solve it."""
    numbers = start_of(posed).numbers
    return any(b.path is not None for b in balances(numbers, posed.target))


_KINDS: dict[str, Callable[[Problem], bool]] = {"repeated": _repeats, "balanced": _meets}
"""Kinds of problems that shares of the demonstrations are drawn of, the cheapest to tell first."""


@dataclass(frozen=True, slots=True)
class Demonstrate:
    """Demonstration ``index`` of an endless series.

    Its tokens are counted in pieces: the tokens of the tokenizer made for its text, as long as that
    has a token for every number met.
    """

    problems: ProblemSpec = field(default_factory=ProblemSpec)
    solver: SearchConfig = field(default_factory=SearchConfig)
    text: Text = Text.COMPACT
    telling: Telling = Telling.THREADS
    condition: Condition = Condition.NONE
    bin: int = 512
    """Width of a context bin in tokens (paper: 512)."""
    dead_ends: float = 1.0
    """Share of the sequences without success, other than the root's first, that are kept to learn
    from. Most children fail, all alike: fewer of them, and a hit is met more often. Figures of
    the demonstration count them all."""
    most_dead_ends: int = 0
    """Most of them that are kept of each depth of the tree, 0 all: where threads spawn threads,
    nearly all are leaves, and a share of all leaves few of the others to learn from."""
    false_claims: float = 0.05
    """Chance that a child that found nothing is heard to claim a path all the same, so that its
    parent learns to tell; where all are heard, in the weighed and the numbered telling."""
    rests: bool = False
    """Whether a thread says of each division whether it leaves a rest: where it searches on from a
    state in its place, where it spawns or a beam chooses beforehand. Otherwise it has to know that
    before it writes either number, and what it leaves out nobody finds."""
    balanced: float = 0.0
    """Share of the demonstrations that balance whatever a child found, which then goes unheard, and
    whose problems are drawn until products on both sides meet: what is rarely needed, and then
    found by one comparison in hundreds, is met often enough to be learnt."""
    repeated: float = 0.0
    """Share of the demonstrations whose problems are drawn until a number stands twice. Its pairs
    with the others are listed once, which is learnt late where few problems are of that kind."""
    seed: int = 0
    split: Split = Split.TRAIN

    def __post_init__(self) -> None:
        check_telling(self.text, self.telling)
        for name in ("dead_ends", "false_claims", "balanced", "repeated"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        if self.solver.rounds != 1 and self.text == Text.PAPER:
            raise ConfigError("the paper text tells of one spawn: leave rounds at 1")
        self._check_balances()
        self._check_rests()
        final, high = self.solver.max_final, self.problems.target_high
        if 0 < final < high:
            raise ConfigError(
                f"max_final {final} leaves out targets, which go up to {high}: raise it"
            )
        if self.bin < 1:
            raise ConfigError(f"bin is the width of a context bin in tokens, not {self.bin}")
        check_least(0, most_dead_ends=self.most_dead_ends)

    def _check_balances(self) -> None:
        if self.solver.balances and self.text == Text.PAPER:
            raise ConfigError("the paper text tells no balances: tell them in the compact text")
        if self.balanced and not self.solver.balances:
            raise ConfigError("balanced is a share of searches that balance: set solver.balances")
        if self.balanced and self.telling in (Telling.SERIAL, Telling.PASTA):
            raise ConfigError(
                f"in the {self.telling} telling nothing goes unheard: leave balanced at 0"
            )

    def _check_rests(self) -> None:
        if not self.rests:
            return
        if self.text == Text.PAPER:
            raise ConfigError("the paper text tells no rests: tell them in the compact text")
        if self.solver.order == Order.SHUFFLED:
            raise ConfigError("rests are told one after another: leave order at fixed or heuristic")

    def __call__(self, index: int) -> Demonstration:
        wanted = {name: holds for name, holds in _KINDS.items() if self._draws(name, index)}
        posed = self._posed(index, wanted)
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        found = search(posed, self.solver, rng, unheard="balanced" in wanted)
        return self._thin(self._tell(posed, found, index), rng)

    def _draws(self, kind: str, index: int) -> bool:
        share: float = getattr(self, kind)
        coin = random.Random(f"{kind}/{self.seed}/{self.split}/{index}")
        return coin.random() < share

    def _posed(self, index: int, wanted: dict[str, Callable[[Problem], bool]]) -> Problem:
        """The first problem of all the kinds ``wanted``, of a series that begins at ``index``."""
        kinds = " and ".join(wanted)
        return first_problem(
            self.problems,
            self.seed,
            index,
            self.split,
            lambda posed: all(holds(posed) for holds in wanted.values()),
            kind=f"{kinds}: leave {kinds} at 0",
        )

    def _tell(self, posed: Problem, found: Search, index: int) -> Demonstration:
        tell = partial(NARRATORS[self.text], posed, found, self.telling)
        if self.rests:
            tell = partial(tell, rests=True)
        if self.telling.weighs:
            seed = f"claims/{self.seed}/{self.split}/{index}"
            tell = partial(tell, false_claims=self.false_claims, seed=seed)
        if self.condition is Condition.CHILDREN:
            many = self.solver.rounds != 1
            return tell(children=_of_a_round(found) if many else tell().num_children)
        if self.condition is Condition.WINDOW:
            return tell(window=self._bin_of(tell(window=self.bin)))
        return tell()

    def _thin(self, told: Demonstration, rng: random.Random) -> Demonstration:
        if self.dead_ends >= 1 and not self.most_dead_ends:
            return told
        kept = [
            n == 0 or good or rng.random() < self.dead_ends for n, good in enumerate(told.succeeded)
        ]
        if self.most_dead_ends:
            self._cap(told, kept, rng)
        return told.only(kept)

    def _cap(self, told: Demonstration, kept: list[bool], rng: random.Random) -> None:
        """Leave out of ``kept`` what is too many of one depth."""
        for depth in set(told.depths):
            vain = [
                n
                for n in range(1, len(kept))
                if kept[n] and told.depths[n] == depth and not told.succeeded[n]
            ]
            for n in rng.sample(vain, max(0, len(vain) - self.most_dead_ends)):
                kept[n] = False

    def _bin_of(self, told: Demonstration) -> int:
        longest = max(sum(len(s.pieces) for s in sequence) for sequence in told.sequences)
        return -(-longest // self.bin) * self.bin
