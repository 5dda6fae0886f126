"""The queue of runs for a GPU (docs/experiments.md): no device minute may go to a typo."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from apr import api, cli, config
from apr.api.training import network_of
from apr.countdown.demonstrate import Demonstrate
from apr.countdown.narrate import Text
from apr.models.checkpoint import read_config
from apr.train.log import read_metrics
from apr.train.sft import SFTConfig

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments"
RUNS = [
    ("01_throughput.sh",),
    ("02_threads.sh",),
    ("02_threads.sh", "balanced"),
    ("03_serial.sh",),
    ("04_conditioned.sh", "threads"),
    ("04_conditioned.sh", "rounds"),
    ("04_conditioned.sh", "serial"),
    ("05_grpo.sh", "threads"),
    ("05_grpo.sh", "serial"),
    ("06_grid.sh",),
    ("07_paper.sh", "threads"),
    ("07_paper.sh", "serial"),
    ("08_five.sh",),
    ("09_scaling.sh",),
]

# Stands for the interpreter: notes what it is asked, and leaves what the scripts look for.
NOTE = """#!{python}
import json, os, pathlib, sys
words = sys.argv[1:]
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps(words) + "\\n")
verb = words[2] if words[0] == "-m" else "benchmark"
if verb in ("sft", "grpo"):
    run = pathlib.Path(words[words.index("--out") + 1])
    (run / "checkpoint").mkdir(parents=True, exist_ok=True)
    for name in ("recipe.json", "metrics.jsonl", "timings.jsonl"):
        (run / name).touch()
elif verb == "export":
    pathlib.Path(words[4]).mkdir(parents=True, exist_ok=True)
else:
    if words[3].endswith(".toml"):
        pathlib.Path(words[words.index("--out") + 1]).mkdir()
    print({{}})
"""


def test_every_script_is_in_the_queue() -> None:
    assert {name for name, *_ in RUNS} == {p.name for p in FOLDER.glob("[0-9]*.sh")}
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert {" ".join(run) for run in RUNS} == set(
        re.findall(r"^    experiments/(\S+\.sh(?: \w+)?)$", text, re.MULTILINE)
    )


class Queue(NamedTuple):
    """What the scripts ask of ``python -m apr``, in order, at full size."""

    home: Path
    asked: list[list[str]]

    def of(self, verb: str) -> Iterator[list[str]]:
        return (words[1:] for words in self.asked if words[0] == verb)


def _run(
    script: Sequence[str],
    home: Path,
    python: str,
    minutes: int = 9,
    rehearse: bool = False,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    settings = {
        "OUT": str(home / "out"),
        "WORK": str(home / "work"),
        "NOTES": str(home / "notes.jsonl"),
        "PYTHON": python,
        "MINUTES": str(minutes),
        "REHEARSE": str(int(rehearse)),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    command = [str(FOLDER / script[0]), *script[1:]]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Queue:
    return _noted(tmp_path_factory.mktemp("queue"), RUNS)


def _noted(home: Path, runs: Sequence[Sequence[str]], **more: str) -> Queue:
    python = home / "python"
    python.write_text(NOTE.format(python=sys.executable))
    python.chmod(0o755)
    for run in runs:
        done = _run(run, home, str(python), **more)
        assert done.returncode == 0, (run, done.stderr)
    lines = map(json.loads, (home / "notes.jsonl").read_text().splitlines())
    return Queue(home, [words[2:] for words in lines if words[:2] == ["-m", "apr"]])


def _values(words: Sequence[str], flag: str) -> list[str]:
    return [value for word, value in pairwise(words) if word == flag]


def test_every_flag_is_one_of_its_verb(queue: Queue) -> None:
    verbs = typer.main.get_command(cli.app)
    assert {words[0] for words in queue.asked} == {"sft", "grpo", "export", "eval", "report"}
    for verb, *words in queue.asked:
        verbs.commands[verb].make_context(verb, list(words))  # type: ignore[attr-defined]


def test_steps_and_problems_are_set_from_outside(tmp_path: Path) -> None:
    runs = [("01_throughput.sh",), ("02_threads.sh",), ("06_grid.sh",)]
    queue = _noted(tmp_path, runs, STEPS="7", COUNT="5")
    recipes = [
        config.load(ROOT / words[0], api.Recipe, _values(words, "--set"))
        for words in queue.of("sft")
    ]
    assert [recipe.sft.steps for recipe in recipes] == [20, 7], "a run that says its own keeps it"
    *evaluations, grid = queue.of("eval")
    assert {count for words in evaluations for count in _values(words, "--count")} == {"5"}
    assert _values(grid, "--set") == ["count=5"]
    engines = {model.engine for model in config.load(Path(grid[0]), api.GridRecipe).models}
    assert engines == {_values(words, "--engine")[0] for words in evaluations}
    assert engines == {"embedded://?max_batch=512&max_batch_tokens=8192&kv_gib=16"}


def test_what_was_measured_otherwise_is_measured_again(tmp_path: Path) -> None:
    run = ("02_threads.sh",)
    counts = [
        [_values(words, "--count")[0] for words in _noted(tmp_path, [run], COUNT=count).of("eval")]
        for count in ("5", "5", "6")
    ]
    assert counts == [["5"] * 2, ["5"] * 2, ["5", "5", "6", "6"]]
    trained = [words for words in _noted(tmp_path, [run]).asked if words[0] == "sft"]
    assert len(trained) == 4, "whether there is anything left to train is not for scripts to say"


def test_every_recipe_can_be_read_and_is_small_enough(queue: Queue) -> None:
    data: dict[str, object] = {}
    for words in queue.of("sft"):
        recipe = config.load(ROOT / words[0], api.Recipe, _values(words, "--set"))
        told = recipe.demonstrations
        size = _num_parameters(recipe.network, told.text, recipe.largest_number)
        assert size < 29e6, "below 30M, and below 64 MB in bfloat16"
        assert recipe.context <= recipe.sft.row_length
        (folder,) = _values(words, "--data")
        made = (recipe.demonstrations, recipe.context, recipe.count, recipe.largest_number)
        assert data.setdefault(folder, made) == made, "a folder holds data of one recipe"


@cache
def _num_parameters(network: api.Network, text: Text, largest_number: int) -> int:
    told = Demonstrate(text=text)
    shaped = api.Recipe(SFTConfig(1), told, network=network, largest_number=largest_number)
    return network_of(shaped).num_parameters


def test_runs_start_from_what_earlier_ones_made(queue: Queue) -> None:
    there: set[str] = set()
    for verb, *words in queue.asked:
        if verb == "export":
            there.add(words[1])
        elif verb == "grpo":
            recipe = config.load(ROOT / words[0], api.RLRecipe, _values(words, "--set"))
            assert recipe.checkpoint in there
        elif verb == "eval" and words[0].endswith(".toml"):
            grid = config.load(Path(words[0]), api.GridRecipe)
            assert {model.checkpoint for model in grid.models} <= there
        elif verb == "eval":
            assert words[0] in there


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_queue_runs(tmp_path: Path) -> None:
    """The same commands, flags and recipes, at sizes that take seconds."""
    for run in RUNS:
        done = _run(run, tmp_path, sys.executable, rehearse=True)
        assert done.returncode == 0, (run, done.stdout[-2000:], done.stderr[-2000:])
    out = tmp_path / "out"
    assert (out / "grid" / "report").is_dir()
    assert json.loads((out / "throughput" / "attention.json").read_text())["best"] == "padded"
    kept = {str(p.parent.relative_to(out)) for p in out.rglob("checkpoint/")}
    assert kept == {
        "threads", "threads-balanced", "serial", "threads-children", "threads-rounds",
        "serial-window", "threads-rl", "serial-rl", "paper-threads", "paper-serial", "five",
        "scaling/1m", "scaling/6m", "scaling/15m",
    }  # fmt: skip
    for name in kept:
        assert read_config(out / name / "checkpoint").hidden_size == 32
        assert (
            json.loads((out / name / "checkpoint" / "config.json").read_text())["torch_dtype"]
            == "bfloat16"
        )
        assert next((out / name).glob("eval-*.json")).stat().st_size


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_goes_on_where_its_time_was_over(tmp_path: Path) -> None:
    # One step, the last step, the evaluation: each call gets a little further.
    codes = [
        _run(("02_threads.sh",), tmp_path, sys.executable, minutes, rehearse=True).returncode
        for minutes in (0, 0, 9)
    ]
    assert codes == [75, 75, 0]
    assert [m["step"] for m in read_metrics(tmp_path / "out" / "threads")] == [1, 2]
    assert (tmp_path / "out" / "threads" / "eval-t1.json").is_file()
