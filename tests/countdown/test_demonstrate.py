from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from apr import config
from apr.countdown.compact import MAX_HEARD
from apr.countdown.demonstrate import Condition, Demonstrate
from apr.countdown.narrate import Telling, Text
from apr.countdown.problem import ProblemSpec, Split, problem
from apr.countdown.solver import SearchConfig
from apr.errors import ConfigError, ProblemError
from apr.types import Demonstration

SPEC = ProblemSpec(high=30)
SOLVER = SearchConfig((1, 10), (1, 15), promising=0.9, spawn_depth=1)
FULL = SearchConfig(spawn_depth=1, max_value=100)
BASE = Demonstrate(SPEC, SOLVER)


def prompt(told: Demonstration, sequence: int = 0) -> str:
    return "".join(told.sequences[sequence][0].pieces)


@pytest.mark.parametrize("text", Text)
def test_a_demonstration_depends_on_its_index_alone(text: Text) -> None:
    demonstrate = replace(BASE, text=text)
    forward = [demonstrate(i) for i in range(10)]
    assert [demonstrate(i) for i in reversed(range(10))] == forward[::-1]
    assert pickle.loads(pickle.dumps(demonstrate))(3) == forward[3]
    assert [replace(demonstrate, seed=1)(i) for i in range(10)] != forward


def test_it_tells_the_problem_of_its_index_and_split() -> None:
    for split in Split:
        posed = problem(SPEC, 0, 4, split)
        numbers = " ".join(map(str, sorted(posed.numbers, reverse=True)))
        told = replace(BASE, split=split)(4)
        assert prompt(told) == f"<thread> {posed.target} : {numbers}</thread>"


def test_texts_tell_the_same_search() -> None:
    for index in range(10):
        compact, *others = (replace(BASE, text=text)(index) for text in Text)
        for other in others:
            assert (compact.solved, compact.num_children) == (other.solved, other.num_children)


@pytest.mark.parametrize(
    ("text", "mark"),
    [(Text.COMPACT, "<children> {}<thread>"), (Text.PAPER, "Sub Call Budget: {} ")],
)
def test_conditioned_on_children(text: Text, mark: str) -> None:
    conditioned = replace(BASE, text=text, condition=Condition.CHILDREN)
    for index in range(10):
        told = conditioned(index)
        assert prompt(told).startswith(mark.format(told.num_children))
        assert told[1:] == replace(BASE, text=text)(index)[1:]


def test_conditioned_on_children_of_a_round() -> None:
    rounds = replace(FULL, beam=(1, 4), rounds=0)
    conditioned = Demonstrate(SPEC, rounds, condition=Condition.CHILDREN)
    sizes = set()
    for index in range(20):
        told = conditioned(index)
        spawns = "".join(p for s in told.sequences[0] for p in s.pieces).split("<spawn>")[1:]
        first = spawns[0].partition("</spawn>")[0].count("<thread>")
        assert prompt(told).startswith(f"<children> {first}<thread>")
        sizes.add((first, len(spawns)))
    assert {first for first, _ in sizes} == {1, 2, 3, 4}
    assert any(num > 1 for _, num in sizes)


@pytest.mark.parametrize(
    ("text", "mark"), [(Text.COMPACT, "<window> {}<thread>"), (Text.PAPER, "Token Budget: {} ")]
)
@pytest.mark.parametrize("telling", [Telling.SERIAL, Telling.THREADS])
def test_conditioned_on_the_window_that_holds_the_longest_sequence(
    text: Text, mark: str, telling: Telling
) -> None:
    conditioned = Demonstrate(SPEC, SOLVER, text, telling, Condition.WINDOW, bin=64)
    for index in range(10):
        told = conditioned(index)
        longest = max(sum(len(s.pieces) for s in sequence) for sequence in told.sequences)
        window = -(-longest // 64) * 64
        assert prompt(told).startswith(mark.format(window))
        assert window - 64 < longest <= window


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="no pasta telling"):
        Demonstrate(text=Text.PAPER, telling=Telling.PASTA)
    with pytest.raises(ConfigError, match="width of a context bin"):
        Demonstrate(bin=0)
    with pytest.raises(ConfigError, match="max_final 30 leaves out targets, which go up to 100"):
        Demonstrate(ProblemSpec(target_high=100), SearchConfig(max_final=30))


def test_it_can_be_written_in_a_recipe() -> None:
    conditioned = replace(BASE, text=Text.PAPER, condition=Condition.WINDOW)
    assert config.build(Demonstrate, config.to_json(conditioned)) == conditioned


@pytest.mark.parametrize("text", Text)
def test_dead_ends_are_left_out_and_still_counted(text: Text) -> None:
    whole = replace(BASE, text=text)
    kept = dropped = 0
    for index in range(40):
        told, thinned = whole(index), replace(whole, dead_ends=0.3)(index)
        assert thinned[3:] == told[3:], "the figures are those of the whole demonstration"
        assert thinned.sequences[0] == told.sequences[0]
        good = [s for s, ok in zip(told.sequences, told.succeeded, strict=True) if ok]
        assert all(s in thinned.sequences for s in good)
        kept += thinned.succeeded[1:].count(False)
        dropped += len(told.sequences) - len(thinned.sequences)
    assert kept / (kept + dropped) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("text", Text)
def test_so_many_dead_ends_of_each_depth_are_kept(text: Text) -> None:
    spec = replace(SPEC, num_numbers=(4, 4))
    whole = Demonstrate(spec, replace(FULL, spawn_depth=2, spawn_size=3), text)
    left_out = 0
    for index in range(10):
        told, capped = whole(index), replace(whole, most_dead_ends=2)(index)
        assert set(told.depths) == {0, 1, 2}
        assert (told.num_children, told.total_tokens) == (capped.num_children, capped.total_tokens)
        for depth in (1, 2):
            kinds = list(zip(told.depths, told.succeeded, strict=True))
            rest = list(zip(capped.depths, capped.succeeded, strict=True))
            assert rest.count((depth, True)) == kinds.count((depth, True))
            assert rest.count((depth, False)) == min(2, kinds.count((depth, False)))
        left_out += len(told.sequences) - len(capped.sequences)
    assert left_out


def test_a_sequence_succeeds_where_its_thread_joins_with_a_path() -> None:
    for index in range(20):
        told = BASE(index)
        for sequence, succeeded in zip(told.sequences, told.succeeded, strict=True):
            text = "".join(sequence[-1].pieces)
            assert succeeded == (not text.endswith("<join></join>"))


@pytest.mark.parametrize("name", ["dead_ends", "false_claims"])
def test_shares_are_shares(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is a share between 0 and 1, not 1\.5"):
        config.build(Demonstrate, {name: 1.5, "telling": "weighed"})


def test_false_claims_change_nothing_but_what_the_root_hears() -> None:
    honest = Demonstrate(SPEC, FULL, telling=Telling.WEIGHED, false_claims=0)
    num_false = 0
    for index in range(30):
        truth, told = honest(index), replace(honest, false_claims=0.2)(index)
        assert told[1:] == truth[1:]
        assert told.sequences[1:] == truth.sequences[1:]
        assert told.sequences[0][:2] + told.sequences[0][3:] == (
            truth.sequences[0][:2] + truth.sequences[0][3:]
        ), "what is told is the truth, whatever is heard"
        num_false += heard(told) - heard(truth)
    assert num_false > 30


def heard(told: Demonstration) -> int:
    """How many paths the root is told of."""
    return told.sequences[0][2].pieces.count("<thread>")


def test_all_that_children_found_is_heard() -> None:
    honest = Demonstrate(SPEC, FULL, false_claims=0)
    weighed, first = (replace(honest, telling=t) for t in (Telling.WEIGHED, Telling.THREADS))
    for index in range(20):
        assert heard(weighed(index)) == min(sum(weighed(index).succeeded[1:]), MAX_HEARD)
        assert heard(first(index)) == any(first(index).succeeded[1:])


def test_balances_are_told_in_the_compact_texts_alone() -> None:
    balanced = replace(FULL, balances=True)
    with pytest.raises(ConfigError, match="the paper text tells no balances"):
        Demonstrate(SPEC, balanced, text=Text.PAPER)
    for telling in (Telling.SERIAL, Telling.PASTA):
        Demonstrate(SPEC, balanced, telling=telling)
        with pytest.raises(ConfigError, match=f"{telling} telling nothing goes unheard"):
            Demonstrate(SPEC, balanced, telling=telling, balanced=0.5)
    with pytest.raises(ConfigError, match="share of searches that balance"):
        Demonstrate(SPEC, FULL, balanced=0.5)


def test_rests_are_told_in_the_compact_text_and_in_order() -> None:
    threads = Demonstrate(SPEC, FULL, rests=True)
    assert threads(0).total_tokens > replace(threads, rests=False)(0).total_tokens
    with pytest.raises(ConfigError, match="the paper text tells no rests"):
        replace(threads, text=Text.PAPER)
    with pytest.raises(ConfigError, match="leave order at fixed"):
        replace(threads, solver=replace(FULL, order="shuffled"))


def test_the_paper_text_tells_of_one_spawn() -> None:
    again = replace(FULL, beam=(2, 2), rounds=2)
    with pytest.raises(ConfigError, match="leave rounds at 1"):
        Demonstrate(SPEC, again, text=Text.PAPER)
    Demonstrate(SPEC, again)


def test_a_share_of_problems_is_balanced_and_solved_so() -> None:
    bounded = SearchConfig(spawn_depth=1, max_value=300, balances=True)
    some = Demonstrate(ProblemSpec(), bounded, Text.WHOLE, Telling.NUMBERED, balanced=0.5)
    told = [some(index) for index in range(20)]
    second = [t for t in told if sum("<spawn>" in s.pieces for s in t.sequences[0]) == 2]
    assert 4 < len(second) < 16
    assert all(t.succeeded[0] and t.solved and any(t.succeeded[-15:]) for t in second)
    assert any(any(t.succeeded[1:-15]) for t in second), "a child was right, and went unheard"
    plain = replace(some, balanced=0.0)
    others = [index for index in range(20) if told[index] not in second]
    assert [told[index] for index in others] == [plain(index) for index in others]
    prompts = {prompt(t) for t in told}
    assert len(prompts) == 20


def test_in_a_share_of_problems_a_number_stands_twice() -> None:
    plain = Demonstrate(ProblemSpec(), FULL)
    some = replace(plain, repeated=0.5)
    others = [some(index) for index in range(20) if some(index) != plain(index)]
    assert 4 < len(others) < 16
    both = replace(some, solver=replace(FULL, balances=True), balanced=1.0, repeated=1.0)(0)
    assert both.solved
    for told in (*others, both):
        numbers = told.sequences[0][0].pieces[3:-1]
        assert len(set(numbers)) < len(numbers)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (ProblemSpec(num_numbers=(2, 2), high=9, target_low=1, target_high=18), "balanced"),
        (ProblemSpec(num_numbers=(1, 1), solvable=None), "repeated"),
    ],
)
def test_a_kind_of_problem_that_never_comes_up(spec: ProblemSpec, kind: str) -> None:
    one = Demonstrate(spec, SearchConfig(spawn_depth=1, balances=True), **{kind: 1.0})
    with pytest.raises(ProblemError, match=f"leave {kind} at 0"):
        one(0)
