"""How figures look: one colour for each kind of method, grey for the paper, labels at the lines.

Colours are those of Okabe and Ito (2008), which people who see fewer colours can tell apart. In the
page they are CSS variables, so that one drawing is readable on a light and on a dark ground.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import offset_copy

from apr.eval.bootstrap import Estimate, Floats
from apr.eval.metrics import Interval
from apr.eval.points import Family, Point
from apr.files import new_file

INK, MUTED, LINE, PAPER, GROUND = "#1c1c1c", "#5f5f5f", "#dddddd", "#7d7d7d", "#fefefe"

COLOURS = {
    Family.THREADS: "#0072b2",
    Family.SERIAL: "#d55e00",
    Family.CONS: "#b0568f",
    Family.PASS: "#b8860b",
    Family.BEST: "#8c6d31",
    Family.TREE: "#00805e",
    Family.AGENTS: "#3d8fc4",
    Family.PASTA: "#4b4b8f",
    Family.HOGWILD: "#7a2e2e",
}
_DARK = {
    Family.THREADS: "#56b4e9",
    Family.SERIAL: "#ff8c3b",
    Family.CONS: "#e08fc0",
    Family.PASS: "#e6c229",
    Family.BEST: "#cfae6b",
    Family.TREE: "#2fc295",
    Family.AGENTS: "#9ad1f5",
    Family.PASTA: "#a3a3e8",
    Family.HOGWILD: "#d98c8c",
}
_GROUNDS = {  # name: (as drawn, light, dark)
    "ink": (INK, "#1c1c1c", "#e8e8e6"),
    "muted": (MUTED, "#5f5f5f", "#a9a9a5"),
    "line": (LINE, "#dddddd", "#3a3d42"),
    "paper": (PAPER, "#7d7d7d", "#9b9b9b"),
    "ground": (GROUND, "#fefefe", "#17191c"),
}
BEHIND: Any = {"facecolor": GROUND, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
"""What text over lines stands on."""
_RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.9,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",
}


class Number(NamedTuple):
    """A number that stands in the report."""

    label: str
    value: str
    command: str


@dataclass(frozen=True)
class Drawn:
    """A figure, or what is missing for it."""

    name: str
    """Of its files."""
    title: str
    caption: str
    figure: Figure | None
    """None where results are missing; the caption says which."""
    numbers: Sequence[Number] = ()


def not_drawn(name: str, title: str, missing: Sequence[str]) -> Drawn:
    """What stands in the place of a figure that lacks ``missing``."""
    return Drawn(name, title, f"Missing: {'; '.join(missing)}.", None)


@contextmanager
def drawing() -> Iterator[None]:
    """Figures made in the body look like those of this report."""
    with mpl.rc_context(_RC):
        yield


def colour(point: Point) -> str:
    return COLOURS[point.family]


def face(point: Point) -> str:
    """Fill of its marker: hollow for a model before reinforcement learning, and for samples."""
    return colour(point) if is_rl(point) else GROUND


def is_rl(point: Point) -> bool:
    """Whether its model stands for one after reinforcement learning."""
    return point.cell.stands_for.endswith("RL")


def css_variables() -> tuple[str, str]:
    """Declarations of the colours, on a light and on a dark ground."""
    light = [f"--{_name(f)}: {c}" for f, c in COLOURS.items()]
    dark = [f"--{_name(f)}: {c}" for f, c in _DARK.items()]
    light += [f"--{name}: {c}" for name, (_, c, _) in _GROUNDS.items()]
    dark += [f"--{name}: {c}" for name, (_, _, c) in _GROUNDS.items()]
    return "; ".join(light), "; ".join(dark)


def save(drawn: Drawn, folder: Path) -> None:
    """Write the figure as SVG and PNG.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    assert drawn.figure is not None
    for kind in ("svg", "png"):
        with new_file(folder / f"{drawn.name}.{kind}") as tmp, drawing():
            options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
            drawn.figure.savefig(tmp, format=kind, dpi=160, facecolor="white", **options)


def inline_svg(drawn: Drawn) -> str:
    """The figure as an SVG element that takes its colours from the page."""
    assert drawn.figure is not None
    buffer = io.StringIO()
    with drawing(), mpl.rc_context({"svg.hashsalt": drawn.name}):
        drawn.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    said = rf'\1 role="img" aria-label="{drawn.title}"'
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', said, svg, count=1)
    # Ids are unique within a drawing and are to be so within the page.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{drawn.name}-", svg)
    named = {c: _name(f) for f, c in COLOURS.items()}
    named |= {drawn_as: name for name, (drawn_as, _, _) in _GROUNDS.items()}
    for hex_code, name in named.items():
        svg = re.sub(hex_code, f"var(--{name})", svg, flags=re.IGNORECASE)
    return svg


def say(ax: Axes, text: str) -> None:
    """Write ``text`` where there is nothing to draw."""
    ax.set_axis_off()
    ax.text(0, 0.5, text, color=PAPER)


def percent(axis: Any) -> None:
    """Ticks of shares as percentages."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))


def thousands(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def share(value: float, interval: Interval | None = None) -> str:
    """A share as text, with its interval where it has one; – for nan."""
    if isnan(value):
        return "–"
    text = f"{100 * value:.1f} %"
    return text if interval is None else f"{text} ({span(interval)})"


def points(difference: Estimate) -> str:
    """A difference of shares as text, in percentage points; – for nan."""
    if isnan(difference.value):
        return "–"
    low, high = difference.interval
    return f"{100 * difference.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def bars(estimates: Sequence[Estimate]) -> Floats:
    """Lengths below and above each estimate, (2, number of them), as ``errorbar`` takes them."""
    # An interval no wider than its value may miss it by rounding.
    below = [max(0.0, e.value - e.interval.low) for e in estimates]
    above = [max(0.0, e.interval.high - e.value) for e in estimates]
    return np.array([below, above])


def span(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def label_ends(
    ax: Axes, labels: Sequence[tuple[float, float, str, str]], gap: float = 0.06
) -> None:
    """Write each label (x, y, text, colour) right of its point, none over another or out of the
    axes.

    Args:
        gap: least distance between two labels, as a share of the height.
    """
    left, right = ax.get_xlim()
    low, high = ax.get_ylim()
    least = gap * (high - low)
    room = Interval(low + least / 2, high - least / 2)
    heights = _apart([label[:2] for label in labels], 0.35 * (right - left), least, room)
    beside = offset_copy(ax.transData, fig=ax.get_figure(root=True), x=9, units="points")
    for (x, _, text, color), y in zip(labels, heights, strict=True):
        ax.text(
            x, y, text, color=color, va="center", fontsize=9.5, transform=beside, bbox=BEHIND
        ).set_zorder(5)


def _apart(
    points: Sequence[tuple[float, float]], width: float, least: float, room: Interval
) -> list[float]:
    """Heights of ``points`` within ``room``, those within ``width`` of each other ``least`` apart
    as far as there is room."""
    order = sorted(range(len(points)), key=lambda i: points[i][1])
    near = [(i, j) for i, j in combinations(order, 2) if abs(points[i][0] - points[j][0]) < width]
    heights = [y for _, y in points]
    for _ in range(200):
        for below, above in near:
            overlap = max(0.0, least - (heights[above] - heights[below]))
            heights[below] -= overlap / 2
            heights[above] += overlap / 2
        heights = [min(max(y, room.low), room.high) for y in heights]
    return heights


def _name(family: Family) -> str:
    return "c-" + re.sub(r"\W+", "-", family.value)
