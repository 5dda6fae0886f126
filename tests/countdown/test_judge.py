from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.countdown import compact, paper
from apr.countdown.demonstrate import NARRATORS
from apr.countdown.grade import MAX_LENGTH
from apr.countdown.judge import TRUTHFUL, Verdict, check_judged, judge, judge_all, poses_truly
from apr.countdown.narrate import Telling, Text
from apr.countdown.problem import Path, Problem, ProblemSpec, Step, problem
from apr.countdown.solver import Bounds, Mode, Search, SearchConfig, search, start_of
from apr.countdown.task import Countdown, dialect_of, special_words
from apr.errors import ConfigError, DataError
from apr.runtime import Runtime
from apr.testing import ByteCodec, ScriptedEngine
from apr.trace import End, Thread, Trace
from apr.types import Sampling

FOUND, EMPTY, MISSED, FALSE, UNREADABLE = Verdict
FULL = SearchConfig(spawn_depth=1)
NESTED = SearchConfig(spawn_depth=2)
NARROW = SearchConfig((2, 4), (1, 2), promising=0.7, spawn_depth=2)
THREE = ProblemSpec(num_numbers=(2, 3), high=12, target_low=1, target_high=40)
FOUR = ProblemSpec(high=12, target_high=60)

POSED = Problem((3, 9, 5), 72)
CHILD = " 72 : 9 , 5 + 3"
WHOLE_CHILD = " 72 : 9 5 3 , 5 + 3"
PATH = " 5 + 3 = 8 , 9 * 8 = 72"
LONG = Problem((5, 3, 2, 9), 54)
NESTED_CHILD = " 54 : 9 , 5 + 3 = 8 , 8 - 2"
NESTED_PATH = " 5 + 3 = 8 , 8 - 2 = 6 , 9 * 6 = 54"


def thread(message: str, join: str = "", end: End = End.JOINED, parent: int | None = 0) -> Thread:
    return Thread(0, parent, message, (), (), end, join, bool(join.strip()))


def verdict(
    message: str, join: str = "", posed: Problem = POSED, text: Text = Text.COMPACT
) -> Verdict | None:
    return judge(posed, thread(message, join), text)


def told(posed: Problem, config: SearchConfig, text: Text, seed: int = 0) -> tuple[Search, Trace]:
    """A search, and the trace of a model that does just what its demonstration says."""
    found = search(posed, config, random.Random(seed))
    script: dict[str, str] = {}
    for sequence in NARRATORS[text](posed, found, Telling.THREADS).sequences:
        before = ""
        for segment in sequence:
            piece = "".join(segment.pieces)
            if segment.demonstrated:
                script[before] = piece
            before += piece
    codec = ByteCodec(special_words(text))
    engine = ScriptedEngine(script, codec, 1_000_000)
    runtime = Runtime(engine, codec, dialect_of(text, Telling.THREADS), Sampling(1_000_000))
    task = Countdown(text)
    trace = asyncio.run(runtime.run(task.prompt(posed)))
    return found, replace(trace, problem=task.to_json(posed))


def searches(found: Search) -> Iterator[Search]:
    """What each thread did, in the order of the trace."""
    yield found
    yield from spawned(found)


def spawned(found: Search) -> Iterator[Search]:
    for visit in found.visits:
        for below in visit.searches:
            yield from searches(below) if visit.mode is Mode.SPAWN else spawned(below)


@lru_cache(maxsize=1 << 14)
def brute_force(numbers: tuple[int, ...], target: int, max_value: int = 0) -> bool:
    """Whether it can be solved, by trying everything in the plainest way."""
    if len(numbers) == 1:
        return numbers[0] == target
    for a, b, *rest in permutations(numbers):
        results = [a + b, a * b]
        results += [a - b] if a >= b else []
        results += [a // b] if b and a % b == 0 else []
        for result in results:
            if max_value and result > max_value:
                continue
            if brute_force(tuple(sorted([result, *rest])), target, max_value):
                return True
    return False


@pytest.mark.parametrize("text", Text)
@pytest.mark.parametrize(
    ("spec", "config", "count"), [(THREE, FULL, 20), (THREE, NESTED, 20), (FOUR, NESTED, 2)]
)
def test_a_full_search_tells_the_truth(
    text: Text, spec: ProblemSpec, config: SearchConfig, count: int
) -> None:
    seen: Counter[Verdict | None] = Counter()
    for index in range(count):
        posed = problem(spec, 0, index)
        found, trace = told(posed, config, text)
        verdicts = judge_all(trace, text)
        for did, actual, thread in zip(searches(found), verdicts, trace.threads, strict=True):
            can = brute_force(tuple(sorted(did.start.numbers)), posed.target)
            assert actual == (FOUND if can else EMPTY), (posed, thread.message)
            assert poses_truly(posed, thread, text)
        seen.update(verdicts[1:])
    assert seen[FOUND] > 2
    assert seen[EMPTY] > 2
    assert set(seen) == TRUTHFUL


@pytest.mark.parametrize("text", Text)
def test_a_narrow_search_misses_what_it_does_not_reach(text: Text) -> None:
    seen: Counter[Verdict | None] = Counter()
    for index in range(30):
        posed = problem(FOUR, 1, index)
        found, trace = told(posed, NARROW, text, index)
        verdicts = judge_all(trace, text)
        for did, actual in zip(searches(found), verdicts, strict=True):
            can = brute_force(tuple(sorted(did.start.numbers)), posed.target)
            nothing = MISSED if can else EMPTY
            assert actual == (nothing if did.goal is None else FOUND)
        seen.update(verdicts[1:])
    assert min(seen[v] for v in (FOUND, EMPTY, MISSED)) > 5


def test_what_lies_beyond_the_largest_value_is_not_missed() -> None:
    num_excused = 0
    for index in range(60):
        posed = problem(THREE, 2, index)
        found, trace = told(posed, replace(FULL, max_value=25), Text.COMPACT)
        within = judge_all(trace, Text.COMPACT, bounds=Bounds(25))
        for did, actual in zip(searches(found), within, strict=True):
            can = brute_force(tuple(sorted(did.start.numbers)), posed.target, 25)
            assert actual == (FOUND if can else EMPTY)
        num_excused += sum(v is MISSED for v in judge_all(trace, Text.COMPACT))
    assert num_excused > 5


BALANCED = replace(FULL, max_value=300, balances=True)
BEYOND = Problem((93, 62, 52, 32), 56)
PROVED = " 52 + 32 = 84 , 84 * 62 = 5208 , 5208 / 93 = 56"


@pytest.mark.parametrize("text", [Text.COMPACT, Text.WHOLE])
def test_children_that_compare_products_tell_the_truth(text: Text) -> None:
    found, trace = told(BEYOND, BALANCED, text)
    assert trace.root.join == PROVED
    verdicts = judge_all(trace, text, bounds=BALANCED.bounds)
    assert set(verdicts) == TRUTHFUL
    *_, visit = found.visits
    hits = [FOUND if b.path else EMPTY for b in visit.balances]
    assert verdicts[-15:] == hits
    assert all(poses_truly(BEYOND, child, text) for child in trace.threads)
    # Whether the root missed anything depends on where it was to look.
    root = replace(trace.root, join="")
    assert judge(BEYOND, root, text, BALANCED.bounds) is MISSED
    assert judge(BEYOND, root, text, Bounds(300)) is EMPTY


@pytest.mark.parametrize(
    ("message", "join", "expected"),
    [
        (" 56 : 93 62 52 32 = 52 32", PROVED, FOUND),
        (" 56 : 93 62 52 32 = 52 32", "", MISSED),
        (" 56 : 93 62 52 32 = 93 52", PROVED, FOUND),
        (" 56 : 93 62 52 32 = 93 52", "", EMPTY),
        (" 56 : 93 62 52 32 = 32 56", "", EMPTY),
        (" 56 : 93 62 52 32 = 56", "", EMPTY),
        (" 56 : 93 62 52 32 = 52 32", " 52 + 32 = 84 , 84 * 62 = 5208 , 5208 / 93 = 57", FALSE),
        # No part of what there is to compare.
        (" 56 : 93 62 52 32 = 62 93", "", None),
        (" 56 : 93 62 52 32 = 62 62", "", None),
        (" 56 : 93 62 52 32 = 57", "", None),
        (" 56 : 93 62 52 32 = 93 62 52", "", None),
        (" 56 : 93 62 52 32 =", "", None),
        (" 56 : 93 62 =", "", None),
        (" 56 : 93 62 52 32 , 52 + 32 =", "", None),
    ],
)
@pytest.mark.parametrize("text", [Text.COMPACT, Text.WHOLE])
def test_what_is_to_be_compared(
    message: str, join: str, expected: Verdict | None, text: Text
) -> None:
    assert verdict(message, join, BEYOND, text) == expected
    assert poses_truly(BEYOND, thread(message), text) == (expected is not None)
    other = message.replace(" 56 : 93", " 56 : 92")
    assert not poses_truly(BEYOND, thread(other), text)


def spell(path: Path) -> str:
    return "".join(compact.path_pieces(path))


def test_a_path_told_wrongly_is_false() -> None:
    """Every way to spoil a true report of a child changes its verdict to the one it earns."""
    num_spoiled = 0
    for index in range(4):
        posed = problem(FOUR, 3, index)
        found, trace = told(posed, NESTED, Text.COMPACT)
        for did, child in zip(searches(found), trace.threads, strict=True):
            if did.goal is None:
                lie = replace(child, join=" 1 + 1 = 2")
                assert judge(posed, lie, Text.COMPACT) is FALSE
                continue
            path, given = did.goal.path, len(did.start.path)
            last = path[-1]
            spoiled = [
                path[:-1],
                path[1:],
                (*path, path[-1]),
                (*path, Step(last.value, "+", 0, last.value)),
                (*path[:-1], last._replace(value=last.value + 1)),
                (*path[:-1], Step(last.a, "+", 1009, last.a + 1009)),
                path[given:] if given else (),
                path[: given or -1],
            ]
            for wrong in filter(None, spoiled):
                lie = replace(child, join=spell(wrong))
                assert judge(posed, lie, Text.COMPACT) is FALSE, (child.message, lie.join)
                num_spoiled += 1
            assert judge(posed, replace(child, join=" "), Text.COMPACT) is MISSED
    assert num_spoiled > 100


@pytest.mark.parametrize(
    ("message", "join", "expected"),
    [
        (CHILD, PATH, FOUND),
        (CHILD, "5+3=8,9*8=72", FOUND),
        (CHILD, " 3 + 5 = 8 , 8 * 9 = 72", FOUND),
        (CHILD, " (5 + 3) * 9", FOUND),
        (CHILD, "", MISSED),
        (CHILD, " \n", MISSED),
        (" 72 : 3 , 9 - 5", "", EMPTY),
        # Right for the problem, but not what this child was asked.
        (" 72 : 3 , 9 - 5", PATH, FALSE),
        (" 72 : 9 3 5", PATH, FOUND),
        (" 72 : 9 3 5", "", MISSED),
        (" 72 : 3 9 , 5 * 1", PATH, FALSE),
        # Starts from its state, as a path of the paper's text would.
        (CHILD, " 9 * 8 = 72", FALSE),
        (CHILD, " 5 + 3 = 8", FALSE),
        (CHILD, " 5 + 3 = 8 , 9 + 8 = 17", FALSE),
        (CHILD, " 5 + 3 = 8 , 9 * 8 = 73", FALSE),
        (CHILD, " 5 * 3 = 15 , 15 + 9 = 24", FALSE),
        (CHILD, " 5 + 3 = 8 , 9 * 8 = 72 , 72 + 0 = 72", FALSE),
        (CHILD, " 5 + 3 = 8 , 9 * 8", FALSE),
        (CHILD, " 72", FALSE),
        (CHILD, " no idea", FALSE),
        (" 73 : 9 , 5 + 3", PATH, FALSE),
        (" 8 : 4 , 2 + 2", " 2 + 2 = 4 , 4 + 4 = 8", FOUND),
        (" 8 : 4 , 2 + 2", " 2 * 2 = 4 , 4 + 4 = 8", FALSE),
        # A single number is left: there is nothing to do but to say so.
        (" 72 : , 5 + 3 = 8 , 9 * 8", PATH, FOUND),
        (" 72 : , 5 + 3 = 8 , 9 * 8", "", MISSED),
        (" 71 : , 5 + 3 = 8 , 9 * 8", "", EMPTY),
        (" 71 : , 5 + 3 = 8 , 9 * 8", PATH, FALSE),
        # Zero is a result like any other.
        (" 9 : 9 , 5 - 5", " 5 - 5 = 0 , 9 + 0 = 9", FOUND),
        (" 9 : 9 , 5 - 5", "", MISSED),
        (" 0 : 9 , 5 - 5", " 5 - 5 = 0 , 9 * 0 = 0", FOUND),
        (" 10 : 9 , 5 - 5", "", EMPTY),
        # The order of numbers in a message, its spaces and a result that is stated do not matter.
        ("72 : 9, 5+3=8", PATH, FOUND),
        ("\n 72  :  9  ,  3 + 5 ", PATH, FOUND),
    ],
)
def test_children(message: str, join: str, expected: Verdict) -> None:
    assert verdict(message, join) is expected


@pytest.mark.parametrize(
    ("message", "join", "expected"),
    [
        (NESTED_CHILD, NESTED_PATH, FOUND),
        (NESTED_CHILD, " 5 + 3 = 8 , 8 - 2 = 6 , 6 * 9 = 54", FOUND),
        (NESTED_CHILD, "", MISSED),
        (" 54 : 9 , 5 + 3 = 8 , 8 + 2", "", EMPTY),
        (" 54 : 9 , 5 + 3 = 8 , 8 + 2", NESTED_PATH, FALSE),
        (NESTED_CHILD, " 8 - 2 = 6 , 9 * 6 = 54", FALSE),
        (NESTED_CHILD, " 5 + 3 = 8 , 9 * 8 = 72 , 72 - 2 = 70", FALSE),
        (NESTED_CHILD, " 5 + 3 = 8 , 8 - 2 = 6", FALSE),
        # 9 - 2 is made while the 8 of the first step still waits.
        (" 56 : 8 , 5 + 3 = 8 , 9 - 2", " 5 + 3 = 8 , 9 - 2 = 7 , 8 * 7 = 56", FOUND),
        (" 56 : 8 , 5 + 3 = 8 , 9 - 2", " 9 - 2 = 7 , 5 + 3 = 8 , 8 * 7 = 56", FALSE),
    ],
)
def test_children_of_children(message: str, join: str, expected: Verdict) -> None:
    assert verdict(message, join, LONG) is expected


@pytest.mark.parametrize(
    ("posed", "join", "expected"),
    [
        (POSED, PATH, FOUND),
        (POSED, " 9 * 8 = 72", FALSE),
        (POSED, "", MISSED),
        (Problem((3, 9, 5), 71), "", EMPTY),
        (Problem((3, 9, 5), 71), PATH, FALSE),
        (Problem((5,), 5), " 5", FOUND),
        (Problem((5,), 5), "", MISSED),
        (Problem((5,), 6), "", EMPTY),
        (Problem((5,), 6), " 6", FALSE),
    ],
)
def test_the_root_is_judged_on_the_problem(posed: Problem, join: str, expected: Verdict) -> None:
    """Whatever budget its prompt begins with."""
    prompt = "".join(compact.prompt(posed, children=3))
    root = thread(prompt, join, parent=None)
    assert judge(posed, root, Text.COMPACT) is expected
    assert poses_truly(posed, root, Text.COMPACT)


def test_a_child_is_judged_on_what_it_was_asked_even_if_that_was_wrong() -> None:
    foreign, path = " 72 : 10 , 5 + 3", " 5 + 3 = 8 , 10 - 8 = 2"
    assert verdict(foreign) is EMPTY
    assert verdict(" 80 : 10 , 5 + 3") is MISSED
    assert verdict(" 2 : 10 , 5 + 3", path) is FOUND
    assert verdict(foreign, PATH) is FALSE
    # The result of the first step is lost on the way.
    assert verdict(" 7 : 9 , 5 + 3 = 8 , 5 - 3") is MISSED


@pytest.mark.parametrize(
    "message",
    [
        "",
        " ",
        "nonsense",
        " 72",
        " 72 :",
        " : 9 5",
        " 72 : x",
        " 72 : 9 ,",
        " 72 : 9 , 5",
        " 72 : 9 , 5 +",
        " 72 : 9 , 7 / 2",
        " 72 : 9 , 3 - 5",
        " 72 : 9 , 5 / 0",
        " 72 : 9 , 5 + 3 = 9",
        " 72 : 9 , 5 + 3 = 9 , 9 - 2",
        " 72 : 9 , 5 + 3 + 1",
        " 72 : 9 , 5 + 3 + 1 , 9",
        " 72 : 9 , , 5 + 3",
        " 72 : 9 , 8 = 8 , 5 + 3",
        " 72 : 9 5 3 1",
        " -72 : 9 , 5 + 3",
        " 72 : 9.5 , 5 + 3",
        " ٧٢ : 9 , 5 + 3",
        " 72 : ² , 5 + 3",
        " 72 : 9 , __import__('os')",
        " 24 : 9 , 5 + 3 : 2",
    ],
)
def test_a_message_that_states_no_sub_problem_is_not_held_against_the_child(message: str) -> None:
    for text in Text:
        for join in ("", PATH):
            assert verdict(message, join, text=text) is None
        assert judge(POSED, thread(message, end=End.MALFORMED), text) is None
        assert not poses_truly(POSED, thread(message), text)


def test_a_message_of_one_compact_text_is_none_of_the_other() -> None:
    for text, other, message in (
        (Text.COMPACT, Text.WHOLE, " 72 : 9 , 5 + 3"),
        (Text.WHOLE, Text.COMPACT, " 72 : 9 5 3 , 5 + 3"),
    ):
        assert verdict(message, PATH, text=text) is FOUND
        assert poses_truly(POSED, thread(message), text)
        assert verdict(message, PATH, text=other) is None
        assert not poses_truly(POSED, thread(message), other)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (End.MALFORMED, UNREADABLE),
        (End.EXHAUSTED, UNREADABLE),
        (End.CANCELLED, None),
        (End.FAILED, None),
    ],
)
def test_threads_that_did_not_join(end: End, expected: Verdict | None) -> None:
    for message in (CHILD, " 72 : 3 , 9 - 5"):
        assert judge(POSED, thread(message, end=end), Text.COMPACT) is expected
    assert judge(POSED, thread("", end=end, parent=None), Text.COMPACT) is expected


def test_a_trace_gets_a_verdict_for_each_thread_in_order() -> None:
    threads = (
        thread("".join(compact.prompt(POSED)), PATH, parent=None),
        thread(" 72 : 3 , 9 - 5"),
        thread(" 72 : 5 , 9 * 3", end=End.EXHAUSTED),
        thread(CHILD, PATH),
        thread(" 72 : 9 , 5 * 3", end=End.CANCELLED),
        thread("oops"),
    )
    numbered = tuple(replace(t, index=i) for i, t in enumerate(threads))
    trace = Trace({"numbers": [3, 9, 5], "target": 72}, "apr", numbered)
    expected = [FOUND, EMPTY, UNREADABLE, FOUND, None, None]
    assert judge_all(trace, Text.COMPACT) == expected
    assert judge_all(Trace.from_json(trace.to_json()), Text.COMPACT) == expected


@pytest.mark.parametrize(
    "posed", [{}, {"numbers": 3, "target": 4}, {"numbers": [], "target": 4}, {"question": "?"}]
)
def test_a_trace_of_another_task_is_refused(posed: dict[str, object]) -> None:
    with pytest.raises(DataError, match="no Countdown problem"):
        judge_all(Trace(posed, "apr", (thread("", parent=None),)), Text.COMPACT)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (NESTED_CHILD, True),
        (" 54 : 2 9 , 5 + 3", True),
        (" 54 : 9 5 3 2", True),
        (" 54 : 8 , 5 + 3 = 8 , 9 - 2", True),
        (" 55 : 2 9 , 5 + 3", False),
        (" 54 : 2 8 , 5 + 3", False),
        (" 54 : 9 , 5 + 3", False),
        (" 54 : 9 9 , 5 + 3", False),
        (" 54 : 9 2 , 5 + 4", False),
        (" 54 : 3 2 , 9 + 9", False),
        (" 54 : 9 , 5 + 3 = 8 , 7 - 2", False),
        (" 54 : 9 , 8 - 2", False),
    ],
)
def test_whether_a_child_was_asked_for_a_part_of_the_problem(message: str, expected: bool) -> None:
    assert poses_truly(LONG, thread(message), Text.COMPACT) is expected


PAPER_STATE = "Current State: 72:[9, 8], Operations: ['5+3=8']"
PAPER_CHILD = f"Moving to Node #0,1\n{PAPER_STATE}"
PAPER_STEP = "Exploring Operation: 5+3=8, Resulting Numbers: [9, 8]"
PAPER_PATH = f"""\
{PAPER_CHILD}
Exploring Operation: 9*8=72, Resulting Numbers: [72]
72,72 equal: Goal Reached"""


@pytest.mark.parametrize(
    ("message", "join", "expected"),
    [
        (PAPER_CHILD, PAPER_PATH, FOUND),
        (f"Token Budget: 512 {PAPER_CHILD}", PAPER_PATH, FOUND),
        (PAPER_CHILD, "", MISSED),
        (PAPER_CHILD.replace("72", "71"), "", EMPTY),
        (PAPER_CHILD.replace("72", "71"), PAPER_PATH, FALSE),
        (PAPER_CHILD.replace("[9, 8]", "[9, 7]"), PAPER_PATH, FALSE),
        (PAPER_CHILD, PAPER_PATH.replace("[72]", "[71]"), FALSE),
        (PAPER_CHILD, PAPER_PATH.replace("9*8", "9+8"), FALSE),
        (PAPER_CHILD, PAPER_PATH.replace("72,72", "71,71"), FALSE),
        # Paths of this text start where the child does.
        (PAPER_CHILD, PATH, FALSE),
        (PAPER_CHILD.replace("5+3=8", "5+3=9"), PAPER_PATH, None),
        (PAPER_CHILD.replace("5+3=8", "7/2=3"), PAPER_PATH, None),
        (PAPER_CHILD.replace("[9, 8]", "[]"), PAPER_PATH, None),
        (PAPER_CHILD.replace("[9, 8]", "[9, x]"), PAPER_PATH, None),
        (PAPER_CHILD.replace("[9, 8]", "[9, 8, 7, 6]"), "", None),
        (f"{PAPER_CHILD}\nand more", PAPER_PATH, None),
        (CHILD, PATH, None),
    ],
)
def test_the_paper_text(message: str, join: str, expected: Verdict | None) -> None:
    assert verdict(message, join, text=Text.PAPER) is expected


def test_the_root_of_the_paper_text() -> None:
    prompt = "".join(paper.prompt(POSED))
    whole = PAPER_PATH.replace(PAPER_CHILD, f"{prompt}\n{PAPER_STEP}\n{PAPER_CHILD}")
    assert judge(POSED, thread(prompt, whole, parent=None), Text.PAPER) is FOUND
    assert judge(POSED, thread(prompt, PAPER_PATH, parent=None), Text.PAPER) is FALSE
    assert judge(POSED, thread(prompt, parent=None), Text.PAPER) is MISSED


def test_a_path_may_be_told_in_whatever_form_the_grader_reads() -> None:
    whole = f"{PAPER_STEP}\n{PAPER_PATH}"
    assert verdict(CHILD, whole) is FOUND
    assert verdict(CHILD, PAPER_PATH) is FALSE
    assert verdict(CHILD, whole.replace("72,72", "71,71")) is FALSE
    assert verdict(CHILD, whole.replace("[72]", "[71]")) is FALSE


def test_the_pasta_telling_is_refused() -> None:
    with pytest.raises(ConfigError, match="give credit by the root"):
        check_judged(Telling.PASTA)
    trace = Trace({"numbers": [3, 9, 5], "target": 72}, "apr", (thread("", parent=None),))
    with pytest.raises(ConfigError, match="pasta"):
        judge_all(trace, Text.COMPACT, Telling.PASTA)
    check_judged(Telling.THREADS)
    check_judged(Telling.SERIAL)


CHILDREN = {Text.COMPACT: CHILD, Text.WHOLE: WHOLE_CHILD, Text.PAPER: PAPER_CHILD}
HUGE = [
    " 72 : " + "9" * MAX_LENGTH,
    " 72 :" + " 9" * MAX_LENGTH,
    " 72 :" + " " * MAX_LENGTH + "x",
    " " * MAX_LENGTH,
    "9" * MAX_LENGTH + " : 9",
    " 72 : 9 ," + " 5 + 3 = 8 ," * MAX_LENGTH,
    " 72 : 9 ," * MAX_LENGTH,
    " 72 : 9 , " + "(" * MAX_LENGTH,
    " 72 : 9 , " + "9" * 100 + " * " + "9" * 100,
    "\ud800 : \x00",
    "Current State: 72:[" + "9, " * MAX_LENGTH + "9], Operations: []",
    "Current State: " * MAX_LENGTH,
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", Text)
def test_hostile_text_is_read_and_no_more(text: Text) -> None:
    for message in HUGE:
        assert verdict(message, text=text) is None
        assert not poses_truly(POSED, thread(message), text)
    child = CHILDREN[text]
    for join in HUGE[:3] + HUGE[4:]:
        assert verdict(child, join, text=text) is FALSE


@pytest.mark.timeout(20)
@pytest.mark.parametrize("bounds", [Bounds(), Bounds(100)])
def test_large_numbers_take_no_longer(bounds: Bounds) -> None:
    posed = Problem((1, 2, 3, 4, 5), 6)
    large = " ".join("9" * n for n in range(90, 94))
    message = f" {'8' * 100} : {large} , {'7' * 99} + 1"
    assert judge(posed, thread(message), Text.COMPACT, bounds) is EMPTY


PIECES = [
    *("72", "9", "5", "3", "8", "0", " ", " :", " ,", " =", " + ", " - ", " * ", " / ", "(", ")"),
    *(
        CHILD,
        WHOLE_CHILD,
        PATH,
        NESTED_CHILD,
        PAPER_CHILD,
        PAPER_PATH,
        PAPER_STATE,
        "\n",
        "²",
        "x",
        "99999999",
    ),
]
anything = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@given(anything, anything, st.sampled_from(Text), st.sampled_from(End))
def test_no_text_raises(message: str, join: str, text: Text, end: End) -> None:
    outside = end in (End.CANCELLED, End.FAILED)
    child = thread(message, join, end)
    judge(POSED, child, text)
    assert (judge(POSED, replace(child, parent=None), text) is None) == outside
    poses_truly(POSED, child, text)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(1, 40), st.data())
def test_a_message_says_what_the_state_is(
    numbers: list[int], target: int, data: st.DataObject
) -> None:
    """A child that says nothing is judged by the very state its message was made from."""
    posed = Problem(tuple(numbers), target)
    node = start_of(posed)
    for _ in range(data.draw(st.integers(0, len(numbers) - 1))):
        a, b = sorted(data.draw(st.permutations(node.numbers))[:2], reverse=True)
        op, value = data.draw(st.sampled_from([("+", a + b), ("-", a - b), ("*", a * b)]))
        node = node.after(Step(a, op, b, value))
    nothing = MISSED if brute_force(tuple(sorted(node.numbers)), target) else EMPTY
    messages = {
        Text.COMPACT: "".join(compact.message(target, node)),
        Text.WHOLE: "".join(compact.whole_message(target, node)),
        Text.PAPER: "".join(paper.arrival(("0", ",", "1"), target, node)),
    }
    for text, message in messages.items():
        assert verdict(message, "", posed, text) is nothing
        assert poses_truly(posed, thread(message), text)
