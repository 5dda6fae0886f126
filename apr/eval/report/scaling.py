"""Accuracy against what was spent: the paper's figures 4a, 4b and 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apr.eval import paper
from apr.eval.bootstrap import Floats
from apr.eval.metrics import wilson
from apr.eval.paper import Setting
from apr.eval.points import Family, Point, curves
from apr.eval.report import style
from apr.eval.report.board import Board, Wanted
from apr.eval.report.style import PAPER, Drawn, Number, not_drawn

_THREADS = (Setting.CHILDREN, Setting.CHILDREN_RL, Setting.THREADS, Setting.THREADS_RL)


def figure_4a(board: Board) -> Drawn:
    """Accuracy against total tokens at temperature 1."""
    name, title = "figure-4a", "Figure 4a: accuracy against total tokens, temperature 1"
    if missing := board.missing(_spending_wanted(1.0)):
        return not_drawn(name, title, missing)
    points = _spending_points(board, 1.0)
    figure = Figure((9.2, 4.4), layout="constrained")
    ours, theirs = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_spending(ours, points, "here")
    _draw_paper_spending(theirs)
    caption = (
        "Numbers at the ends of curves say how many children the model was asked for; diamonds: it "
        "decided by itself. Hollow: supervised, filled: after reinforcement learning. cons@n and "
        "pass@n are estimated from the same samples of each problem, over all choices of n of "
        "them. pass@n takes a verifier to know which sample is right: an upper bound. "
        "Bars are 95 % intervals over problems, left out for pass@n, which are much like those of "
        "cons@n. The upper axis counts in tokens of one serial sample. Of the paper's curves only "
        "the points named in its text are drawn, joined by dashes; that of its single sample and "
        "the cheaper point of APR are worked out from them."
    )
    return Drawn(name, title, caption, figure, _numbers(points))


def figure_8(board: Board) -> Drawn:
    """Figure 4a at three temperatures."""
    name, title = "figure-8", "Figure 8: accuracy against total tokens, by temperature"
    temperatures = paper.TEMPERATURES[1:]
    missing = {t: board.missing(_spending_wanted(t)) for t in temperatures}
    if all(missing.values()):
        # One temperature is enough: that which lacks least, the paper's main one before others.
        return not_drawn(name, title, min(reversed(missing.values()), key=len))
    points = {t: _spending_points(board, t) for t in temperatures}
    figure = Figure((9.2, 6.6), layout="constrained")
    ours, (theirs, *unused) = figure.subplots(2, 3, height_ratios=[3, 2])
    _draw_by_temperature(ours, points)
    for axes in unused:
        axes.remove()
    _draw_paper_temperatures(theirs)
    _legend_of_series(figure, [p for ps in points.values() for p in ps])
    caption = (
        "As figure 4a. The lower panel has what the paper tabulates by temperature: accuracy of "
        "one run each, with 10 children where the number was set."
    )
    if any(missing.values()):
        left = ", ".join(f"{t:g}" for t in temperatures if missing[t])
        caption += f" Not run yet: temperature {left}."
    return Drawn(name, title, caption, figure, [n for ps in points.values() for n in _numbers(ps)])


def figure_4b(board: Board) -> Drawn:
    """Share of problems solved within a context window, at temperature 1."""
    name, title = "figure-4b", "Figure 4b: solved within a context window, temperature 1"
    if missing := board.missing(_WANTED_4B):
        return not_drawn(name, title, missing)
    serial = board.pick([Setting.SERIAL], [Family.SERIAL], 1.0)
    conditioned = board.pick([Setting.CHILDREN], [Family.THREADS], 1.0)
    threads = _three_of(conditioned) or board.pick([Setting.THREADS], [Family.THREADS], 1.0)
    figure = Figure((9.2, 4.2), layout="constrained")
    ours, theirs = figure.subplots(1, 2, width_ratios=[3, 1.6])
    _draw_windows(ours, serial, threads)
    _draw_leads(theirs, serial[-1], threads)
    caption = (
        "A problem counts at a window if it was solved and no call of it, prompt included, held "
        "more tokens. Bands are 95 % intervals of one run. Right: by how much threads lead at the "
        "largest window, with the paired 95 % interval; grey, what the paper reads off at 4,096 "
        "tokens, there over serial search that was told its window."
    )
    leads = [(p, p.over(serial[-1])) for p in threads]
    numbers = [Number(p.label, style.share(*p.accuracy), p.command) for p in [*serial, *threads]]
    numbers += [
        Number(f"{p.label}, lead", style.points(lead), p.command)
        for p, lead in leads
        if lead is not None
    ]
    return Drawn(name, title, caption, figure, numbers)


_WANTED_4B = [
    Wanted((Setting.CHILDREN, Setting.THREADS), Family.THREADS, 1.0),
    Wanted((Setting.SERIAL,), Family.SERIAL, 1.0),
]


def _spending_wanted(temperature: float) -> list[Wanted]:
    return [
        Wanted(_THREADS, Family.THREADS, temperature),
        Wanted((Setting.SERIAL,), Family.CONS, temperature),
    ]


def _spending_points(board: Board, temperature: float) -> list[Point]:
    threads = board.pick(_THREADS, [Family.THREADS], temperature)
    samples = board.pick([Setting.SERIAL], [Family.CONS, Family.PASS], temperature)
    return threads + samples


def _draw_spending(ax: Axes, points: Sequence[Point], title: str, is_small: bool = False) -> None:
    labels = []
    for series in curves(points).values():
        color, last = style.colour(series[0]), series[-1]
        tokens = [p.mean("total_tokens") for p in series]
        accuracy = [p.accuracy.value for p in series]
        if not last.needs_verifier:
            bars = style.bars([p.accuracy for p in series])
            ax.errorbar(tokens, accuracy, bars, fmt="none", ecolor=color, elinewidth=1, alpha=0.45)
        line, marker = _mark(last)
        ax.plot(
            tokens, accuracy, line, marker=marker, color=color, markerfacecolor=style.face(last)
        )
        if last.family is Family.THREADS and not is_small:
            _name_points(ax, series, color)
        labels.append((tokens[-1], accuracy[-1], last.series, color))
    ax.set_title(title)
    ax.set_xlim(0, max(x for x, *_ in labels) * (1.1 if is_small else 1.4))
    style.percent(ax.yaxis)
    style.thousands(ax.xaxis)
    ax.set_xlabel("total tokens of a problem, mean")
    if not is_small:
        style.label_ends(ax, labels)
    singles = [p for p in points if p.family is Family.CONS and not p.otherwise]
    if singles:
        _relative_axis(ax, singles[0].mean("total_tokens"))


def _draw_by_temperature(axes: Sequence[Axes], points: Mapping[float, Sequence[Point]]) -> None:
    """A panel for each temperature, all of one height."""
    drawn = []
    for ax, (temperature, here) in zip(axes, points.items(), strict=True):
        if here:
            _draw_spending(ax, here, f"here, T = {temperature:g}", is_small=True)
            drawn.append(ax)
        else:
            style.say(ax, f"T = {temperature:g}: not run yet")
    low = min(ax.get_ylim()[0] for ax in drawn)
    high = max(ax.get_ylim()[1] for ax in drawn)
    for ax in drawn:
        ax.set_ylim(low, high)


def _mark(point: Point) -> tuple[str, str]:
    """Line and marker of its curve; threads whose number nobody set are diamonds."""
    if point.family is Family.THREADS and point.cell.children is None:
        return "-", "D"
    samples = {Family.CONS: ("--", "D"), Family.PASS: ("-.", "v")} if point.otherwise else _SAMPLES
    return samples.get(point.family, ("-", "o"))


_SAMPLES = {Family.CONS: ("-", "s"), Family.PASS: (":", "^")}


def _name_points(ax: Axes, series: Sequence[Point], color: str) -> None:
    """The number of children at both ends of a curve."""
    for p in {series[0], series[-1]}:
        if p.cell.children is not None:
            at = (p.mean("total_tokens"), p.accuracy.value)
            ax.annotate(
                str(p.cell.children),
                at,
                (0, 7),
                textcoords="offset points",
                ha="center",
                color=color,
                fontsize=8.5,
            )


def _relative_axis(ax: Axes, one_sample: float) -> None:
    def relative(tokens: Any) -> Any:
        return tokens / one_sample

    def absolute(samples: Any) -> Any:
        return samples * one_sample

    upper = ax.secondary_xaxis("top", functions=(relative, absolute))
    upper.set_xlabel("in serial samples", color=style.MUTED)
    upper.tick_params(labelcolor=style.MUTED)
    upper.spines["top"].set_visible(False)


def _draw_paper_spending(ax: Axes) -> None:
    labels = []
    for name, spent in paper.FIGURE_4A.items():
        x, y = [s.tokens for s in spent], [s.accuracy for s in spent]
        marker = {"threads": "o", "cons@n": "s", "pass@n": "^"}[name]
        ax.plot(x, y, "--", color=PAPER, marker=marker, linewidth=1.3)
        kind = "APR" if name == "threads" else "SoS+"
        labels.append((x[-1], y[-1], f"{kind}, {spent[-1].note}", PAPER))
    ax.set_title("paper", color=PAPER)
    ax.set_xlim(0, 40_000)
    ax.set_ylim(0.4, 0.9)
    ax.set_xticks([0, 10_000, 20_000])
    style.percent(ax.yaxis)
    style.thousands(ax.xaxis)
    ax.set_xlabel("total tokens of a problem")
    style.label_ends(ax, labels)
    _relative_axis(ax, paper.SAMPLE_TOKENS)


def _draw_paper_temperatures(ax: Axes) -> None:
    shown = (
        Setting.CHILDREN,
        Setting.THREADS_RL,
        Setting.THREADS,
        Setting.SERIAL_RL,
        Setting.SERIAL,
    )
    labels = []
    for setting in shown:
        known = paper.ACCURACY[setting]
        ax.plot(list(known), list(known.values()), "--", color=PAPER, marker="o", linewidth=1.3)
        labels.append((1.0, known[1.0], setting.value, PAPER))
    ax.set_title("paper, one run", color=PAPER)
    ax.set_xlim(-0.05, 2.1)
    ax.set_ylim(0.4, 0.9)
    ax.set_xticks([0, 0.5, 1.0])
    ax.set_xlabel("temperature")
    style.percent(ax.yaxis)
    style.label_ends(ax, labels, gap=0.12)


def _legend_of_series(figure: Figure, points: Sequence[Point]) -> None:
    """Names of the curves, in their colours, in the room that the lower row leaves."""
    shapes = {"o": "○●", "D": "◇◆", "s": "□■", "^": "△▲", "v": "▽▼"}
    for i, (name, (point, *_)) in enumerate(curves(points).items()):
        color, height = style.colour(point), 0.33 - 0.045 * i
        shape = shapes[_mark(point)[1]][style.is_rl(point)]
        figure.text(0.42, height, shape, color=color, fontsize=12, va="center")
        figure.text(0.445, height, name, color=color, fontsize=10, va="center")


def _three_of(points: list[Point]) -> list[Point]:
    """The smallest, a middle and the largest budget."""
    return [points[i] for i in sorted({0, len(points) // 2, len(points) - 1})] if points else []


def _draw_windows(ax: Axes, serial: Sequence[Point], threads: Sequence[Point]) -> None:
    everyone = [*serial, *threads]
    widest = max(float(np.nanmax(s["longest_context"])) for p in everyone for s in p.seeds)
    windows = np.arange(0, widest * 1.02 + 1)
    labels = []
    lines = ["-"] * len(serial) + [(":", "--", "-")[i % 3] for i in range(-len(threads), 0)]
    for p, line in zip(everyone, lines, strict=True):
        color = style.colour(p)
        solved_W = cumulative(p, "longest_context", windows)
        low_W, high_W = band(solved_W, p)
        ax.fill_between(
            windows, low_W, high_W, solved_W > 0, step="post", color=color, alpha=0.1, linewidth=0
        )
        ax.plot(windows, solved_W, line, drawstyle="steps-post", color=color)
        labels.append((float(windows[-1]), float(solved_W[-1]), p.budget or p.series, color))
    ax.set_title("here")
    ax.set_xlim(0, windows[-1] * 1.5)
    ax.set_ylim(0, 1)
    ax.set_xlabel("context window, tokens")
    ax.set_ylabel("solved within it")
    style.percent(ax.yaxis)
    style.label_ends(ax, labels)


def cumulative(point: Point, column: str, amounts: Floats) -> Floats:
    """Share of problems that were solved with at most each of ``amounts`` of ``column``: of each
    seed by what was spent with that seed, and then the mean over seeds.
    """
    solved = []
    for columns in point.seeds:
        known = ~np.isnan(columns["correct"])
        correct_P, spent_P = columns["correct"][known], columns[column][known]
        solved.append([float(correct_P[spent_P <= a].sum()) / len(correct_P) for a in amounts])
    mean: Floats = np.mean(np.array(solved, np.float64), axis=0)
    return mean


def band(solved_W: Floats, point: Point) -> tuple[list[float], list[float]]:
    """95 % intervals of one run, low and high ends, of what ``cumulative`` gave: over several
    seeds wider than they need be."""
    n = int((~np.isnan(point.scores_P)).sum())
    intervals = [wilson(round(s * n), n) for s in solved_W]
    return [i.low for i in intervals], [i.high for i in intervals]


def _draw_leads(ax: Axes, serial: Point, threads: Sequence[Point]) -> None:
    names: list[str] = []
    for p in threads:
        if (lead := p.over(serial)) is not None:
            bars, color = style.bars([lead]), style.colour(p)
            ax.errorbar([lead.value], [len(names)], xerr=bars, fmt="o", color=color, elinewidth=1.3)
            names.append(p.budget or "threads")
    for num_children, ahead in paper.FIGURE_4B_LEAD.items():
        ax.plot([ahead], [len(names)], "D", color=PAPER)
        names.append(f"paper, {num_children} children")
    ax.axvline(0, color=style.MUTED, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_title("lead over serial, points")
    ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:+.0f}" if x else "0")


def _numbers(points: Sequence[Point]) -> list[Number]:
    return [
        Number(
            f"{p.label}, T = {p.cell.temperature:g}",
            f"{style.share(*p.accuracy)} at {p.mean('total_tokens'):,.0f} tokens",
            p.command,
        )
        for p in points
    ]
