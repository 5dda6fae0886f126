"""All points of a grid, and how figures and tables find theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apr.eval.paper import Setting
from apr.eval.points import Family, Point


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
