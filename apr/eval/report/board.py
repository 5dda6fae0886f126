"""All points of a grid, and how figures and tables find theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from apr.eval.paper import Setting
from apr.eval.points import Family, Point

_METHODS = {
    Family.SERIAL: "method serial",
    Family.THREADS: "method apr",
    Family.CONS: "method best_of_n, whose samples cons@n and pass@n are read off",
}


class Wanted(NamedTuple):
    """What a figure is drawn of."""

    settings: tuple[Setting, ...]  # for one of which a model stands
    family: Family
    temperature: float

    def __str__(self) -> str:
        *others, last = self.settings
        names = f"{', '.join(others)} or {last}" if others else last
        how = f"at temperature {self.temperature:g} with {_METHODS[self.family]}"
        return f"a model that stands for {names}, {how}"


@dataclass(frozen=True)
class Board:
    """What there is to draw."""

    points: Sequence[Point]
    alone: Sequence[Point]
    """Those measured one problem at a time."""

    def pick(
        self, settings: Sequence[Setting], families: Sequence[Family], temperature: float
    ) -> list[Point]:
        """Points of models that stand for ``settings``, smallest budget first, none limited in
        context and none that failed throughout."""
        return sorted(_matching(self.points, settings, families, temperature), key=_size)

    def pick_alone(
        self, settings: Sequence[Setting], families: Sequence[Family], temperature: float
    ) -> list[Point]:
        """As ``pick``, of those measured one problem at a time."""
        return sorted(_matching(self.alone, settings, families, temperature), key=_size)

    def one(self, setting: Setting, family: Family, temperature: float) -> Point | None:
        """The first such point with the largest budget."""
        found = self.pick([setting], [family], temperature)
        return found[-1] if found else None

    def missing(self, wanted: Sequence[Wanted]) -> list[str]:
        """Those of ``wanted`` that there are no points of, in words."""
        return [
            str(each)
            for each in wanted
            if not self.pick(each.settings, [each.family], each.temperature)
        ]

    def baseline(self, temperature: float) -> Point | None:
        """One serial run of the supervised model: what others are compared with."""
        return self.one(Setting.SERIAL, Family.SERIAL, temperature)


def _matching(
    points: Sequence[Point],
    settings: Sequence[Setting],
    families: Sequence[Family],
    temperature: float,
) -> list[Point]:
    return [
        p
        for p in points
        if p.cell.stands_for in settings
        and p.family in families
        and p.cell.temperature == temperature
        and p.cell.context is None
        and p.is_known
    ]


def _size(point: Point) -> float:
    return point.size
