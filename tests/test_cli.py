"""The verbs as a user types them: what they print, what they leave behind, how they fail."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import apr
from apr import cli
from apr.cli import look, reason
from apr.countdown.problem import Split, split_of
from apr.errors import ContextError, EngineError
from apr.testing import Reply, ScriptedEngine
from apr.trace import End, Thread, Trace, read_traces, write_traces
from apr.types import Grade
from tests.conftest import Ran, Run

RECIPE = """count = 24
held_out = 24
context = 160
largest_number = 40
[sft]
steps = 2
rows = 4
row_length = 160
[demonstrations.problems]
num_numbers = [3, 3]
high = 9
target_high = 30
[demonstrations.solver]
spawn_depth = 1
[network]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
head_dim = 16
"""
SOLVE = ("solve", "3", "5", "8", "--target", "29")
LONG = 300 * "x"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user has trained a model with nothing but the command line."""
    home = tmp_path_factory.mktemp("home")
    (home / "recipes").mkdir()
    (home / "recipes" / "tiny.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        with pytest.raises(SystemExit) as exit:
            cli.app(["sft", "tiny", "--workers", "1"], prog_name="apr")
    assert exit.value.code == 0
    return home


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder to work in, with its own copy of all that."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(apr, "DEMO", Path("runs/tiny/checkpoint"))
    return tmp_path


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond ``num_bytes``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def assert_bad_input(ran: Ran, *parts: str) -> None:
    """One sentence on standard error that names what is wrong, and nothing else."""
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    for part in parts:
        assert part in ran.err


def test_help_reads_like_documentation(run: Run) -> None:
    for args in ([], ["--help"], ["-h"]):
        ran = run(*args)
        assert ran.code == 0
        for verb in ("solve", "eval", "table", "trace", "grade", "data", "sft"):
            assert verb in ran.out
        assert "apr solve 22 26 31 53 --target 27" in ran.out


@pytest.mark.parametrize("verb", ["solve", "eval", "table", "trace", "grade", "data", "sft"])
def test_every_verb_has_help(run: Run, verb: str) -> None:
    ran = run(verb, "--help")
    assert ran.code == 0
    assert f"apr {verb}" in ran.out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"apr {apr.__version__}\n", "")


def test_what_needs_no_model_imports_no_torch(here: Path) -> None:
    traces = here / "traces.jsonl"
    (here / "answers.jsonl").write_text('{"numbers": [3, 5], "target": 8, "answer": "3 + 5"}\n')
    write_traces(traces, [])
    code = (
        "import sys\nfrom apr import cli\n"
        "for args in (['--help'], ['grade', 'answers.jsonl'], ['trace', 'traces.jsonl']):\n"
        "    try: cli.app(args)\n"
        "    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_training_out_of_time_goes_on_where_it_stopped(here: Path, run: Run) -> None:
    train = ("sft", "tiny", "--out", "runs/pieces", "--workers", 1)
    ran = run(*train, "--minutes", 0)
    assert ran.code == 75
    assert ran.err.startswith("error: out of time after step 1 of ")
    assert not Path("runs/pieces/checkpoint").exists()
    assert run(*train).code == 0
    metrics = [Path("runs", name, "metrics.jsonl").read_bytes() for name in ("tiny", "pieces")]
    assert metrics[0] == metrics[1]


def test_an_exported_checkpoint_is_smaller_and_solves(here: Path, run: Run) -> None:
    ran = run("export", "runs/tiny/checkpoint", "small")
    assert ran.code == 0
    assert ran.out.startswith("small: 0.")
    weights = [Path(p, "model.safetensors") for p in ("runs/tiny/checkpoint", "small")]
    assert weights[1].stat().st_size < 0.6 * weights[0].stat().st_size
    assert run(*SOLVE, "--model", "small").code == 0
    assert_bad_input(run("export", "nowhere", "new"), "no checkpoint at nowhere")


def test_the_mean_of_two_checkpoints_solves(here: Path, run: Run) -> None:
    tiny = "runs/tiny/checkpoint"
    ran = run("average", tiny, tiny, "mean")
    assert (ran.code, ran.out) == (0, "checkpoint in mean\n")
    weights = [Path(p, "model.safetensors").read_bytes() for p in (tiny, "mean")]
    assert weights[0] == weights[1]
    assert run(*SOLVE, "--model", "mean").code == 0
    assert_bad_input(run("average", tiny, "mean"), "two checkpoints or more")


def test_export_replaces_a_checkpoint_and_nothing_else(here: Path, run: Run) -> None:
    Path("precious").mkdir()
    Path("precious/diary.txt").write_text("dear diary")
    Path("file").write_text("mine")
    for there in ("precious", "file", "."):
        assert_bad_input(run("export", "runs/tiny/checkpoint", there), "name another")
    assert Path("precious/diary.txt").read_text() == "dear diary"
    assert Path("file").read_text() == "mine"
    Path("empty").mkdir()
    for _ in range(2):
        assert run("export", "runs/tiny/checkpoint", "empty").code == 0


def test_eval_refuses_what_it_cannot_write_before_it_samples(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(prompt: str) -> str:
        raise AssertionError("sampled in vain")

    scripted(monkeypatch, reply)
    Path("file").write_text("mine")
    assert_bad_input(run("eval", "--count", 2, "--out", "file/t.jsonl"), "cannot write")
    assert_bad_input(run(*SOLVE, "--trace", "runs"), "cannot write runs (a folder is there)")
    assert not Path("new").exists()


def test_what_had_ended_is_kept_when_the_rest_is_cut_off(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def reply(prompt: str) -> str:
        nonlocal asked
        asked += 1
        if asked > 3:
            raise ContextError("the server refuses it")
        return "<join></join>"

    scripted(monkeypatch, reply)
    ran = run("eval", "--count", 6, "--concurrency", 1, "--out", "t.jsonl")
    assert ran.code == 2
    assert "3 traces that had ended are in t.ended.jsonl" in ran.err
    assert len(list(read_traces(Path("t.ended.jsonl")))) == 3
    assert not Path("t.jsonl").exists()
    asked = 2
    assert run("eval", "--count", 6, "--concurrency", 1, "--out", "t.jsonl").code == 2
    assert len(list(read_traces(Path("t.ended.jsonl")))) == 3, "what was saved before stays"
    assert Path("t.ended-2.jsonl").exists()


def test_what_had_ended_outlives_a_kill(here: Path) -> None:
    code = """
import os, signal
from apr import cli
from apr.eval import journal
journal.FLUSH_EVERY, flush = 2, journal.Journal.flush
def flush_and_die(kept):
    flush(kept)
    os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.flush = flush_and_die
cli.app(["eval", "runs/tiny/checkpoint", "--count", "6", "--out", "t.jsonl"])
"""
    died = subprocess.run([sys.executable, "-c", code], check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(list(read_traces(Path("t.ended.jsonl")))) == 2


def test_runs_that_failed_are_told_of(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(prompt: str) -> str | Reply:
        return Reply("", error=EngineError("it went away")) if " 3" in prompt else "<join></join>"

    scripted(monkeypatch, reply)
    ran = run("eval", "--count", 12, "--out", "t.jsonl")
    failed = [t for t in read_traces(Path("t.jsonl")) if t.error is not None]
    assert 0 < len(failed) < 12
    assert (ran.code, ran.out.count("left out")) == (0, 1)
    assert f"note: {len(failed)} of 12 runs failed: EngineError: it went away" in ran.err


def test_traces_that_nobody_graded(here: Path, run: Run) -> None:
    assert run("eval", "--count", 2, "--out", "t.jsonl").code == 0
    traces = [replace(t, grade=None, meta={"model": None}) for t in read_traces(Path("t.jsonl"))]
    write_traces(Path("t.jsonl"), traces)
    table = run("table", "t.jsonl").out
    assert "not graded" in table
    assert "left out" not in table
    assert run("trace", "t.jsonl").code == 0


def test_sft_says_what_it_made(here: Path, run: Run) -> None:
    ran = run("sft", "recipes/tiny.toml", "--workers", 1)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("data/tiny/train: 24 demonstrations of 24, 100.0% solved, ")
    assert lines[1].startswith("data/tiny/valid: 24 demonstrations of 24")
    assert lines[2].startswith("held-out loss ")
    assert lines[-1] == "checkpoint in runs/tiny/checkpoint"


def test_data_takes_overrides(here: Path, run: Run) -> None:
    ran = run("data", "tiny", "--out", "more", "--workers", 1, "--set", "count=3")
    assert ran.code == 0
    assert ran.out.startswith("more/train: 3 demonstrations of 3")
    assert {"more/train/manifest.json", "more/valid/manifest.json"} <= files(here)


def test_solve_draws_the_tree_and_grades(here: Path, run: Run) -> None:
    ran = run(*SOLVE)
    assert (ran.code, ran.err) == (0, "")
    assert "29 : 8 5 3" in ran.out
    assert " in sequence; 1 thread; longest context " in ran.out


def test_solve_says_when_a_problem_is_of_another_kind(here: Path, run: Run) -> None:
    assert "trained on" not in run("solve", "5", "3", "4", "--target", "17").err
    ran = run("solve", "5", "3", "40", "--target", "25", "--json")
    assert ran.err == (
        "note: this model was trained on 3 numbers from 1 to 9, targets from 10 to 30\n"
    )
    assert json.loads(ran.out)["numbers"] == [5, 3, 40]


def test_solve_for_programs(here: Path, run: Run) -> None:
    ran = run(*SOLVE, "--json", "--temperature", 1, "--seed", 3, "--context", 60)
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert facts["numbers"] == [3, 5, 8]
    assert facts["target"] == 29
    assert isinstance(facts["correct"], bool)
    assert facts["total_tokens"] == sum(t["num_tokens"] for t in facts["threads"])
    assert facts["longest_context"] <= 60
    assert run(*SOLVE, "--json", "--temperature", 1, "--seed", 3, "--context", 60).code == 0


def test_solve_keeps_the_trace_and_trace_draws_it(here: Path, run: Run) -> None:
    assert run(*SOLVE, "--trace", "kept/trace.jsonl").code == 0
    (kept,) = read_traces(Path("kept/trace.jsonl"))
    assert kept.meta["model"] == "runs/tiny/checkpoint"
    drawn = run("trace", "kept/trace.jsonl")
    assert (drawn.code, drawn.err) == (0, "")
    assert "29 : 8 5 3" in drawn.out
    assert len(drawn.out.splitlines()) > len(run("table", "kept/trace.jsonl").out.splitlines()) - 2


def scripted(monkeypatch: pytest.MonkeyPatch, reply: Callable[[str], str | Reply]) -> None:
    """Load the tiny model with an engine that says what ``reply`` says."""
    from apr import api

    load = api.load

    def load_scripted(checkpoint: Path, engine: str | None = None) -> api.Model:
        model = load(checkpoint)
        return api.Model(ScriptedEngine(reply, model.codec), model.codec, model.recipe, model.about)

    monkeypatch.setattr(api, "load", load_scripted)


def solution(prompt: str) -> str:
    if "<joined>" in prompt:
        return "<join> 8 * 3 = 24 , 24 + 5 = 29</join>"
    if "," in prompt:
        return " = 24 : 24 5 24 + 5 = 29 !<join> 8 * 3 = 24 , 24 + 5 = 29</join>"
    return "<spawn><thread> 29 : 5 , 8 * 3</thread></spawn>"


def test_a_solved_problem_is_told_as_an_expression(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, solution)
    out = run(*SOLVE, "--trace", "t.jsonl").out
    assert "✓ 8 * 3 + 5 = 29" in out
    assert "└── ✓ 29 : 5 , 8 * 3" in out
    assert "2 threads" in out
    facts = json.loads(run(*SOLVE, "--json").out)
    assert facts["correct"] is True
    assert facts["expression"] == "8 * 3 + 5"
    drawn = run("trace", "t.jsonl").out
    assert "= 24 : 24 5 24 + 5 = 29 !" in drawn


def test_a_live_tree_gives_way_to_the_final_one(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, solution)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=20)
    monkeypatch.setattr(reason, "console_of", lambda: console)
    assert run(*SOLVE).code == 0
    assert "\x1b[?25l" in screen.getvalue()
    assert screen.getvalue().endswith(" s\x1b[0m\n")


def test_a_failing_engine_is_not_the_users_fault(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, lambda prompt: Reply("", error=EngineError("out of order")))
    ran = run(*SOLVE, "--trace", "t.jsonl")
    assert ran.code == 1
    assert ran.err == "error: EngineError: out of order\n"
    assert Path("t.jsonl").is_file()
    assert run("eval", "--count", 2).code == 1
    assert not Path("runs/eval").exists()


def test_eval_prints_a_row_and_keeps_traces(here: Path, run: Run) -> None:
    ran = run("eval", "--count", 5, "--method", "serial")
    assert (ran.code, ran.err) == (0, "")
    assert "tiny" in ran.out
    assert "traces in runs/eval/tiny-serial.jsonl" in ran.out
    assert [file.name for file in Path("runs/eval").iterdir()] == ["tiny-serial.jsonl"]
    assert len(list(read_traces(Path("runs/eval/tiny-serial.jsonl")))) == 5
    rows = run("table", "runs/eval/tiny-serial.jsonl", "runs/eval/tiny-serial.jsonl").out
    assert rows.count("serial") == 2


def test_eval_for_programs(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, lambda prompt: solution(prompt) if "29 :" in prompt else "<join></join>")
    Path("p.jsonl").write_text(
        '{"numbers": [3, 5, 8], "target": 29}\n{"numbers": [1, 1, 1], "target": 40}\n'
    )
    facts = json.loads(
        run("eval", "--problems", "p.jsonl", "--json", "--out", "o.jsonl", "--concurrency", 1).out
    )
    assert facts["num_problems"] == 2
    assert facts["accuracy"] == 0.5
    assert facts["interval"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert facts["out"] == "o.jsonl"
    assert "without any solution: 1 of them" in run("eval", "--problems", "p.jsonl").out
    one = run("eval", "--problems", "p.jsonl", "--count", 1, "--json", "--force")
    assert json.loads(one.out)["accuracy"] == 1.0


def test_eval_takes_problems_of_another_kind_and_says_so(here: Path, run: Run) -> None:
    posed = [((10**6, 3, 5, 7), 29), ((3, 5, 8), 29), ((2, 3), 10**9), ((3, 5, 8), 29)]
    lines = [json.dumps({"numbers": n, "target": t, "source": "mine"}) for n, t in posed]
    Path("p.jsonl").write_text("\n".join(lines))
    ran = run("eval", "--problems", "p.jsonl", "--out", "o.jsonl", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["num_problems"] == 4
    assert "note: 2 of 4 problems are of another kind" in ran.err
    assert "3 numbers from 1 to 9" in ran.err
    assert "note: 1 of 4 problems were met before" in ran.err
    known = sum(split_of(numbers) is Split.TRAIN for numbers, _ in posed)
    assert f"note: {known} of 4 problems have numbers that" in ran.err
    traces = list(read_traces(Path("o.jsonl")))
    assert [(tuple(t.problem["numbers"]), t.problem["target"]) for t in traces] == posed
    assert "note" not in run("eval", "--count", 2).err


def test_eval_poses_the_problems_of_a_recipe(here: Path, run: Run) -> None:
    recipe = RECIPE.replace("target_high = 30", "target_high = 10")
    Path("recipes/other.toml").write_text(recipe)
    assert run("eval", "--task", "other", "--count", 3, "--split", "valid").code == 0
    traces = list(read_traces(Path("runs/eval/tiny-apr.jsonl")))
    assert {t.problem["target"] for t in traces} == {10}
    changed = "demonstrations.problems.target_high=11"
    options = ("--count", 8, "--set", changed, "--out", "o.jsonl")
    assert run("eval", "--task", "other", *options).code == 0
    assert 11 in {t.problem["target"] for t in read_traces(Path("o.jsonl"))}


def test_eval_does_not_replace_traces_unasked(here: Path, run: Run) -> None:
    out = here / "runs/eval/tiny-apr.jsonl"
    out.parent.mkdir()
    out.write_text("precious")
    assert_bad_input(run("eval", "--count", 2), "runs/eval/tiny-apr.jsonl is there", "--force")
    assert out.read_text() == "precious"
    assert run("eval", "--count", 2, "--force").code == 0
    assert len(list(read_traces(out))) == 2


def test_trace_draws_the_one_asked_for_or_all(here: Path, run: Run) -> None:
    assert run("eval", "--count", 3, "--out", "t.jsonl").code == 0
    second, every = run("trace", "t.jsonl", "--index", 1).out, run("trace", "t.jsonl", "--all").out
    assert second in every
    assert every.count(" in sequence; ") == 3
    assert_bad_input(run("trace", "t.jsonl", "--index", 3), "no trace 3")


def test_trace_makes_a_page_and_a_drawing(here: Path, run: Run) -> None:
    assert run(*SOLVE, "--trace", "t.jsonl").code == 0
    assert run("trace", "t.jsonl", "--out", "drawn/t.html").out.startswith("drawn/t.html: ")
    page = Path("drawn/t.html").read_text()
    assert "29 : 8 5 3" in page
    assert run("trace", "t.jsonl", "--out", "t.svg").code == 0
    assert Path("t.svg").read_text().startswith("<svg")
    assert_bad_input(run("trace", "t.jsonl", "--out", "t.png"), ".svg")
    assert_bad_input(run("trace", "t.jsonl", "--all", "--out", "t.html"), "--all")
    assert not Path("t.png").exists()


def test_trace_shows_no_text_without_the_tokenizer(here: Path, run: Run) -> None:
    assert run(*SOLVE, "--trace", "t.jsonl").code == 0
    whole = run("trace", "t.jsonl").out
    shutil.move("runs/tiny/checkpoint", "elsewhere")
    bare = run("trace", "t.jsonl").out
    assert "tokenizer that reads its text is not here" in bare
    assert "tokenizer" not in whole
    assert run("trace", "t.jsonl", "--model", "elsewhere").out == whole
    spoil_tokenizer(here / "elsewhere")
    assert_bad_input(run("trace", "t.jsonl", "--model", "elsewhere"), "tokenizer in elsewhere")


def test_explain_tells_why_problems_were_not_solved(here: Path, run: Run) -> None:
    assert run("eval", "--count", 6, "--out", "t.jsonl").code == 0
    graded = [trace.grade for trace in read_traces(Path("t.jsonl"))]
    num_wrong = sum(not grade.correct for grade in graded if grade)
    found = json.loads(run("explain", "t.jsonl", "--json").out)
    assert found["all"]["problems"] == {"num": 6, "num_wrong": num_wrong}
    assert sum(found["all"]["causes"].values()) == num_wrong
    assert found["3 numbers"]["problems"]["num"] == 6
    table = run("explain", "t.jsonl").out
    assert "3 numbers, largest 1 to 25" in table
    assert table.count("not solved: ") == len(found["all"]["causes"])


def test_grpo_trains_a_checkpoint_further(here: Path, run: Run) -> None:
    Path("recipes/rl.toml").write_text(
        'checkpoint = "runs/tiny/checkpoint"\nvalidation = 1\n'
        "[grpo]\nsteps = 2\nprompts = 1\ngroup = 2\n"
    )
    ran = run("grpo", "recipes/rl.toml", "--minutes", 0)
    assert ran.code == 75
    assert ran.err.startswith("error: out of time after step 1 of 2")
    assert run("grpo", "recipes/rl.toml", "--set", "seed=1").code == 2, "a run is of one recipe"
    ran = run("grpo", "recipes/rl.toml")
    assert (ran.code, ran.out) == (0, "checkpoint in runs/rl/checkpoint\n")


def test_explain_takes_no_samples(here: Path, run: Run) -> None:
    how = ("--method", "best_of_n", "--samples", 2, "--temperature", 1)
    assert run("eval", "--count", 2, *how, "--out", "t.jsonl").code == 0
    assert_bad_input(
        run("explain", "t.jsonl"), "puts samples together", "of the method that it draws"
    )


def test_explain_wants_the_model_that_wrote(here: Path, run: Run) -> None:
    Path("empty.jsonl").touch()
    assert_bad_input(run("explain", "empty.jsonl"), "empty.jsonl holds no trace")
    assert run("eval", "--count", 2, "--out", "t.jsonl").code == 0
    shutil.move("runs/tiny/checkpoint", "elsewhere")
    assert_bad_input(run("explain", "t.jsonl"), "no checkpoint at runs/tiny/checkpoint")
    assert run("explain", "t.jsonl", "--model", "elsewhere").code == 0
    spoil_tokenizer(here / "elsewhere")
    assert_bad_input(run("explain", "t.jsonl", "--model", "elsewhere"), "name their own model")


def test_a_checkpoint_and_traces_of_ones_own_task(here: Path, run: Run) -> None:
    assert run("eval", "--count", 1, "--out", "t.jsonl").code == 0
    (trace,) = read_traces(Path("t.jsonl"))
    grade = Grade(True, "correct")
    own = replace(trace, problem={"sum": "3 + 4"}, answer="3 + 4 = 7", grade=grade)
    write_traces(Path("own.jsonl"), [own])
    refusal = "poses {'sum': '3 + 4'}, which is no Countdown problem"
    assert_bad_input(run("explain", "own.jsonl"), refusal)
    assert "✓ 3 + 4 = 7" in run("trace", "own.jsonl").out
    assert run("table", "own.jsonl").code == 0
    manifest = Path("runs/tiny/checkpoint/apr.json")
    for told in ("{}", '{"task": "sums"}', "[]"):
        manifest.write_text(told)
        assert_bad_input(run(*SOLVE), "apr sft did not make it", "docs/own.md")
    manifest.write_text("{")
    assert_bad_input(run(*SOLVE), "apr.json is damaged")
    manifest.unlink()
    assert_bad_input(run(*SOLVE), "apr sft did not make it")


def test_grade_answers_line_by_line(tmp_path: Path, run: Run) -> None:
    lines = [
        {"numbers": [22, 26, 31, 53], "target": 27, "answer": "26+(53-31)/22"},
        {"numbers": [3, 5, 8], "target": 64, "answer": " 5 + 3 = 8 , 8 * 8 = 64"},
        {"numbers": [3, 5, 8], "target": 64, "answer": "3 * 5"},
        {"numbers": [3, 5, 8], "target": 64, "answer": None},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    ran = run("grade", tmp_path / "a.jsonl")
    assert (ran.code, ran.err) == (0, "")
    verdicts = list(map(json.loads, ran.out.splitlines()))
    assert [v["correct"] for v in verdicts] == [True, True, False, False]
    assert all(set(v) == {"correct", "reason"} for v in verdicts)


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("verb", ["grade", "table"])
def test_what_prints_to_a_full_disk(tmp_path: Path, verb: str) -> None:
    line = '{"numbers": [3, 5], "target": 8, "answer": "3+5"}\n'
    (tmp_path / "grade").write_text(9 * line)
    write_traces(tmp_path / "table", [Trace({}, "apr", (root(),))])
    with FULL.open("w") as full:
        done = program(verb, tmp_path / verb, stdout=full)
    assert done.returncode == 2
    assert done.stderr == (
        "error: cannot write standard output (No space left on device): "
        "make room there or send it elsewhere\n"
    )


def test_what_goes_to_a_terminal_of_few_characters(tmp_path: Path) -> None:
    write_traces(tmp_path / "t", [Trace({}, "apr", (root(),))])
    done = program("trace", tmp_path / "t", stdout=subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("? ")


def root() -> Thread:
    return Thread(0, None, "", (), (), End.MALFORMED, "")


def program(*args: object, stdout: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    """Type ``apr ...`` to a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "apr", *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(Path(apr.__file__).parents[1]), **variables},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def test_grade_reads_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"numbers": [3, 5], "target": 8, "answer": "3+5"}'
    monkeypatch.setattr(sys, "stdin", io.StringIO(line))
    assert run("grade", "-").out == '{"correct": true, "reason": "correct"}\n'


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "3",
        '{"numbers": [3, 5], "target": 8}',
        '{"numbers": 3, "target": 8, "answer": "3"}',
        '{"numbers": [-3, 5], "target": 8, "answer": "3"}',
        '{"numbers": [3, 5], "target": "8", "answer": "3"}',
        '{"numbers": [3, 5], "target": 8, "answer": 8}',
        "[" * 100_000,
        '{"numbers": [' + "9" * 5000 + '], "target": 8, "answer": "8"}',
    ],
)
def test_grade_names_the_line_that_is_no_answer(tmp_path: Path, run: Run, line: str) -> None:
    good = '{"numbers": [3, 5], "target": 8, "answer": "3+5"}\n'
    (tmp_path / "a.jsonl").write_text(good + line)
    assert_bad_input(run("grade", tmp_path / "a.jsonl"), "line 2")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("solve", "3", "-5", "7", "--target", "9"), ["number -5", "from 1 up"]),
        (("solve", "0", "5", "7", "--target", "9"), ["number 0"]),
        (("solve", "3", "5", "--target", "-8"), ["target -8"]),
        (("solve", "3", "x", "--target", "8"), ["'x' is no whole number"]),
        (("solve", "3", "5", "--target", "8.5"), ["'8.5' is no whole number"]),
        (("solve", "3", "5", "--target", "8", "--modle", "x"), ["'--modle' is no option"]),
        (("solve", "3", "5"), ["Missing option '--target'", "apr solve --help"]),
        (("solve", "--target", "8"), ["Missing argument", "apr solve --help"]),
        (("solve", "1", "1", "1", "--target", "40"), ["no way leads from 1 1 1 to 40"]),
        ((*SOLVE, "--model", "nothing"), ["no checkpoint at nothing"]),
        ((*SOLVE, "--context", "4"), ["no room in a context of 4"]),
        ((*SOLVE, "--context", "0"), ["context is 0"]),
        ((*SOLVE, "--depth", "-1"), ["depth is -1"]),
        ((*SOLVE, "--seconds", "nan"), ["seconds is nan"]),
        ((*SOLVE, "--max-children", "0"), ["--max-children", "equal to 1"]),
        ((*SOLVE, "--tokens", "0"), ["--tokens", "equal to 1"]),
        ((*SOLVE, "--method", "magic"), ["'method'", "'apr', 'serial'", "'magic'"]),
        ((*SOLVE, "--top-p", "2"), ["top_p"]),
        ((*SOLVE, "--children", "3"), ["not trained to heed a number of children"]),
        ((*SOLVE, "--seed", "x"), ["--seed", "apr solve --help"]),
        (("eval", "nothing"), ["no checkpoint at nothing"]),
        (("eval", "--problems", "nothing.jsonl"), ["nothing.jsonl"]),
        (("eval", "--problems", "recipes"), ["recipes"]),
        (("eval", "--problems", "recipes/tiny.toml"), ["tiny.toml, line 1"]),
        (("eval", "--problems", os.devnull), ["holds no problem"]),
        (("eval", "--problems", "p", "--task", "tiny"), ["give one of them"]),
        (("eval", "--task", "magic"), ["no recipe at magic"]),
        (("eval", "--split", "magic"), ["--split", "magic"]),
        (("eval", "--count", "0"), ["--count"]),
        (("trace", "nothing.jsonl"), ["no trace file at nothing.jsonl"]),
        (("trace", "recipes/tiny.toml"), ["tiny.toml, line 1"]),
        (("trace", "empty.jsonl"), ["empty.jsonl holds no trace"]),
        (("trace", "--all", "empty.jsonl"), ["empty.jsonl holds no trace"]),
        (("table", "nothing.jsonl"), ["no trace file at nothing.jsonl"]),
        (("table", os.devnull), [os.devnull]),
        (("grade", "nothing.jsonl"), ["cannot read answers from nothing.jsonl"]),
        (("data", "nothing.toml"), ["no recipe at nothing.toml"]),
        (("data", "tiny", "--set", "magic=3"), ["unknown key 'magic'"]),
        (("data", "tiny", "--set", "count=0", "--out", "new"), ["count is 0"]),
        (("data", "tiny", "--set", "count=3"), ["other settings"]),
        (("sft", "tiny", "--set", "sft.stepz=3"), ["unknown key 'sft.stepz'", "'steps'"]),
        (("sft", "tiny", "--set", "sft.steps=0"), ["steps is 0"]),
        (("sft", "tiny", "--set", "sft.accumulate=0"), ["accumulate is 0"]),
        (("sft", "tiny", "--set", "sft.optim.lr=-1.0"), ["lr is -1.0"]),
        (("sft", "tiny", "--set", "sft.optim.betas=[2.0, 0.9]"), ["betas are (2.0, 0.9)"]),
        (("sft", "tiny", "--set", "network.num_key_value_heads=3"), ["num_key_value_heads is 3"]),
        (("sft", "tiny", "--set", "seed=-1"), ["seed is -1"]),
        ((*SOLVE, "--temperature", "nan"), ["temperature"]),
        ((*SOLVE, "--engine", "embedded://?kv_gib=inf"), ["kv_gib"]),
        (("sft", "tiny", "--set", "sft.steps=3"), ["another recipe", "--out"]),
        (("sft", "tiny", "--out", "r", "--data", "d", "--set", "checkpoint=x"), ["at x"]),
        (("sft", "tiny", "--set", "demonstrations.split=test"), ["demonstrations.split"]),
        (("eval", "--problems", "p.jsonl", "--split", "valid"), ["--problems", "--split"]),
        ((*SOLVE, "--trace", "."), ["cannot write .", "no name"]),
        (("eval", "--count", "1", "--out", ".", "--force"), [". is a folder", "--out"]),
        (("sft", LONG), [LONG, "File name too long"]),
        (("table", LONG), [LONG, "File name too long"]),
        (("eval", LONG), [LONG, "File name too long"]),
        (("eval", "--out", LONG), [LONG, "File name too long"]),
        (("report", LONG), [LONG, "File name too long"]),
        ((*SOLVE, "--model", LONG), [LONG, "File name too long"]),
        ((*SOLVE, "--trace", LONG), [LONG, "File name too long"]),
        (("slove",), ["slove", "apr --help"]),
        (("--magic",), ["--magic", "apr --help"]),
    ],
    ids=lambda x: " ".join(x).replace(LONG, "LONG") if isinstance(x, tuple) else None,
)
def test_bad_input_gets_one_sentence(
    here: Path, run: Run, args: tuple[str, ...], parts: list[str]
) -> None:
    Path("empty.jsonl").touch()
    before = files(here)
    ran = run(*args)
    assert_bad_input(ran, *parts)
    assert files(here) <= before | {"new/train/plan.json"}


@pytest.mark.parametrize(
    "args",
    [
        ("sft", "locked/x.toml"),
        ("table", "locked/x.jsonl"),
        (*SOLVE, "--model", "locked/m"),
        ("eval", "--out", "locked/x.jsonl"),
        ("report", "locked/x"),
    ],
    ids=lambda args: args[0],
)
def test_a_locked_folder(here: Path, run: Run, args: tuple[str, ...]) -> None:
    Path("locked").mkdir(mode=0)
    if os.access("locked", os.R_OK):
        pytest.skip("nothing is locked to root")
    assert_bad_input(run(*args), "cannot use locked/", "Permission denied")


def test_a_locked_file(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(path: Path, **_: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_text", locked)
    assert_bad_input(run("sft", "tiny"), "cannot use recipes/tiny.toml", "Permission denied")


def test_what_the_system_refuses_of_no_file(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Iterator[None]:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(look, "read_traces", refuse)
    ran = run("table", "t.jsonl")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: the system refuses (Cannot allocate memory): ")


def spoil_tokenizer(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    path.write_text(path.read_text().replace('" 40"', '" 41"'))


def test_a_checkpoint_of_another_tokenizer(here: Path, run: Run) -> None:
    spoil_tokenizer(Path("runs/tiny/checkpoint"))
    assert_bad_input(run(*SOLVE), "tokenizer.json in runs/tiny/checkpoint")


def test_a_recipe_with_a_foreign_key(here: Path, run: Run) -> None:
    Path("recipes/other.toml").write_text("learning_rate = 3\n" + RECIPE)
    assert_bad_input(run("sft", "other"), "unknown key 'learning_rate'")
    assert not Path("runs/other").exists()
    assert not Path("data/other").exists()


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b[:60] + b"!!" + b[62:]])
def test_a_corrupt_shard(here: Path, run: Run, spoil: Callable[[bytes], bytes]) -> None:
    (shard,) = Path("data/tiny/train").glob("*.parquet")
    shard.write_bytes(spoil(shard.read_bytes()))
    before = files(here)
    ran = run("sft", "tiny", "--out", "runs/new", "--workers", 1)
    assert_bad_input(ran._replace(out=""), str(shard), "damaged")
    assert files(here) == before


@pytest.mark.parametrize(
    "args",
    [
        (*SOLVE, "--trace", "new/t.jsonl"),
        ("eval", "--count", "2", "--out", "new/t.jsonl"),
        ("data", "tiny", "--out", "new", "--workers", "1"),
    ],
    ids=lambda args: args[0],
)
def test_a_full_disk(here: Path, run: Run, args: tuple[str, ...]) -> None:
    before = files(here)
    with full_disk(100):
        ran = run(*args)
    assert_bad_input(ran, "cannot write new")
    assert files(here) == before


def test_a_disk_that_fills_up_in_training(here: Path, run: Run) -> None:
    with full_disk(20_000):
        ran = run("sft", "tiny", "--out", "new", "--workers", "1")
    assert_bad_input(ran._replace(out=""), "cannot write new")
    assert not Path("new/checkpoint").exists()
    assert not list(Path("new").rglob("*.apr-*"))
    assert run("sft", "tiny", "--out", "new", "--workers", "1").code == 0


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As at a prompt: what a shell starts with ``&`` ignores Ctrl-C, and so did these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_quietly(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(prompt: str) -> str:
        signal.raise_signal(signal.SIGINT)
        return "<join></join>"

    scripted(monkeypatch, interrupt)
    for args in (SOLVE, ("eval", "--count", 1)):
        code, out, err = run(*args)
        assert (code, out, err.strip()) == (130, "", "")
    assert not Path("runs/eval").exists()


def test_the_program_is_installed() -> None:
    program = Path(sys.executable).with_name("apr")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"apr {apr.__version__}\n"
