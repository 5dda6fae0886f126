"""Tables: all methods, all at matched budgets, and the paper's by temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from apr.eval import paper
from apr.eval.bootstrap import RESAMPLES
from apr.eval.points import Family, Point, curves, within
from apr.eval.report import style
from apr.eval.report.board import Board
from apr.eval.report.style import Number


class Table(NamedTuple):
    title: str
    caption: str
    head: tuple[str, ...]  # the first column is text, the others are numbers
    rows: list[tuple[str, ...]]
    numbers: list[Number]  # of each row, or each number of it, the command


_MULTIPLES = (1.0, 1.5, 2.0, 4.0, 8.0)
"""Of the cost of one serial run; the last is doubled until the dearest method has a column."""
_SLACK = 1.05
"""Means are measured: without it, two samples would hardly ever fit twice the cost of one."""


def all_methods(board: Board) -> list[Table]:
    """Every method with every budget, a table for each temperature, 1 and 0 first.

    Of cons@n and pass@n some n stand for all; the figures list the others.
    """
    caption = (
        "Means over problems. Intervals are 95 %: Wilson's for an accuracy, the paired bootstrap "
        f"over {RESAMPLES:,} resamples of the problems for a difference, which is in points, "
        "against one serial run of the supervised model at the same temperature. Width is the "
        "number of threads that can decode at once, parallelism total over sequential tokens, "
        "seconds alone the wall clock of one problem with nothing beside it, goodput the correct "
        "answers a second with many problems at once. Figures of cons@n and pass@n for n below the "
        "largest are estimated over all choices of n samples, and have no clock. "
        "† takes a verifier: an upper bound."
    )
    tables: list[Table] = []
    for temperature in _temperatures(board):
        series = curves(_at(board, temperature)).values()
        points = [p for each in series for p in _some(each)]
        rows = [_row(p, board.baseline(temperature)) for p in points]
        numbers = [Number(_name(p), style.share(p.accuracy.value), p.command) for p in points]
        said = f"Columns as in “{tables[0].title}”." if tables else caption
        tables.append(Table(f"All methods, T = {temperature:g}", said, _HEAD, rows, numbers))
    return tables


_HEAD = (
    "method",
    "accuracy, %",
    "against serial",
    "total tokens",
    "sequential tokens",
    "longest context",
    "width",
    "parallelism",
    "seconds alone",
    "goodput, 1/s",
)


def matched(board: Board, column: str, title: str) -> Table | None:
    """Every method at amounts that are multiples of what one serial run spends; None without one.

    Args:
        column: what is matched, ``total_tokens`` or ``sequential_tokens``.
    """
    series = [
        (points, baseline.mean(column))
        for temperature in _temperatures(board)
        if (baseline := board.baseline(temperature)) and baseline.mean(column) > 0
        for points in curves(_at(board, temperature)).values()
    ]
    if not series:
        return None
    multiples = _multiples(series, column)
    rows: list[tuple[str, ...]] = []
    numbers: list[Number] = []
    for points, one in series:
        chosen = [within(points, column, m * _SLACK * one) for m in multiples]
        mark = " †" if points[0].needs_verifier else ""
        temperature = f"{points[0].cell.temperature:g}"
        rows.append((points[0].series + mark, temperature, *map(_matched_text, chosen)))
        numbers += [_matched_number(p, column) for p in dict.fromkeys(filter(None, chosen))]
    unit = column.replace("_", " ")
    caption = (
        f"Each column allows so many times the mean {unit} of one serial run of the supervised "
        "model at that temperature. Of each method it has the largest budget (that with most "
        f"total tokens) whose mean exceeds the amount by no more than {_SLACK - 1:.0%}, which "
        "allows for the noise of a measured mean; – where even the smallest does."
    )
    head = ("method", "T", *(f"≤ {m:g} ×" for m in multiples))
    return Table(title, caption, head, rows, numbers)


def _multiples(series: Sequence[tuple[list[Point], float]], column: str) -> list[float]:
    """Enough for the smallest budget of each series, which comes with the cost of a serial run."""
    multiples = list(_MULTIPLES)
    for points, one in series:
        is_known = within(points, column, math.inf) is not None
        while is_known and within(points, column, multiples[-1] * _SLACK * one) is None:
            multiples.append(2 * multiples[-1])
    return multiples


def paper_tables(board: Board) -> list[Table]:
    """The paper's three tables, ours in every second line."""
    return [_paper_table(table, board) for table in paper.TABLES]


def _paper_table(table: paper.Table, board: Board) -> Table:
    rows: list[tuple[str, ...]] = []
    numbers: list[Number] = []
    for setting in table.rows:
        known = paper.ACCURACY[setting]
        theirs = [f"{100 * known[t]:.1f}" if t in known else "–" for t in paper.TEMPERATURES]
        rows.append((f"{setting}, paper", *theirs))
        family = Family.SERIAL if setting.startswith("SoS") else Family.THREADS
        ours = [board.one(setting, family, t) for t in paper.TEMPERATURES]
        if any(ours):
            rows.append((f"{_first(ours).label}, here", *(_percentage(p) for p in ours)))
            numbers += [
                Number(_name(p), style.share(*p.accuracy), p.command) for p in ours if p is not None
            ]
        else:
            rows.append((f"{setting}, here", *["–"] * len(ours)))
    caption = "Accuracy in per cent by temperature, ours with 95 % intervals; – was not run."
    return Table(
        table.title,
        caption,
        ("setting", *(f"T = {t:g}" for t in paper.TEMPERATURES)),
        rows,
        numbers,
    )


def _first(points: Sequence[Point | None]) -> Point:
    return next(p for p in points if p is not None)


def _percentage(point: Point | None) -> str:
    if point is None or not point.is_known:
        return "–"
    return f"{100 * point.accuracy.value:.1f} ({style.span(point.accuracy.interval)})"


def _temperatures(board: Board) -> list[float]:
    """1 and 0 first, where the paper's figures are, then the others."""
    found = {p.cell.temperature for p in board.points}
    return sorted(found, key=lambda t: ((1.0, 0.0).index(t) if t in (1.0, 0.0) else 2, t))


def _at(board: Board, temperature: float) -> list[Point]:
    return [p for p in board.points if p.cell.temperature == temperature]


def _some(series: Sequence[Point]) -> list[Point]:
    """All budgets; of numbers of samples the powers of two above 1, and the largest."""
    if series[0].family not in (Family.CONS, Family.PASS):
        return list(series)
    return [p for p in series if p.size in (2, 4, 8, 16, 32) or p is series[-1]]


def _name(point: Point) -> str:
    mark = " †" if point.needs_verifier else ""
    return f"{point.label}{mark}, T = {point.cell.temperature:g}"


def _row(point: Point, baseline: Point | None) -> tuple[str, ...]:
    gain = None if baseline is None or baseline is point else point.over(baseline)
    seeds = f", {point.num_seeds} seeds" if point.num_seeds > 1 else ""
    failed = f", {point.num_failed} failed" if point.num_failed else ""
    return (
        point.label + (" †" if point.needs_verifier else "") + seeds + failed,
        _percentage(point),
        "" if gain is None else style.points(gain),
        _decimal(point.mean("total_tokens"), 0),
        _decimal(point.mean("sequential_tokens"), 0),
        _decimal(point.mean("longest_context"), 0),
        _decimal(point.mean("peak_width"), 1),
        _decimal(point.mean("parallelism"), 2),
        _decimal(point.alone, 3),
        _decimal(math.nan if point.goodput is None else point.goodput, 1),
    )


def _decimal(value: float, places: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{places}f}"


def _matched_text(point: Point | None) -> str:
    if point is None:
        return "–"
    budget = f" [{point.budget}]" if point.budget else ""
    return f"{100 * point.accuracy.value:.1f}{budget}"


def _matched_number(point: Point, column: str) -> Number:
    unit = "in sequence" if column == "sequential_tokens" else "tokens"
    text = f"{style.share(*point.accuracy)} at {point.mean(column):,.0f} {unit}"
    return Number(_name(point), text, point.command)
