"""Accuracy against time: the paper's figure 6."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apr.eval import paper
from apr.eval.paper import Setting
from apr.eval.points import Family, Point
from apr.eval.report import style
from apr.eval.report.board import Board, Wanted
from apr.eval.report.scaling import band, cumulative
from apr.eval.report.style import PAPER, Drawn, Number, not_drawn

_SETTINGS = (Setting.SERIAL, Setting.SERIAL_RL, Setting.THREADS, Setting.THREADS_RL)
_FAMILIES = (Family.SERIAL, Family.THREADS)
_WANTED = [Wanted(_SETTINGS, family, 0.0) for family in _FAMILIES]
_NAMES = {Setting.SERIAL: "SoS+", Setting.THREADS: "APR"}


def figure_6(board: Board) -> Drawn:
    """Share of problems solved within so many sequential tokens, and within so many seconds."""
    name, title = "figure-6", "Figure 6: accuracy against latency, greedy"
    if missing := board.missing(_WANTED):
        return not_drawn(name, title, missing)
    points = board.pick(_SETTINGS, _FAMILIES, 0.0)
    loaded = [p for p in points if p.cell.concurrency > 1]
    alone = board.pick_alone(_SETTINGS, _FAMILIES, 0.0)
    figure = Figure((9.2, 6.8), layout="constrained")
    (tokens, clock), (load, theirs) = figure.subplots(2, 2)
    _draw_within(tokens, points, "sequential_tokens", "in sequence", "sequential tokens")
    _draw_paper(theirs)
    if alone:
        _draw_within(clock, alone, "wall_clock", "one problem at a time", "seconds")
    else:
        style.say(clock, "one problem at a time: not run yet\n(concurrency = 1)")
    if loaded:
        together = f"{loaded[0].cell.concurrency} problems at a time"
        _draw_within(load, loaded, "wall_clock", together, "seconds")
    else:
        style.say(load, "many problems at a time: not run yet")
    caption = (
        "Share of problems solved with at most so many tokens on the critical path, or so many "
        "seconds of wall clock from the first call to the last; bands are 95 % intervals of one "
        "run. Hollow: supervised, filled: after reinforcement learning. Threads of a problem are "
        "decoded together in one batch, so how much of what they save in sequence they save on the "
        "clock hangs on what a larger batch costs the machine; the paper had a GPU for each of "
        "eight threads."
    )
    numbers = [
        Number(
            p.label,
            f"{style.share(*p.accuracy)}, {p.mean('sequential_tokens'):,.0f} in sequence, "
            f"{p.mean('wall_clock'):.2f} s {'alone' if p.cell.concurrency == 1 else 'under load'}",
            p.command,
        )
        for p in [*loaded, *alone]
    ]
    return Drawn(name, title, caption, figure, numbers)


def _draw_within(ax: Axes, points: Sequence[Point], column: str, title: str, unit: str) -> None:
    observed = np.concatenate([seed[column] for p in points for seed in p.seeds])
    amounts = np.unique(np.append(observed[~np.isnan(observed)], 0.0))
    most = float(amounts[-1])
    labels = []
    for p in points:
        color, line = style.colour(p), "-" if style.is_rl(p) else "--"
        solved = cumulative(p, column, amounts)
        low, high = band(solved, p)
        ax.fill_between(
            amounts, low, high, solved > 0, step="post", color=color, alpha=0.08, linewidth=0
        )
        ax.plot(amounts, solved, line, drawstyle="steps-post", color=color)
        end, face = (most, float(solved[-1])), style.face(p)
        ax.plot(*end, "o", color=color, markerfacecolor=face, clip_on=False, zorder=4)
        labels.append((*end, p.series, color))
    ax.set_title(title)
    ax.set_xlim(0, most * 1.5)
    ax.set_ylim(0, 1)
    ax.set_xlabel(unit)
    style.percent(ax.yaxis)
    style.label_ends(ax, labels, gap=0.08)


def _draw_paper(ax: Axes) -> None:
    for setting, accuracy in paper.LATENCY_ACCURACY.items():
        ax.plot([paper.LATENCY_SECONDS], [accuracy], "D", color=PAPER, markersize=7)
        ax.annotate(
            f"{_NAMES[setting]} {100 * accuracy:.1f} %",
            (paper.LATENCY_SECONDS, accuracy),
            (-10, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=PAPER,
        )
    ax.set_title("paper, at about 5 s on eight GPUs", color=PAPER)
    ax.set_xlim(0, 7.5)
    ax.set_ylim(0, 1)
    ax.set_xlabel("seconds")
    style.percent(ax.yaxis)
