"""What cells amount to: one point for each method, budget, model and temperature.

Cells that differ by nothing but the seed are one point. A cell whose method draws several samples
is also a curve: cons@n and pass@n for every n up to the number drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from itertools import groupby

import numpy as np

from apr.eval.bootstrap import Estimate, Floats, bootstrap, difference
from apr.eval.cell import Cell, Results
from apr.eval.metrics import wilson
from apr.eval.samples import Sample, Spent, cons_n, pass_n


class Family(StrEnum):
    """Methods that are drawn in one colour."""

    THREADS = "threads"
    SERIAL = "serial"
    PASTA = "pasta"
    CONS = "cons@n"
    PASS = "pass@n"
    BEST = "best of n"
    AGENTS = "agents"
    TREE = "tree of thoughts"
    HOGWILD = "hogwild"


FAMILIES = {
    "apr": Family.THREADS,
    "serial": Family.SERIAL,
    "pasta": Family.PASTA,
    "self_consistency": Family.CONS,
    "best_of_n": Family.BEST,
    "multi_agent": Family.AGENTS,
    "tree_of_thoughts": Family.TREE,
    "hogwild": Family.HOGWILD,
}
"""Of each method, by its name in ``Inference``."""
_BY_SAMPLES = (Family.CONS, Family.PASS)
_OF_SAMPLES = (*_BY_SAMPLES, Family.BEST, Family.AGENTS)


@dataclass(frozen=True, eq=False)
class Point:
    """One method of one model with one budget, on problems in their order."""

    cell: Cell
    """What it is read off; of several seeds, the first."""
    family: Family
    method: str
    """With what tells it from its own kind."""
    budget: str
    """What of it was set: "3 children", "n = 5"; empty where nothing was."""
    size: float
    """The budget as a number; orders the points of a curve."""
    command: str
    scores_P: Floats
    """Share of seeds or choices for which a problem was solved; nan where the world failed all."""
    columns: dict[str, Floats]
    """Means over seeds of each problem's figures, where the method was run itself."""
    seeds: tuple[dict[str, Floats], ...] = field(default=(), repr=False)
    """The figures of each seed by itself, where the method was run itself and the world let it."""
    num_seeds: int = 1
    num_failed: int = 0
    goodput: float | None = None
    """Correct answers a second under load, where the method was run itself."""
    alone_P: Floats | None = field(default=None, repr=False)
    """Seconds of each problem with nothing beside it, where that was measured."""

    @property
    def label(self) -> str:
        """Model, method and budget in a few words."""
        return f"{self.series}, {self.budget}" if self.budget else self.series

    @property
    def series(self) -> str:
        """Model and method: what the points of a curve share."""
        return ", ".join(filter(None, [self.cell.model, self._named, self.otherwise]))

    @property
    def _named(self) -> str:
        """The method, where it is not what its model is for; its budget stands elsewhere."""
        how = self.cell.inference
        if self.family is Family.BEST:
            return f"{self.family} ({how['chooser']})"
        if self.family is Family.HOGWILD:
            return f"{self.family} ({how['taken']})"
        if self.family in (Family.CONS, Family.PASS, Family.AGENTS):
            return self.family
        return "" if self.method in (self._usual, "pasta") else self.method

    @property
    def _usual(self) -> str:
        return "serial" if self.cell.stands_for.startswith("SoS") else "apr"

    @property
    def otherwise(self) -> str:
        """What tells it from what its model does by itself: whether samples spawn, and what else
        was set."""
        within, parts = str(self.cell.inference["within"]), []
        if self.family in _OF_SAMPLES and within != self._usual:
            parts = ["spawning" if within == "apr" else "not spawning"]
        # Of these the number of samples is the budget, and a curve for each of the others.
        parts += _set(self.cell) if self.family in _BY_SAMPLES else []
        return ", ".join(filter(None, [*parts, self.cell.besides]))

    @property
    def size_set(self) -> tuple[int | None, int | None, int | None]:
        """What was set of it: children, window, context."""
        return self.cell.children, self.cell.window, self.cell.context

    @property
    def needs_verifier(self) -> bool:
        """Whether it takes the grader to know which sample to take: an upper bound."""
        return self.family is Family.PASS or self.method.endswith("oracle")

    @property
    def is_known(self) -> bool:
        """Whether the world let it solve or miss any problem."""
        return not np.isnan(self.scores_P).all()

    @cached_property
    def accuracy(self) -> Estimate:
        """Wilson's interval where each problem was tried once, otherwise that of the bootstrap."""
        scores = self.scores_P[~np.isnan(self.scores_P)]
        if len(scores) and np.isin(scores, (0.0, 1.0)).all():
            return Estimate(float(scores.mean()), wilson(int(scores.sum()), len(scores)))
        return bootstrap(self.scores_P)

    def mean(self, column: str) -> float:
        """Mean over problems; nan where it is not known."""
        values = self.columns.get(column)
        if values is None or np.isnan(values).all():
            return np.nan
        return float(np.nanmean(values))

    @property
    def alone(self) -> float:
        """Mean seconds of a problem with nothing beside it; nan where not measured."""
        known = self.alone_P is not None and not np.isnan(self.alone_P).all()
        return float(np.nanmean(self.alone_P)) if known and self.alone_P is not None else np.nan

    def over(self, other: Point) -> Estimate | None:
        """By how much more of the same problems it solves; None where problems differ."""
        if self.cell.problems != other.cell.problems:
            return None
        return difference(self.scores_P, other.scores_P)


def points_of(results: Iterable[Results]) -> list[Point]:
    """All points that can be read off ``results``; cells measured alone are clocks of others, and
    points where there is no other."""
    groups = _by_setting(list(results))
    alone = {_alone_key(g[0].cell): g for g in groups if g[0].cell.concurrency == 1}
    loaded = {_alone_key(g[0].cell) for g in groups if g[0].cell.concurrency > 1}
    shown = [g for g in groups if g[0].cell.concurrency > 1 or _alone_key(g[0].cell) not in loaded]
    points: list[Point] = []
    widest = _widest(shown)
    for group in shown:
        cell = group[0].cell
        drawn = _point(group, alone.get(_alone_key(cell)))
        points.append(drawn)
        if widest.get(_source(cell)) is group:
            points += _curve(group, drawn, Family.CONS, cons_n)
            points += _curve(group, drawn, Family.PASS, pass_n)
    return points


def _widest(groups: Sequence[list[Results]]) -> dict[str, list[Results]]:
    """Of each source of samples, whoever drew most of them first: others say nothing new of cons
    and pass."""
    found: dict[str, list[Results]] = {}
    for group in groups:
        cell = group[0].cell
        if not cell.draws or not all(r.samples for r in group):
            continue
        best = found.setdefault(_source(cell), group)
        if cell.inference["samples"] > best[0].cell.inference["samples"]:
            found[_source(cell)] = group
    return found


def alone_points(results: Iterable[Results]) -> list[Point]:
    """Points of the cells that were measured one problem at a time."""
    groups = _by_setting([r for r in results if r.cell.concurrency == 1])
    return [_point(group, group) for group in groups]


def curves(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by series, in the order in which each first comes, its budgets from small to large."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.series, []).append(point)
    return {name: sorted(series, key=lambda p: p.size) for name, series in found.items()}


def within(points: Sequence[Point], column: str, amount: float) -> Point | None:
    """Of the points of one series, the largest budget whose mean ``column`` is at most ``amount``:
    the one with most total tokens; None where even the smallest spends more."""
    affordable = [p for p in points if p.mean(column) <= amount]
    return max(affordable, key=lambda p: p.mean("total_tokens"), default=None)


def _setting(cell: Cell) -> str:
    """All that tells points apart: everything but the seed."""
    return repr([_alone_key(cell), cell.problems, cell.concurrency])


def _alone_key(cell: Cell) -> str:
    """What a cell shares with the one that measures it alone, perhaps on fewer problems."""
    how = {k: v for k, v in cell.inference.items() if k != "seed"}
    return repr([cell.model, cell.fingerprint, cell.engine, how])


def _source(cell: Cell) -> str:
    """What cells share that draw the same samples: whoever chooses among them, and how many."""
    apart = ("method", "chooser", "samples", "seed")
    how = {k: v for k, v in cell.inference.items() if k not in apart}
    return repr([cell.model, cell.fingerprint, cell.engine, cell.problems, how])


def _by_setting(results: list[Results]) -> list[list[Results]]:
    order = {_setting(r.cell): i for i, r in reversed(list(enumerate(results)))}
    results = sorted(results, key=lambda r: order[_setting(r.cell)])
    return [list(group) for _, group in groupby(results, key=lambda r: _setting(r.cell))]


def _point(group: list[Results], alone: list[Results] | None) -> Point:
    cell = group[0].cell
    columns = {
        name: _mean_over_seeds([r.columns[name] for r in group]) for name in group[0].columns
    }
    clocks = None if alone is None else [r.columns["wall_clock"] for r in alone]
    num_correct = sum(float(np.nansum(r.columns["correct"])) for r in group)
    seconds = sum(r.seconds for r in group)
    return Point(
        cell=cell,
        family=_family(cell),
        method=cell.method,
        budget=_budget(cell),
        size=_size(cell, columns["total_tokens"]),
        command=cell.command,
        scores_P=columns["correct"],
        columns=columns,
        seeds=tuple(r.columns for r in group if not np.isnan(r.columns["correct"]).all()),
        num_seeds=len(group),
        num_failed=sum(r.num_failed for r in group),
        goodput=num_correct / seconds if seconds and cell.concurrency > 1 else None,
        alone_P=None if clocks is None else _mean_over_seeds(clocks),
    )


def _family(cell: Cell) -> Family:
    how = cell.inference
    if how["method"] == "best_of_n" and how["chooser"] == "oracle":
        return Family.PASS
    return FAMILIES[how["method"]]


def _budget(cell: Cell) -> str:
    parts = [] if _family(cell) in _BY_SAMPLES else _set(cell)
    if _family(cell) in (Family.CONS, Family.PASS, Family.BEST, Family.AGENTS, Family.HOGWILD):
        parts.append(f"n = {cell.inference['samples']}")
    return ", ".join(parts)


def _set(cell: Cell) -> list[str]:
    """What was set of a run, in words."""
    parts = []
    if cell.children is not None:
        parts.append(f"{cell.children} {'child' if cell.children == 1 else 'children'}")
    if cell.window is not None:
        parts.append(f"window {cell.window:,}")
    if cell.context is not None:
        parts.append(f"context {cell.context:,}")
    return parts


def _size(cell: Cell, total_tokens_P: Floats) -> float:
    given = next((n for n in (cell.children, cell.window, cell.context) if n is not None), None)
    if _family(cell) in _BY_SAMPLES:
        return float(cell.inference["samples"])
    if given is not None or np.isnan(total_tokens_P).all():
        return float(given or 0)
    return float(np.nanmean(total_tokens_P))


def _mean_over_seeds(columns: list[Floats]) -> Floats:
    stacked = np.stack(columns)
    counts = (~np.isnan(stacked)).sum(axis=0)
    return np.where(counts, np.nansum(stacked, axis=0) / np.maximum(counts, 1), np.nan)


def _curve(
    group: list[Results],
    drawn: Point,
    family: Family,
    spend: Callable[[Sequence[Sample], int], Spent],
) -> list[Point]:
    """cons@n or pass@n for every n that was drawn; ``drawn`` is the method that drew them."""
    most = min(1 + max(s.sample for s in r.samples) for r in group)
    points = [_estimated(group, family, spend, n) for n in range(1, most + 1)]
    # To draw all samples and choose otherwise among them takes as long.
    seconds = sum(r.seconds for r in group)
    num_correct = len(group) * float(np.nansum(points[-1].scores_P))
    points[-1] = replace(
        points[-1],
        columns=drawn.columns | points[-1].columns,
        goodput=None if drawn.goodput is None else num_correct / seconds,
        alone_P=drawn.alone_P,
    )
    return points


def _estimated(
    group: list[Results], family: Family, spend: Callable[[Sequence[Sample], int], Spent], n: int
) -> Point:
    cell, num_problems = group[0].cell, len(group[0].columns["index"])
    spent_S = np.full((len(group), num_problems, 3), np.nan)
    for seed, results in enumerate(group):
        for index, samples in groupby(results.samples, key=lambda s: s.problem):
            spent_S[seed, index] = spend(list(samples), n)
    score, total, sequential = (_mean_over_seeds(list(spent_S[..., i])) for i in range(3))
    kind = "cons" if family is Family.CONS else "pass"
    return Point(
        cell=cell,
        family=family,
        method=f"{kind}@{n}",
        budget=f"n = {n}",
        size=n,
        command=cell.draws[kind].replace("{n}", str(n)),
        scores_P=score,
        columns={
            "total_tokens": total,
            "sequential_tokens": sequential,
            "parallelism": total / sequential,
        },
        num_seeds=len(group),
        num_failed=sum(r.num_failed for r in group),
    )
