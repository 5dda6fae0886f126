"""The checkpoints that come with the package do what they were trained for."""

from __future__ import annotations

from pathlib import Path

import pytest

import apr
from apr import Problem
from apr.api import Inference
from apr.countdown.problem import Split
from apr.eval.metrics import summarize

CHECKPOINTS = sorted(p.parent for p in apr.DEMO.parent.glob("*/config.json"))


def test_demo_is_there() -> None:
    assert apr.DEMO in CHECKPOINTS
    size = sum(f.stat().st_size for c in CHECKPOINTS for f in c.iterdir())
    assert size < 25e6


@pytest.mark.parametrize(
    ("name", "method", "count", "least"),
    [
        ("demo", "apr", 10, 6),
        ("nested", "apr", 10, 3),
        ("five", "apr", 4, 2),
        ("six", "apr", 4, 2),
        ("mini-threads", "apr", 20, 15),
        ("mini-serial", "serial", 20, 7),
        ("rounds", "apr", 20, 15),
    ],
)
def test_unseen_problems_are_solved(name: str, method: str, count: int, least: int) -> None:
    model = apr.load(apr.DEMO.parent / name)
    posed = apr.pose(model.recipe, Split.TEST, count)
    how = Inference(method=method, children=4 if name == "rounds" else None)
    summary = summarize(apr.evaluate(model, posed, how))
    assert summary.num_failed == 0
    assert summary.num_correct >= least, "far below what docs/results.md reports"


def test_a_trained_model_nests_and_its_trace_reads_back_equal(tmp_path: Path) -> None:
    nested = apr.load(apr.DEMO.parent / "nested")
    trace = apr.solve(nested, Problem((9, 7, 3, 2), 41))
    assert trace.depth == 2
    assert trace.num_children > 20
    apr.write_traces(tmp_path / "nested.jsonl", [trace])
    assert list(apr.read_traces(tmp_path / "nested.jsonl")) == [trace]


def test_rounds_have_as_many_children_as_asked_for() -> None:
    """A root spawns once more only where it heard nothing, and products are compared last."""
    rounds = apr.load(apr.DEMO.parent / "rounds")
    posed = apr.pose(rounds.recipe, Split.TEST, 10)
    for children in (1, 2, 4):
        for trace in apr.evaluate(rounds, posed, Inference(children=children)):
            *before, last = trace.root.spawns
            assert all(len(spawn) <= children for spawn in before)
            assert len(last) <= children or len(last) > 8, "or it compares products"
            assert not any(trace.threads[c].success for spawn in before for c in spawn)


def test_greedy_traces_do_not_depend_on_company() -> None:
    model = apr.load()
    problems = apr.pose(model.recipe, Split.TEST, 3)
    together = apr.evaluate(model, problems)
    alone = [apr.evaluate(model, [p])[0] for p in problems]

    def ids(trace: apr.Trace) -> list[tuple[int, ...]]:
        return [c.ids for t in trace.threads for c in t.calls]

    assert list(map(ids, together)) == list(map(ids, alone))
