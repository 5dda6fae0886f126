from __future__ import annotations

import asyncio
import random
from itertools import combinations
from statistics import fmean

import pytest

from apr.eval import samples as module
from apr.eval.samples import Sample, cons_n, pass_n, samples_of, subtree
from apr.methods.apr import APR
from apr.methods.best_of_n import BestOfN
from apr.methods.self_consistency import SelfConsistency
from apr.methods.serial import Serial
from tests.eval.cells import trace
from tests.methods.doubling import Doubling
from tests.methods.scripted import runtime_of


def sample(claim: str | None, correct: bool = False, tokens: int = 10, number: int = 0) -> Sample:
    return Sample(0, number, claim, correct, tokens, tokens)


def drawn(seed: int, n: int = 6) -> list[Sample]:
    rng = random.Random(seed)
    claims = [rng.choice(["right", "wrong", "other", None]) for _ in range(n)]
    return [sample(c, c == "right", rng.randint(1, 99), i) for i, c in enumerate(claims)]


def test_cons_is_the_share_of_choices_whose_vote_is_right() -> None:
    # Of the pairs, right-right, right-none (twice) and those that begin with right win.
    four = [sample("right", True), sample("wrong"), sample("right", True), sample(None)]
    won = {(0, 1), (0, 2), (0, 3), (2, 3)}
    assert cons_n(four, 2).score == pytest.approx(len(won) / 6)
    assert cons_n(four, 1).score == 1 / 2
    assert cons_n(four, 4).score == 1.0
    assert cons_n([sample(None), sample(None)], 2).score == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_n_samples_cost_what_they_cost_on_average(seed: int) -> None:
    six = drawn(seed)
    for n in range(1, 7):
        choices = list(combinations(six, n))
        for spend in (cons_n, pass_n):
            spent = spend(six, n)
            totals = [sum(s.total_tokens for s in c) for c in choices]
            longest = [max(s.sequential_tokens for s in c) for c in choices]
            assert spent.total_tokens == pytest.approx(fmean(totals))
            assert spent.sequential_tokens == pytest.approx(fmean(longest))
        solved = [any(s.correct for s in c) for c in choices]
        assert pass_n(six, n).score == pytest.approx(fmean(solved))
        assert cons_n(six, n).score <= pass_n(six, n).score + 1e-12


def test_one_sample_is_one_sample() -> None:
    assert cons_n(drawn(1), 1) == pytest.approx(pass_n(drawn(1), 1))


def test_too_many_choices_are_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    many = drawn(2, n=14)
    exact = cons_n(many, 4).score
    monkeypatch.setattr(module, "MAX_CHOICES", 400)
    estimated = cons_n(many, 4).score
    assert estimated == cons_n(many, 4).score
    assert estimated != exact
    assert estimated == pytest.approx(exact, abs=0.08)


def test_the_samples_of_a_trace_are_those_that_voted() -> None:
    replies = ["<join>8</join>", "<join>7</join>", "<join></join>", "<join>08</join>"]
    runtime = runtime_of({"4?": replies})
    solved = asyncio.run(SelfConsistency(runtime, Doubling(), Serial, 4).solve(4))
    found = samples_of(solved, Doubling(), 4, index=9)
    assert [s.claim for s in found] == ["8", "7", None, "8"]
    assert [s.correct for s in found] == [True, False, False, False]
    assert [(s.problem, s.sample) for s in found] == [(9, i) for i in range(4)]
    assert sum(s.total_tokens for s in found) == solved.total_tokens
    assert max(s.sequential_tokens for s in found) == solved.sequential_tokens


def test_the_samples_of_trees_are_trees() -> None:
    texts = {
        "4?": "<spawn><thread>a</thread><thread>bb</thread></spawn>",
        "<thread>a</thread>": "<join>1</join>",
        "<thread>bb</thread>": "a longer one <join>2</join>",
    }
    resumed = "4?" + texts["4?"] + "<joined><thread>1</thread><thread>2</thread></joined>"
    script = {**texts, resumed: "<join>8</join>"}
    runtime = runtime_of({prompt: [text] * 4 for prompt, text in script.items()})
    one = asyncio.run(APR(runtime, Doubling()).solve(4))
    solved = asyncio.run(BestOfN(runtime, Doubling(), APR, 3).solve(4))
    for found in samples_of(solved, Doubling(), 4, index=0):
        assert found.correct
        assert found.total_tokens == one.total_tokens
        assert found.sequential_tokens == one.sequential_tokens
    for root in solved.root.spawns[0]:
        own = subtree(solved, root)
        assert [t.spawns for t in own.threads] == [t.spawns for t in one.threads]
        assert [t.parent for t in own.threads] == [t.parent for t in one.threads]


def test_other_traces_have_no_samples() -> None:
    task = Doubling()
    assert samples_of(trace(0, True, (10, 5)), task, 4, 0) == []
    assert samples_of(trace(0, None), task, 4, 0) == []
