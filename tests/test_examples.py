"""The examples as a user runs them: what they print is what came of it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from apr.data.tokenizer import HFCodec
from apr.eval.metrics import summarize
from apr.interfaces import Codec
from apr.testing import ByteCodec
from apr.trace import Thread, Trace, read_traces
from apr.train.log import read_metrics
from tests.data.test_tokenizer import END, byte_level
from tests.remote.fakes import FakeOpenAI, FakeVLLM, Sampler

ROOT = Path(__file__).parents[1]
QUESTION = "What is 17 * 6, and what is 90 - 47?"
REPLIES = {
    "What is 17 * 6?": "10 * 6 = 60, 7 * 6 = 42. <join>102</join>\n\nQuestion: What",
    "What is 90 - 47?": "<join>43</join>",
    QUESTION: "<spawn>\n<thread>What is 17 * 6?</thread>\n<thread>What is 90 - 47?</thread>\n"
    "</spawn>\n<joined>made up",
    "<joined><thread>102</thread><thread>43</thread></joined>": "so <join>102 and 43</join>\n",
}


def example(name: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)


def understands(codec: Codec) -> Sampler:
    """A model that does as it is shown, and goes on behind its stops."""

    def sample(prompt: tuple[int, ...]) -> tuple[int, ...]:
        lines = codec.decode(prompt).splitlines()
        text = REPLIES.get(lines[-1].removeprefix("Question: "), "?")
        return codec.encode(text)

    return sample


def test_own_model_draws_the_tree_of_a_model_that_is_asked_in_text() -> None:
    with FakeOpenAI(understands(ByteCodec())) as server:
        ran = example("own_model.py", "--engine", f"{server.address}&text=true", QUESTION)
    assert (ran.returncode, ran.stderr) == (0, "")
    *drawn, cost = ran.stdout.splitlines()
    assert drawn == [
        "✓ What is 17 * 6, and what is 90 - 47?   55  102 and 43",
        "├── ✓ What is 17 * 6?    30  102",
        "└── ✓ What is 90 - 47?    4  43",
        "  102 and 43, not graded",
    ]
    assert cost.startswith("  89 tokens, 85 in sequence; 3 threads; longest context ")
    asked = [body["prompt"] for body in server.bodies[-4:]]
    assert all("Question: Who wrote Hamlet?\n<join>" in text for text in asked)
    assert sum("17 * 6, and" in text for text in asked) == 2, "children see nothing of their parent"


def test_own_model_speaks_the_ids_of_the_model_that_is_served(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": "{END}"}}')
    codec = HFCodec.load(tmp_path)
    with FakeVLLM(understands(codec), codec) as server:  # type: ignore[arg-type]
        engine = ("--engine", server.address, "--tokenizer", tmp_path)
        ran = example("own_model.py", *engine, QUESTION)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = [re.sub(r" +\d+  ", " # ", line) for line in ran.stdout.splitlines()]
    assert lines[:4] == [
        "✓ What is 17 * 6, and what is 90 - 47? # 102 and 43",
        "├── ✓ What is 17 * 6? # 102",
        "└── ✓ What is 90 - 47? # 43",
        "  102 and 43, not graded",
    ]
    assert all(body["prompt"][0] == codec.bos_id for body in server.bodies)


def test_own_model_says_what_is_wrong_in_a_sentence() -> None:
    ran = example("own_model.py", "--engine", "vllm://127.0.0.1:9", QUESTION)
    assert ran.returncode == 2
    assert "this engine speaks ids: name --tokenizer" in ran.stderr
    ran = example("own_model.py", "--engine", "openai://127.0.0.1:9?context=9&text=true", QUESTION)
    assert ran.returncode == 1
    assert re.fullmatch(r"error: openai at \S+ does not answer .*\n", ran.stderr)


def slowest(numbers: list[int]) -> int:
    """By the rule itself, apart from how the example says it."""
    most = 0
    for n in numbers:
        steps = 0
        while n != 1:
            n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
        most = max(most, steps)
    return most


def children(traces: list[Trace]) -> list[Thread]:
    """Those that were given a number that a problem has."""
    posed = {f" {n}" for trace in traces for n in trace.problem["numbers"]}
    return [t for trace in traces for t in trace.threads[1:] if t.message in posed]


def untimed(trace: Trace) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(call.prompt_ids, call.ids) for t in trace.threads for call in t.calls]


def test_own_task_trains_and_grades_what_it_says_it_does(tmp_path: Path) -> None:
    args = ("--out", tmp_path, "--steps", 150, "--count", 12)
    ran = example("own_task.py", *args)
    assert ran.returncode == 0, ran.stderr
    traces = list(read_traces(tmp_path / "traces.jsonl"))
    assert len(traces) == 12
    for trace in traces:
        right = str(slowest(trace.problem["numbers"]))
        assert trace.grade is not None
        assert trace.grade.correct == (trace.answer == right)
    counted = [t.join == f" {slowest([int(t.message)])}" for t in children(traces)]
    assert sum(counted) > 0.3 * len(counted) > 0, "children can count before roots can hand on"
    figures = summarize(traces)
    (row,) = re.findall(r"^own +apr +12 +(\S+)% .* +(\S+) +(\S+) +(\S+) +\d+/256", ran.stdout, re.M)
    tokens, sequential = figures.total_tokens, figures.sequential_tokens
    made = [100 * figures.accuracy, tokens, sequential, figures.num_children]
    assert [float(x.replace(",", "")) for x in row] == pytest.approx(made, abs=0.51)
    assert len(re.findall(r"^[ │]*[├└]── ", ran.stdout, re.M)) == traces[0].num_children
    assert example("own_task.py", *args).returncode == 0
    again = read_traces(tmp_path / "traces.jsonl")
    assert list(map(untimed, again)) == list(map(untimed, traces))
    assert len(read_metrics(tmp_path)) == 150, "trained already"


def run_from_the_page(which: str, *smaller: tuple[str, str]) -> None:
    """The block of docs/own.md in which ``which`` stands, with less to do."""
    page = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = [block for block in blocks if which in block]
    for much, little in smaller:
        assert much in code
        code = code.replace(much, little)
    names = runpy.run_path(str(ROOT / "examples" / "own_task.py"))
    exec(compile(code, "own.md", "exec"), names)


def test_the_code_of_the_page_compares_threads_with_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_from_the_page("Serial(", ("train(run, 500)", "train(run, 60)"), ("range(200)", "range(4)"))
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["threads", "serial", "best-of-4"]
    spawned = {}
    for name in ("threads", "serial", "best-of-4"):
        traces = list(read_traces(tmp_path / "runs" / "own" / f"{name}.jsonl"))
        assert len(traces) == 4
        spawned[name] = {t.num_children for t in traces}
    assert (spawned["serial"], spawned["best-of-4"]) == ({0}, {4})


def test_the_code_of_the_page_trains_on_by_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_from_the_page(
        "GRPO",
        ("steps=40, prompts=16, group=5", "steps=1, prompts=2, group=2"),
        ('train(Path("runs/own"), 500)', 'train(Path("runs/own"), 2)'),
    )
    (_, metrics) = read_metrics(tmp_path / "runs" / "own-rl")
    assert (metrics["step"], metrics["accuracy"]) == (1, 0.0)
    assert (tmp_path / "runs" / "own-rl" / "checkpoint" / "config.json").is_file()
