"""From a folder of results to the page and its figures."""

from __future__ import annotations

from pathlib import Path

from apr.errors import DataError
from apr.eval.cell import Grid, Results, read_grid, read_results
from apr.eval.points import alone_points, points_of
from apr.eval.posed import note_of
from apr.eval.report import latency, learning, scaling, style, tables
from apr.eval.report.board import Board
from apr.eval.report.page import page
from apr.eval.report.tables import Table
from apr.files import new_file

_FIGURES = (
    scaling.figure_4a,
    scaling.figure_4b,
    learning.figure_5,
    latency.figure_6,
    learning.figure_7,
    scaling.figure_8,
)


def write_report(results: Path, out: Path) -> Path:
    """Write ``index.html``, which needs no other file, and each figure as SVG and PNG.

    A figure whose results are missing says which they are. Results of settings that the grid no
    longer has are not shown.

    Returns:
        The page.

    Raises:
        DataError: no grid was run into ``results``, none of its cells is done, or one is damaged.
        StorageError: the disk is full, or ``out`` may not be written.
    """
    grid = read_grid(results)
    done = [r for cell in grid.cells if (r := read_results(results, cell)) is not None]
    if not done:
        raise DataError(f"no cell in {results} has been run to its end: run {grid.command}")
    board = Board(points_of(done), alone_points(done))
    with style.drawing():
        drawn = [draw(board) for draw in _FIGURES]
    for figure in drawn:
        if figure.figure is not None:
            style.save(figure, out)
    text = page(_about(grid, done), drawn, *_tables(board), grid.command)
    with new_file(out / "index.html") as tmp:
        tmp.write_text(text, encoding="utf-8")
    return out / "index.html"


def _tables(board: Board) -> tuple[list[Table], list[Table]]:
    """Those that come before the figures, and those that come after."""
    amounts = [
        tables.matched(board, "total_tokens", "All methods at matched total tokens"),
        tables.matched(board, "sequential_tokens", "All methods at matched sequential tokens"),
    ]
    matched = [table for table in amounts if table is not None]
    main, *others = tables.all_methods(board)
    return [main, *matched], [*tables.paper_tables(board), *others]


def _about(grid: Grid, done: list[Results]) -> list[str]:
    loaded = [r for r in done if r.cell.concurrency > 1]
    counts = sorted({r.cell.count for r in loaded or done})
    models = dict.fromkeys(f"{r.cell.model} ({r.cell.checkpoint})" for r in done)
    num_failed = sum(r.num_failed for r in done)
    seconds = sum(r.seconds for r in done)
    said = [
        f"Accuracy and cost of {len({r.cell.method for r in done})} methods on "
        f"{' and '.join(map(str, counts))} test problems each; {len(done)} of {len(grid.cells)} "
        f"cells, run in {_duration(seconds)} on {grid.machine}.",
        f"Models: {'; '.join(models)}.",
    ]
    if note := note_of((r.cell.model, r.posed) for r in done):
        said.append(f"Note: {note}")
    if num_failed:
        said.append(
            f"{num_failed} runs were cut short by the engine. They have no grade and count for "
            "nothing; running the grid again runs them again."
        )
    return said


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
