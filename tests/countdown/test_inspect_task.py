"""Countdown under ``inspect_ai``, run by it with a model that says what a test wants."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="inspect_ai is not installed: pip install -e '.[inspect]'")

from inspect_ai import eval as run_tasks
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from apr.countdown.answer import expression
from apr.countdown.inspect_task import answer_of, countdown
from apr.countdown.problem import ProblemSpec, Split, problem
from tests.countdown.paths import first_path

# What inspect_ai deprecates and leaves open is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

SPEC = ProblemSpec((3, 3), high=20, target_high=50)


def scores(task: Any, replies: list[str], folder: Path) -> list[Any]:
    outputs = [ModelOutput.from_content("mockllm/model", reply) for reply in replies]
    for output in outputs:
        # Otherwise it counts tokens itself, and fetches a tokenizer for that.
        output.usage = ModelUsage()
    model = get_model("mockllm/model", custom_outputs=outputs)
    (log,) = run_tasks(task, model=model, log_dir=str(folder), display="none", max_samples=1)
    assert log.status == "success", log.error
    # Here, where it is ignored, and not in whichever test comes next.
    gc.collect()
    return [sample.scores["exact"] for sample in log.samples]


def test_the_strict_grader_decides(tmp_path: Path) -> None:
    posed = [problem(SPEC, 0, i, Split.TEST) for i in range(4)]
    right = [expression(first_path(p.numbers, p.target) or ()) for p in posed]
    replies = [
        f"Let me see.\nAnswer: {right[0]}",
        f"Answer: 1 + 1\nNo.\n**Answer:** `{right[1]}`.",
        f"Answer: {posed[2].target}",
        "I give up.",
    ]
    task = countdown(count=4, num_numbers=3, high=20, target_high=50)
    verdicts = scores(task, replies, tmp_path)
    assert [v.value for v in verdicts] == [True, True, False, False]
    assert verdicts[1].answer == right[1]
    assert "Not every number is used" in verdicts[2].explanation
    assert "No solution is claimed" in verdicts[3].explanation


def test_it_takes_a_file_of_problems(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    posed = [{"numbers": [3, 5, 8], "target": 64}, {"numbers": [1, 2], "target": 3}]
    path.write_text("\n".join(map(json.dumps, posed)))
    task = countdown(problems=str(path))
    (first, second) = task.dataset
    assert "Make 64 of the numbers 3, 5, 8." in first.input
    assert second.metadata == posed[1]
    verdicts = scores(task, ["Answer: (3 + 5) * 8", "Answer: 2 - 1"], tmp_path)
    assert [v.value for v in verdicts] == [True, False]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Answer: 1 + 2", "1 + 2"),
        ("**Answer:** `1 + 2`.", "1 + 2"),
        ("answer : $1 + 2$", "1 + 2"),
        ("Answer: 9\nno, Answer: 1 + 2\nDone.", "1 + 2"),
        ("Answer:", ""),
        ("It is 1 + 2", None),
        ("", None),
    ],
)
def test_the_answer_is_what_the_last_such_line_says(completion: str, answer: str | None) -> None:
    assert answer_of(completion) == answer
