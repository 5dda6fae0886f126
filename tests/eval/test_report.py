"""The report as a file: what stands in it, and what it says where results are missing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from apr.errors import DataError
from apr.eval.cell import Cell, Grid, read_grid, read_results, write_results
from apr.eval.grid import write_grid
from apr.eval.paper import ACCURACY, TABLES, Setting
from apr.eval.points import Family, alone_points, points_of
from apr.eval.report import latency, learning, scaling, style, tables, write_report
from apr.eval.report.board import Board
from tests.eval import cells
from tests.eval.cells import cell, fill, fill_whole_grid, trace

FEWER = replace(cell("b", Setting.CHILDREN_RL, children=2), problems="fewer", count=1)
FIGURES = [f"figure-{name}" for name in ("4a", "4b", "5", "6", "7", "8")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    fill_whole_grid(folder)
    return folder


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    return write_report(results, results / "report").read_text()


@pytest.fixture(scope="module")
def board(results: Path) -> Board:
    done = [r for c in read_grid(results).cells if (r := read_results(results, c)) is not None]
    return Board(points_of(done), alone_points(done))


class Reader(HTMLParser):
    """Collects what a page asks for and the ids it gives, and checks that tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value is not None:
                self.asked.append(value)
            if name == "id" and value is not None:
                self.ids.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def grid_of(folder: Path, *cells: Cell) -> Path:
    write_grid(folder, Grid(list(cells), "a machine", "apr eval some.toml"))
    return folder


def test_every_figure_is_there_as_a_file_and_on_the_page(results: Path, page: str) -> None:
    made = {p.name for p in (results / "report").iterdir()}
    assert made == {"index.html", *(f"{f}.{k}" for f in FIGURES for k in ("svg", "png"))}
    assert page.count("<svg") == len(FIGURES)
    assert "Not drawn" not in page


def test_the_page_is_whole_and_needs_no_other_file(page: str) -> None:
    reader = Reader(page)
    assert reader.open == []
    outside = [a for a in reader.asked if not a.startswith("#")]
    assert outside == ["https://arxiv.org/abs/2504.15466"], "a link, which is only followed by hand"
    assert "<script" not in page
    assert "@import" not in page
    assert "url(http" not in page


def test_ids_are_unique_and_what_points_at_one_finds_it(page: str) -> None:
    reader = Reader(page)
    assert len(set(reader.ids)) == len(reader.ids)
    wanted = {a[1:] for a in reader.asked if a.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(reader.ids)


def test_drawings_take_their_colours_from_the_page(page: str) -> None:
    drawings = page[page.index("<svg") :]
    assert re.findall(r"#[0-9a-fA-F]{6}\b", drawings) == []
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    light, dark = style.css_variables()
    for declared in (light, dark):
        assert used <= set(re.findall(r"(--[\w-]+):", declared))


def test_every_number_has_its_command(results: Path, page: str, board: Board) -> None:
    for point in board.points:
        assert f"<code>{point.command}</code>" in page
    for whole in tables.all_methods(board):
        assert len(whole.rows) == len(whole.numbers)


def test_the_papers_numbers_stand_beside_ours(page: str) -> None:
    for table in TABLES:
        assert table.title in page
    for setting, known in ACCURACY.items():
        for accuracy in known.values():
            assert f"<td>{100 * accuracy:.1f}</td>" in page, setting


def test_differences_are_against_serial_at_the_same_temperature(board: Board) -> None:
    (table,) = [t for t in tables.all_methods(board) if t.title.endswith("T = 0.5")]
    rows = {row[0]: row for row in table.rows}
    baseline = board.baseline(0.5)
    assert baseline is not None
    threads = board.one(Setting.THREADS, Family.THREADS, 0.5)
    assert threads is not None
    gain = threads.over(baseline)
    assert gain is not None
    assert rows["threads"][2] == style.points(gain)
    assert rows["serial"][2] == ""


def test_matched_tables_keep_to_their_amounts(board: Board) -> None:
    for column in ("total_tokens", "sequential_tokens"):
        table = tables.matched(board, column, "matched")
        assert table is not None
        baseline = board.baseline(1.0)
        assert baseline is not None
        (row,) = [r for r in table.rows if r[:2] == ("serial, cons@n", "1")]
        series = [p for p in board.points if p.series == row[0] and p.cell.temperature == 1.0]
        for text, head in zip(row[2:], table.head[2:], strict=True):
            amount = float(head.strip("≤ ×")) * 1.05 * baseline.mean(column)
            affordable = [p for p in series if p.mean(column) <= amount]
            expected = f"[{affordable[-1].budget}]" if affordable else "–"
            assert text.endswith(expected)


def test_the_dearest_method_has_a_column_at_matched_budgets(tmp_path: Path) -> None:
    serial, threads = cell("serial", Setting.SERIAL, method="serial"), cell()
    fill(tmp_path, serial, 0.5)
    fill(tmp_path, threads, 0.5, 60)
    done = [r for c in (serial, threads) if (r := read_results(tmp_path, c))]
    table = tables.matched(Board(points_of(done), []), "total_tokens", "matched")
    assert table is not None
    assert table.head[-2:] == ("≤ 16 ×", "≤ 32 ×")
    rows = {row[0]: row[2:] for row in table.rows}
    assert rows["threads"][:-1] == ("–",) * 6
    assert float(rows["threads"][-1]) > 0


def test_a_figure_says_what_is_missing_of_it_and_no_more(tmp_path: Path) -> None:
    only = cell()
    fill(tmp_path, only, 0.5, 3)
    text = write_report(grid_of(tmp_path, only), tmp_path / "out").read_text()
    missing = dict(
        re.findall(r"<h2>(Figure \w+).*?Not drawn\. Missing: (.*?)\. With that", text, re.S)
    )
    serial = "a model that stands for SoS+, at temperature 1 with method "
    samples = f"{serial}best_of_n, whose samples cons@n and pass@n are read off"
    threads = "a model that stands for APR conditioned, APR conditioned + RL, APR or APR + RL"
    threads += ", at temperature 1 with method apr"
    after = "a model that stands for APR + RL, at temperature 0 with method apr"
    assert missing["Figure 4a"] == missing["Figure 8"] == f"{threads}; {samples}"
    assert missing["Figure 4b"].endswith(f"; {serial}serial")
    assert missing["Figure 5"] == missing["Figure 7"] == after
    assert missing["Figure 6"].endswith(
        "SoS+ + RL, APR or APR + RL, at temperature 0 with method serial"
    )
    assert text.count("With that in the grid: <code>apr eval some.toml</code>") == len(FIGURES)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["index.html"]


@pytest.mark.parametrize(
    "after", [cell("b", Setting.CHILDREN_RL, children=3), FEWER], ids=["budget", "problems"]
)
def test_a_pair_takes_one_budget_and_the_same_problems(tmp_path: Path, after: Cell) -> None:
    before = cell("a", Setting.CHILDREN, children=2)
    fill(tmp_path, before, 0.5, 3)
    (tmp_path / after.name).mkdir()
    write_results(tmp_path / after.name, [trace(0, True, (10, 5))], [])
    text = write_report(grid_of(tmp_path, before, after), tmp_path / "out").read_text()
    both = "both APR conditioned and APR conditioned + RL"
    assert f"Missing: a budget that {both} were run with, on the same problems." in text


@pytest.mark.parametrize(
    ("draw", "settings"),
    [
        (scaling.figure_4a, {Setting.THREADS, Setting.SERIAL}),
        (scaling.figure_4b, {Setting.THREADS, Setting.SERIAL}),
        (scaling.figure_8, {Setting.CHILDREN, Setting.SERIAL}),
        (learning.figure_5, {Setting.THREADS, Setting.THREADS_RL}),
        (learning.figure_7, {Setting.SERIAL, Setting.SERIAL_RL}),
        (latency.figure_6, {Setting.SERIAL, Setting.THREADS_RL}),
    ],
)
def test_a_figure_is_drawn_of_what_there_is(
    board: Board, draw: type[scaling.figure_4a], settings: set[Setting]
) -> None:
    part = Board([p for p in board.points if p.cell.stands_for in settings], [])
    with style.drawing():
        assert draw(part).figure is not None


def test_models_that_solve_nothing_or_everything_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 7 problems, rounding once put the ends of the intervals on the wrong side.
    monkeypatch.setattr(cells, "NUM_PROBLEMS", 7)
    always, never = 2.0, -1.0
    filled = [
        (cell("threads", Setting.THREADS), never),
        (cell("threads + RL", Setting.THREADS_RL), always),
        (cell("serial", Setting.SERIAL, method="serial"), always),
        (cell("serial + RL", Setting.SERIAL_RL, method="serial"), never),
    ]
    for made, accuracy in filled:
        fill(tmp_path, made, accuracy, 3)
    write_report(grid_of(tmp_path, *(made for made, _ in filled)), tmp_path / "out")
    drawn = {p.stem for p in (tmp_path / "out").glob("*.png")}
    assert drawn == {"figure-5", "figure-6", "figure-7"}


def test_figure_8_is_drawn_of_the_temperatures_that_were_run(board: Board) -> None:
    part = Board([p for p in board.points if p.cell.temperature == 0.5], [])
    with style.drawing():
        drawn = scaling.figure_8(part)
    assert drawn.figure is not None
    assert drawn.caption.endswith("Not run yet: temperature 0.1, 1.")
    said = [text.get_text() for ax in drawn.figure.axes for text in ax.texts]
    assert {"T = 0.1: not run yet", "T = 1: not run yet"} <= set(said)


def test_samples_that_spawn_are_a_curve_of_their_own(tmp_path: Path) -> None:
    how: dict[str, Any] = {"temperature": 1.0, "seed": 0}
    filled = [cell(**how)]
    for within in ("apr", "serial"):
        filled.append(cell("serial", Setting.SERIAL, method="best_of_n", within=within, **how))
    for made in filled:
        fill(tmp_path, made, 0.5, 3)
    points = points_of([r for c in filled if (r := read_results(tmp_path, c))])
    with style.drawing():
        figure = scaling.figure_4a(Board(points, [])).figure
    assert figure is not None
    ours = figure.axes[0]
    assert len({line.get_marker() for line in ours.lines if len(line.get_xdata()) == 8}) == 4
    (one,) = [p for p in points if p.series == "serial, cons@n" and p.size == 1]
    figure.draw_without_rendering()
    (samples,) = ours.child_axes
    assert samples.get_xlim()[1] * one.mean("total_tokens") == pytest.approx(ours.get_xlim()[1])


def test_any_number_of_models_may_stand_for_threads(tmp_path: Path) -> None:
    made = [cell(f"threads {n}", temperature=1.0, seed=0) for n in range(5)]
    made.append(cell("serial", Setting.SERIAL, method="serial", temperature=1.0, seed=0))
    for each in made:
        fill(tmp_path, each, 0.5, 2)
    points = points_of([r for c in made if (r := read_results(tmp_path, c))])
    with style.drawing():
        figure = scaling.figure_4b(Board(points, [])).figure
    assert figure is not None
    assert len(figure.axes[0].lines) == 6


def test_figure_6_ends_at_the_accuracy_of_the_last_problem(board: Board) -> None:
    with style.drawing():
        figure = latency.figure_6(board).figure
    assert figure is not None
    points = board.pick(list(Setting), [Family.SERIAL, Family.THREADS], 0.0)
    points = [p for p in points if p.cell.children is None]
    (tokens, *_) = figure.axes
    lines = [line for line in tokens.lines if line.get_marker() != "o"]
    ends = [line.get_xydata()[-1].tolist() for line in tokens.lines if line not in lines]
    most = max(p.columns["sequential_tokens"].max() for p in points)
    assert sorted(ends) == sorted([most, p.accuracy.value] for p in points)
    assert {line.get_drawstyle() for line in lines} == {"steps-post"}
    observed = {x for p in points for x in p.columns["sequential_tokens"]}
    assert set(lines[0].get_xdata()) == observed | {0.0}


def test_each_seed_counts_by_what_it_spent(tmp_path: Path) -> None:
    """One seed solves the problem with 10 tokens, the other fails with 50."""
    for seed, correct, tokens in ((0, True, 10), (1, False, 50)):
        made = cell(temperature=1.0, seed=seed)
        (tmp_path / made.name).mkdir()
        write_results(tmp_path / made.name, [trace(0, correct, [tokens])], [])
    cells_of = [cell(temperature=1.0, seed=seed) for seed in (0, 1)]
    (point,) = points_of(filter(None, (read_results(tmp_path, made) for made in cells_of)))
    spent = scaling.cumulative(point, "total_tokens", np.array([5.0, 10.0, 30.0, 50.0]))
    assert spent.tolist() == [0.0, 0.5, 0.5, 0.5]


def test_labels_keep_apart_and_within_the_axes() -> None:
    ax = Figure().add_subplot()
    ax.set_ylim(0, 1)
    style.label_ends(ax, [(1.0, y, str(y), "black") for y in (0.0, 0.0, 0.01, 1.0, 1.0)], gap=0.1)
    heights = [text.get_position()[1] for text in ax.texts]
    assert heights == pytest.approx([0.05, 0.15, 0.25, 0.85, 0.95], abs=1e-3)


def test_a_gain_up_to_everything_stays_below_the_title(tmp_path: Path) -> None:
    filled = [(cell(), -1.0), (cell("threads + RL", Setting.THREADS_RL), 2.0)]
    for made, accuracy in filled:
        fill(tmp_path, made, accuracy, 3)
    points = points_of([r for c, _ in filled if (r := read_results(tmp_path, c))])
    for draw in (learning.figure_5, learning.figure_7):
        with style.drawing():
            figure = draw(Board(points, [])).figure
        assert figure is not None
        figure.draw_without_rendering()
        (left, _) = figure.axes
        (gain,) = [text for text in left.texts if text.get_text() == "+100.0"]
        assert gain.get_window_extent().y1 <= left.get_window_extent().y1


@pytest.mark.parametrize(
    ("end", "said"), [(0.6, "0.06 s"), (42.0, "4.2 s"), (1000.0, "100 s"), (1500.0, "2 minutes")]
)
def test_a_short_run_is_told_in_seconds(tmp_path: Path, end: float, said: str) -> None:
    made = cell()
    (tmp_path / made.name).mkdir()
    write_results(tmp_path / made.name, [trace(0, True, end=end)], [])
    text = write_report(grid_of(tmp_path, made), tmp_path / "out").read_text()
    assert f"1 of 1 cells, run in {said} on a machine." in text


def test_a_multiple_of_nothing_is_a_dash(tmp_path: Path) -> None:
    filled = [cell(), cell("threads + RL", Setting.THREADS_RL)]
    for made in filled:
        fill(tmp_path, made, 0.5, 0)
    points = points_of([r for c in filled if (r := read_results(tmp_path, c))])
    with style.drawing():
        drawn = learning.figure_5(Board(points, []))
    assert drawn.figure is not None
    assert [n.value for n in drawn.numbers if n.label == "children"] == ["–: 0.0 → 0.0"]
    assert "– (0.0 → 0.0)" in [text.get_text() for text in drawn.figure.axes[1].texts]


def test_failed_runs_are_told(tmp_path: Path) -> None:
    made = cell()
    (tmp_path / made.name).mkdir()
    write_results(tmp_path / made.name, [trace(0, True), trace(1, None)], [])
    text = write_report(grid_of(tmp_path, made), tmp_path / "out").read_text()
    assert "1 runs were cut short by the engine" in text
    assert "threads, 1 failed" in text


def test_what_failed_throughout_is_told_and_not_drawn(tmp_path: Path) -> None:
    filled = [
        cell("serial", Setting.SERIAL, method="serial"),
        cell("threads", Setting.THREADS),
        cell("threads + RL", Setting.THREADS_RL),
    ]
    for made in filled[:2]:
        fill(tmp_path, made, 0.5, 3)
    (tmp_path / filled[2].name).mkdir()
    write_results(tmp_path / filled[2].name, [trace(i, None) for i in range(40)], [])
    text = write_report(grid_of(tmp_path, *filled), tmp_path / "out").read_text()
    assert {p.stem for p in (tmp_path / "out").glob("*.png")} == {"figure-6"}
    assert "threads + RL, 40 failed</td><td>–</td><td>–</td>" in text
    assert "<td>threads + RL</td><td>0</td><td>–</td>" in text
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def test_a_grid_measured_alone_throughout_is_drawn(tmp_path: Path) -> None:
    filled = [
        cell("serial", Setting.SERIAL, method="serial", concurrency=1),
        cell("threads", Setting.THREADS, concurrency=1),
    ]
    for made in filled:
        fill(tmp_path, made, 0.5, 3)
    text = write_report(grid_of(tmp_path, *filled), tmp_path / "out").read_text()
    assert "on 40 test problems each" in text
    assert "many problems at a time: not run yet" in text
    assert {p.stem for p in (tmp_path / "out").glob("*.png")} == {"figure-6"}


def test_there_has_to_be_a_grid_with_results(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no grid in"):
        write_report(tmp_path, tmp_path / "out")
    grid_of(tmp_path, cell())
    with pytest.raises(DataError, match=r"no cell in .* run apr eval some\.toml"):
        write_report(tmp_path, tmp_path / "out")
    (tmp_path / "grid.json").write_text('{"cells": [{}]}')
    with pytest.raises(DataError, match=r"grid\.json is damaged"):
        write_report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
