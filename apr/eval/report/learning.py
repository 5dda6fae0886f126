"""What reinforcement learning changed: the paper's figures 5 and 7."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apr.eval import paper
from apr.eval.bootstrap import Estimate, Floats, ratio
from apr.eval.paper import Change, Setting
from apr.eval.points import Family, Point
from apr.eval.report import style
from apr.eval.report.board import Board, Wanted
from apr.eval.report.style import PAPER, Drawn, Number, not_drawn


class _Pair(NamedTuple):
    """One model before and after."""

    name: str
    before: Point
    after: Point
    paper: Change  # its accuracy there


class _Ratio(NamedTuple):
    """A figure after, as a multiple of before; nan where there was nothing before."""

    name: str
    ours: Estimate
    text: str  # both figures
    theirs: Change | None
    color: str


_NAMES = {
    Setting.SERIAL: "serial",
    Setting.THREADS: "threads",
    Setting.CHILDREN: "threads,\nnumber set",
}


def figure_5(board: Board) -> Drawn:
    """What changed with threads: accuracy, tokens and children."""
    name, title = "figure-5", "Figure 5: reinforcement learning on threads, greedy"
    pair = _pair(board, Setting.THREADS)
    if pair is None:
        return not_drawn(name, title, _missing(board, Setting.THREADS))
    ratios = [
        _changed("total tokens", pair, "total_tokens", paper.TOTAL_TOKENS[Setting.THREADS]),
        _changed("tokens per thread", pair, None, paper.TOKENS_PER_THREAD),
        _changed("children", pair, "num_children", paper.NUM_CHILDREN),
    ]
    figure = Figure((9.2, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 2])
    _draw_accuracy(left, [pair])
    _draw_ratios(right, ratios)
    caption = (
        "Left: accuracy of greedy decoding before (hollow) and after (filled). Right: what a "
        "problem costs after, as a multiple of before, with 95 % intervals; grey diamonds are the "
        "paper's. There, the gain came with half as many tokens again: more search."
    )
    return Drawn(name, title, caption, figure, _numbers([pair], ratios))


def figure_7(board: Board) -> Drawn:
    """What changed with each model; with the number of children set, the tokens hardly can."""
    name, title = "figure-7", "Figure 7: where the gain comes from, greedy"
    pairs = [pair for setting in paper.AFTER_RL if (pair := _pair(board, setting)) is not None]
    absent = [_missing(board, s) for s in paper.AFTER_RL if _pair(board, s) is None]
    if not pairs:
        return not_drawn(name, title, min(absent, key=len))
    ratios = []
    for pair in pairs:
        theirs = paper.TOTAL_TOKENS.get(Setting(pair.before.cell.stands_for))
        ratios.append(_changed(pair.name.replace("\n", " "), pair, "total_tokens", theirs))
    figure = Figure((9.2, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1.6])
    _draw_accuracy(left, pairs)
    _draw_ratios(right, ratios, "total tokens after, as a multiple of before")
    caption = (
        "Greedy accuracy before (hollow) and after (filled) reinforcement learning, ours in colour "
        "beside the paper's in grey, and what it did to the tokens of a problem. Where the number "
        "of children is set (ours: the largest that was run; the paper: 10), the paper's gain is "
        "gone."
    )
    if absent:
        caption += f" Not run yet: {'; '.join(what for each in absent for what in each)}."
    return Drawn(name, title, caption, figure, _numbers(pairs, ratios))


def _missing(board: Board, setting: Setting) -> list[str]:
    """What there has to be for a pair, where there is none."""
    after = paper.AFTER_RL[setting]
    wanted = [Wanted((each,), _family(setting), 0.0) for each in (setting, after)]
    shared = f"a budget that both {setting} and {after} were run with, on the same problems"
    return board.missing(wanted) or [shared]


def _family(setting: Setting) -> Family:
    return Family.SERIAL if setting is Setting.SERIAL else Family.THREADS


def _pair(board: Board, setting: Setting) -> _Pair | None:
    families = [_family(setting)]
    befores = board.pick([setting], families, 0.0)
    afters = {_posed(p): p for p in board.pick([paper.AFTER_RL[setting]], families, 0.0)}
    both = [(p, afters[_posed(p)]) for p in befores if _posed(p) in afters]
    if not both:
        return None
    return _Pair(_NAMES[setting], *both[-1], paper.rl_change(setting))


def _posed(point: Point) -> tuple[object, ...]:
    """What both points of a pair share."""
    return *point.size_set, point.cell.problems


def _changed(name: str, pair: _Pair, column: str | None, theirs: Change | None) -> _Ratio:
    before, after = _column(pair.before, column), _column(pair.after, column)
    changed = ratio(after, before)
    text = f"{_mean(before):,.1f} → {_mean(after):,.1f}"
    return _Ratio(name, changed, text, theirs, style.colour(pair.before))


def _column(point: Point, column: str | None) -> Floats:
    """Of each problem; without a name, tokens per thread that sampled."""
    if column is not None:
        return point.columns[column]
    threads: Floats = point.columns["total_tokens"] / point.columns["num_threads"]
    return threads


def _mean(values: Floats) -> float:
    return float(values[values == values].mean())


def _draw_accuracy(ax: Axes, pairs: Sequence[_Pair]) -> None:
    ends = [pair.paper.before for pair in pairs]
    for i, pair in enumerate(pairs):
        color = style.colour(pair.before)
        ours = [pair.before.accuracy, pair.after.accuracy]
        ends += [e.interval.low for e in ours]
        x, values = [i - 0.3, i - 0.08], [e.value for e in ours]
        ax.errorbar(x, values, yerr=style.bars(ours), color=color, elinewidth=1.1)
        _dots(ax, x, values, color)
        _name_gain(ax, x, values, max(e.interval.high for e in ours), color)
        theirs = [i + 0.12, i + 0.34]
        ax.plot(theirs, [*pair.paper], "--", color=PAPER, linewidth=1.3)
        _dots(ax, theirs, [*pair.paper], PAPER)
        _name_gain(ax, theirs, [*pair.paper], max(pair.paper), PAPER)
    ax.set_xticks(range(len(pairs)), [pair.name for pair in pairs])
    ax.set_xlim(-0.6, len(pairs) - 0.4)
    low = max(0.0, min(ends) - 0.05)
    # Above 100 % is room for the gain, and none for a tick.
    ax.set_ylim(low, 1 + 0.1 * (1 - low))
    ax.grid(axis="x", visible=False)
    style.percent(ax.yaxis)
    ax.set_title("accuracy, gain in points")


def _name_gain(
    ax: Axes, x: Sequence[float], values: Sequence[float], top: float, color: str
) -> None:
    """From before to after, above the middle of both and of all that reaches up to ``top``."""
    ax.annotate(
        f"{100 * (values[1] - values[0]):+.1f}",
        (sum(x) / 2, top),
        (0, 7),
        textcoords="offset points",
        ha="center",
        color=color,
        fontsize=9.5,
    )


def _dots(ax: Axes, x: Sequence[float], y: Sequence[float], color: str) -> None:
    """Hollow before, filled after."""
    dot: dict[str, Any] = {"color": color, "markersize": 7, "clip_on": False, "zorder": 3}
    ax.plot(x[:1], y[:1], "o", markerfacecolor=style.GROUND, **dot)
    ax.plot(x[1:], y[1:], "o", **dot)


def _draw_ratios(ax: Axes, ratios: Sequence[_Ratio], title: str = "after ÷ before") -> None:
    furthest = 1.0
    for y, r in enumerate(ratios):
        if isnan(r.ours.value):
            _beside(ax, 1, y - 0.12, f"– ({r.text})", r.color)
        else:
            bars, high = style.bars([r.ours]), r.ours.interval.high
            ax.errorbar([r.ours.value], [y - 0.12], xerr=bars, fmt="o", color=r.color, markersize=7)
            _beside(ax, high, y - 0.12, f"{r.ours.value:.2f} × ({r.text})", r.color)
            furthest = max(furthest, high)
        if r.theirs is not None:
            ax.plot([r.theirs.ratio], [y + 0.2], "D", color=PAPER, markersize=6)
            text = f"{r.theirs.ratio:.2f} × ({r.theirs.before:,g} → {r.theirs.after:,g})"
            _beside(ax, r.theirs.ratio, y + 0.2, text, PAPER)
            furthest = max(furthest, r.theirs.ratio)
    ax.axvline(1, color=style.MUTED, linewidth=1)
    ax.set_yticks(range(len(ratios)), [r.name for r in ratios])
    ax.set_ylim(len(ratios) - 0.45, -0.55)
    lows = [r.ours.interval.low - 0.05 for r in ratios if not isnan(r.ours.value)]
    ax.set_xlim(min([0.9, *lows]), 1 + 2.3 * (furthest - 0.9))
    ax.grid(axis="y", visible=False)
    ax.set_title(title)


def _beside(ax: Axes, x: float, y: float, text: str, color: str) -> None:
    ax.annotate(
        text,
        (x, y),
        (9, 0),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize=9,
        bbox=style.BEHIND,
    )


def _numbers(pairs: Sequence[_Pair], ratios: Sequence[_Ratio]) -> list[Number]:
    numbers = []
    for pair in pairs:
        for point in (pair.before, pair.after):
            numbers.append(Number(point.label, style.share(*point.accuracy), point.command))
        gain = pair.after.over(pair.before)
        if gain is not None:
            numbers.append(
                Number(f"{pair.after.label}, gain", style.points(gain), pair.after.command)
            )
    numbers += [Number(r.name, _times(r), "the two commands above") for r in ratios]
    return numbers


def _times(r: _Ratio) -> str:
    if isnan(r.ours.value):
        return f"–: {r.text}"
    low, high = r.ours.interval
    return f"{r.ours.value:.2f} × ({low:.2f} to {high:.2f}): {r.text}"
