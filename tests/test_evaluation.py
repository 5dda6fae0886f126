"""Grids as a user runs them: what they spell out, what they leave behind, how they fail."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from apr import api, config
from apr.cli.flags import RunFlags
from apr.errors import CheckpointError, ConfigError
from apr.eval.cell import CLOCKS, RESULTS, TRACES
from apr.eval.points import FAMILIES, Family
from apr.eval.report import style
from apr.models import checkpoint as checkpoints
from apr.trace import read_traces
from tests.conftest import Run
from tests.test_cli import RECIPE

RECIPES = Path(__file__).parents[1] / "recipes"
GRID = """count = 6
concurrency = 3
seeds = [0, 1]
[[models]]
name = "tiny"
checkpoint = "runs/tiny/checkpoint"
stands_for = "APR"
[[entries]]
models = ["tiny"]
temperatures = [0.0, 1.0]
[[entries]]
models = ["tiny"]
how = { method = "best_of_n", samples = 3, temperature = 1.0 }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "tiny.toml").write_text(RECIPE)
    (home / "grid.toml").write_text(GRID)
    recipe = config.load(home / "tiny.toml", api.Recipe)
    api.make_data(recipe, home / "data", progress=False)
    api.train(recipe, home / "runs" / "tiny", home / "data", progress=False)
    return home


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with the recipe of a grid and its model."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(home / "runs" / "tiny")
    (tmp_path / "grid.toml").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def grid(**changes: Any) -> api.GridRecipe:
    return replace(config.load(Path("grid.toml"), api.GridRecipe), **changes)


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Of every cell, without what a clock said."""
    tables = {p.parent.name: pq.read_table(p) for p in sorted(folder.rglob(RESULTS))}
    return {name: t.drop_columns(list(CLOCKS)).to_pylist() for name, t in tables.items()}


def test_a_grid_is_every_combination_once(here: Path) -> None:
    cells = [planned.cell for planned in api.plan_grid(grid())]
    titles = [
        "apr, T 0",
        "apr, T 1, seed 0",
        "apr, T 1, seed 1",
        "best of 3 serial, first, T 1, seed 0",
        "best of 3 serial, first, T 1, seed 1",
    ]
    assert [cell.title for cell in cells] == titles
    twice = grid(entries=grid().entries * 2)
    assert [p.cell for p in api.plan_grid(twice)] == cells
    assert len({cell.name for cell in cells}) == len(cells)


def test_a_cell_is_of_one_checkpoint(here: Path, home: Path) -> None:
    (planned, *_) = api.plan_grid(grid())
    copy = here / "copy"
    copy.mkdir()
    for path in (home / "runs/tiny/checkpoint").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    moved = grid(models=(replace(grid().models[0], checkpoint=str(copy)),))
    assert api.plan_grid(moved)[0].cell.name == planned.cell.name
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert api.plan_grid(moved)[0].cell.name != planned.cell.name


def test_a_cell_is_of_every_file_of_weights(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FILE_BYTES", 10_000)
    api.export(here / "runs/tiny/checkpoint", here / "copy")
    split = grid(models=(replace(grid().models[0], checkpoint=str(here / "copy")),))
    names = {api.plan_grid(split)[0].cell.name}
    files = checkpoints.weight_files(here / "copy")
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        names.add(api.plan_grid(split)[0].cell.name)
    assert len(names) == 1 + len(files) > 2


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"method": "serial", "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3},
        {"children": 4, "first_success": True, "child_context": "fork"},
        {"window": 1024, "limits": {"context": 99, "depth": 1, "children": 3, "threads": 9}},
        {"limits": {"total_tokens": 500, "seconds": 2.5}},
        {"method": "best_of_n", "samples": 8, "chooser": "oracle", "temperature": 1.0},
        {"method": "self_consistency", "within": "apr", "samples": 3, "temperature": 1.0},
        {"method": "multi_agent", "within": "apr", "samples": 2, "temperature": 1.0},
        {"method": "hogwild", "samples": 4, "taken": "vote", "temperature": 1.0, "seed": 0},
        {
            "method": "tree_of_thoughts",
            "temperature": 1.0,
            "tree": {"depth": 2, "beam": 1, "proposals": 3, "value": "rollouts", "rollouts": 2},
        },
    ],
)
def test_flags_say_what_they_came_from(raw: dict[str, Any]) -> None:
    how = config.build(api.Inference, raw)
    words = iter(api.flags_of(how))
    given: dict[str, Any] = {}
    for word in words:
        name = word.removeprefix("--").replace("-", "_")
        kind = type(getattr(RunFlags(), name))
        given[name] = True if kind is bool else next(words)
        if kind in (int, float):
            given[name] = kind(given[name])
        elif kind is type(None):
            number = float(given[name])
            given[name] = number if name == "seconds" else int(number)
    assert RunFlags(**given).inference() == how


def test_what_no_flag_says_is_refused(here: Path) -> None:
    (first, *_) = grid().entries
    entry = replace(first, how=config.build(api.Inference, {"limits": {"calls": 3}}))
    with pytest.raises(ConfigError, match=r"limits\.calls has no flag"):
        api.plan_grid(grid(entries=(entry,)))


def test_a_grid_fills_its_folder_and_each_command_makes_the_same(here: Path, run: Run) -> None:
    # Problems of their own, which each command must name.
    Path("task.toml").write_text(RECIPE.replace("target_high = 30", "target_high = 20"))
    own = ("--set", "problem_seed=3", "--set", "task=task.toml")
    ran = run("eval", "grid.toml", "--out", "all", *own)
    assert (ran.code, ran.err) == (0, "")
    assert "5 cells in all: apr report all draws them" in ran.out
    for planned in api.plan_grid(grid(problem_seed=3, task="task.toml")):
        cell = planned.cell
        again = run(*shlex.split(cell.command)[1:])
        assert again.code == 0
        stored = list(read_traces(here / "all" / cell.name / TRACES))
        alone = list(read_traces(here / "runs" / "eval" / f"{cell.name}.jsonl"))
        assert [t.problem for t in stored] == [t.problem for t in alone]
        assert [t.answer for t in stored] == [t.answer for t in alone]
        assert [t.total_tokens for t in stored] == [t.total_tokens for t in alone]
    assert {len(r) for r in rows(here / "all").values()} == {6}


def test_samples_are_kept_and_the_commands_of_their_votes_run(here: Path, run: Run) -> None:
    last = api.plan_grid(grid())[-1].cell
    assert run("eval", "grid.toml", "--json").code == 0
    folder = here / "runs" / "eval" / "grid" / last.name
    samples = pq.read_table(folder / "samples.parquet").to_pylist()
    assert [(s["problem"], s["sample"]) for s in samples] == [
        (i, n) for i in range(6) for n in range(3)
    ]
    totals = pq.read_table(folder / RESULTS)["total_tokens"].to_pylist()
    assert totals == [sum(s["total_tokens"] for s in samples[3 * i : 3 * i + 3]) for i in range(6)]
    for command in last.draws.values():
        ran = run(*shlex.split(command.format(n=3))[1:], "--json")
        assert ran.code == 0
        assert json.loads(ran.out)["total_tokens"] == pytest.approx(sum(totals) / 6)


def test_a_seed_of_one_entry_is_refused(here: Path) -> None:
    (first, *_) = grid().entries
    with pytest.raises(ConfigError, match=r"set seeds of the grid, not how\.seed"):
        replace(first, how=replace(first.how, seed=7))


def test_names_with_spaces_are_quoted_in_every_command(here: Path) -> None:
    path = Path("grid.toml")
    path.write_text(path.read_text().replace('"tiny"', '"tiny + RL"'))
    outs = [
        shlex.split(command)[-1]
        for planned in api.plan_grid(grid())
        for command in planned.cell.draws.values()
    ]
    assert set(outs) == {f"runs/eval/tiny + RL-{vote}-{{n}}.jsonl" for vote in ("cons", "pass")}


def test_a_grid_killed_and_resumed_gives_the_same_rows(here: Path, run: Run) -> None:
    assert run("eval", "grid.toml", "--out", "whole", "--set", "count=12").code == 0
    # In the second cell: each flushes seven times.
    code = """
import os, signal, sys
from apr.eval import journal
journal.FLUSH_EVERY, flush, flushed = 2, journal.Journal.flush, []
def flush_and_die(kept):
    flush(kept)
    flushed.append(kept)
    if len(flushed) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.flush = flush_and_die
from apr import cli
cli.app(sys.argv[1:])
"""
    typed = ["eval", "grid.toml", "--out", "killed", "--set", "count=12"]
    died = subprocess.run([sys.executable, "-c", code, *typed], check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(rows(here / "killed")) > 0
    assert len(rows(here / "killed")) < 5
    assert run(*typed).code == 0
    assert rows(here / "killed") == rows(here / "whole")


def test_the_report_is_drawn_from_it(here: Path, run: Run) -> None:
    assert run("eval", "grid.toml", "--out", "all").code == 0
    ran = run("report", "all")
    assert ran == (0, "report in all/report/index.html\n", "")
    text = (here / "all" / "report" / "index.html").read_text()
    assert "apr eval grid.toml --out all" in text
    assert run("report", "all", "--out", "elsewhere").code == 0
    assert (here / "elsewhere" / "index.html").is_file()


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (("eval", "grid.toml", "--method", "serial"), ["grid.toml is a grid", "--set"]),
        (("eval", "grid.toml", "--count", 3), ["grid.toml is a grid"]),
        (("eval", "runs/tiny/checkpoint", "--set", "count=3"), ["--set changes a grid"]),
        (("eval", "missing.toml"), ["no recipe at missing.toml"]),
        (("eval", "grid.toml", "--set", "cuont=3"), ["did you mean 'count'"]),
        (("eval", "grid.toml", "--set", "count=0"), ["at least 1"]),
        (("eval", "grid.toml", "--set", "seeds=[]"), ["seeds of a grid is empty"]),
        (("eval", "grid.toml", "--set", "task=no.toml"), ["no recipe at no.toml"]),
        (("report", "nothing"), ["no grid in nothing"]),
    ],
)
def test_bad_input_is_one_sentence(
    here: Path, run: Run, typed: tuple[object, ...], parts: list[str]
) -> None:
    before = set(here.rglob("*"))
    ran = run(*typed)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    for part in parts:
        assert part in ran.err
    assert set(here.rglob("*")) == before


TWO_MODELS = """count = 6
[[models]]
name = "tiny"
checkpoint = "runs/tiny/checkpoint"
[[models]]
name = "other"
checkpoint = "runs/other"
[[entries]]
models = ["tiny", "other"]
[[entries]]
models = ["tiny"]
count = 2
"""


@pytest.fixture
def two(here: Path) -> Path:
    """A grid of the tiny model and of one that is as if trained on problems of one target."""
    shutil.copytree(here / "runs/tiny/checkpoint", here / "runs/other")
    manifest = json.loads((here / "runs/other/apr.json").read_text())
    manifest["recipe"]["demonstrations"]["problems"]["target_high"] = 10
    (here / "runs/other/apr.json").write_text(json.dumps(manifest))
    (here / "two.toml").write_text(TWO_MODELS)
    (here / "task.toml").write_text(RECIPE)
    return here


def test_rows_of_different_problems_have_a_note(two: Path, run: Run) -> None:
    note = "not all were posed the same problems, so these do not compare: tiny | other. "
    ran = run("eval", "two.toml", "--out", "all")
    assert ran.err.startswith(f"note: {note}")
    assert 'task = "recipes/' in ran.err
    assert run("eval", "two.toml", "--out", "all", "--json").err == ran.err
    assert run("report", "all").code == 0
    assert f"<p>Note: {note}" in (two / "all" / "report" / "index.html").read_text()
    table = run("table", *sorted(two.glob(f"all/*/{TRACES}"), reverse=True))
    assert table.err == ran.err


def test_rows_of_the_same_problems_have_none(two: Path, run: Run) -> None:
    ran = run("eval", "two.toml", "--out", "all", "--set", "task=task.toml")
    assert (ran.code, ran.err) == (0, "")
    assert run("report", "all").code == 0
    assert "Note: not all" not in (two / "all" / "report" / "index.html").read_text()
    assert run("table", *two.glob(f"all/*/{TRACES}")).err == ""


def test_what_a_model_was_not_trained_on_is_refused_before_anything_runs(here: Path) -> None:
    (first, *others) = grid().entries
    planned = api.plan_grid(grid(entries=(*others, replace(first, children=(3,)))))
    with pytest.raises(ConfigError, match="not trained to heed a number of children"):
        api.run_grid(planned, here / "all", "apr eval")
    assert not (here / "all").exists()


def test_models_and_entries_have_to_agree(here: Path) -> None:
    with pytest.raises(ConfigError, match="no model 'other' in the grid: it has tiny"):
        grid(entries=(replace(grid().entries[0], models=("other",)),))
    with pytest.raises(ConfigError, match="two models of the grid have one name"):
        grid(models=grid().models * 2)
    gone = grid(models=(replace(grid().models[0], checkpoint="gone"),))
    with pytest.raises(CheckpointError, match=r"^no checkpoint at gone, where no folder is: "):
        api.plan_grid(gone)
    (here / "gone").mkdir()
    with pytest.raises(CheckpointError, match=r"^gone has no apr\.json with "):
        api.plan_grid(gone)


def test_reports_know_every_method() -> None:
    assert set(FAMILIES) == set(api.MethodName)
    assert set(style.COLOURS) == set(Family)


def test_the_recipe_of_the_default_grid_asks_for_all_that_is_drawn() -> None:
    recipe = config.load(RECIPES / "grid.toml", api.GridRecipe)
    stands_for = {m.stands_for for m in recipe.models}
    assert {"SoS+", "SoS+ + RL", "APR", "APR + RL", "APR conditioned"} <= stands_for
    methods = {entry.how.method for entry in recipe.entries}
    # Votes and pass@n are read off the samples of best_of_n.
    assert methods == set(api.MethodName) - {"self_consistency"}
