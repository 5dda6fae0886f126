from __future__ import annotations

import random
import re

import pytest

from apr.countdown import paper
from apr.countdown.narrate import Telling
from apr.countdown.narrate_paper import narrate
from apr.countdown.problem import Problem, ProblemSpec, problem
from apr.countdown.solver import Order, Search, SearchConfig, search
from apr.data.tokenizer import HFCodec, build_tokenizer
from apr.types import Demonstration

POSED = Problem((3, 9, 5), 72)
SPAWN = SearchConfig((2, 2), (2, 2), spawn_depth=1)
DIVE = SearchConfig((2, 2))
LIST = SearchConfig((2, 2), promising=0.0)

STATE = "Current State: 72:[9, 5, 3], Operations: []"
LISTED = """
Exploring Operation: 9-5=4, Resulting Numbers: [4, 3]
Generated Node #0,0: 72:[4, 3] Operation: 9-5=4
Exploring Operation: 5+3=8, Resulting Numbers: [9, 8]
Generated Node #0,1: 72:[9, 8] Operation: 5+3=8
"""
MISS = "Moving to Node #0,0\nCurrent State: 72:[4, 3], Operations: ['9-5=4']"
MISS_TEXT = """
Exploring Operation: 4+3=7, Resulting Numbers: [7]
7,72 unequal: No Solution
Exploring Operation: 4*3=12, Resulting Numbers: [12]
12,72 unequal: No Solution
"""
HIT = "Moving to Node #0,1\nCurrent State: 72:[9, 8], Operations: ['5+3=8']"
HIT_TEXT = """
Exploring Operation: 9+8=17, Resulting Numbers: [17]
17,72 unequal: No Solution
Exploring Operation: 9*8=72, Resulting Numbers: [72]
72,72 equal: Goal Reached
"""
CHILD_PATH = f"""\
{HIT}
Exploring Operation: 9*8=72, Resulting Numbers: [72]
72,72 equal: Goal Reached
"""
ROOT_PATH = f"""\
Current State: 72:[9, 5, 3], Operations: []
Exploring Operation: 5+3=8, Resulting Numbers: [9, 8]
Generated Node #0,1: 72:[9, 8] Operation: 5+3=8
{CHILD_PATH}"""
SPAWNED = """\
<Calling Sub Searches>
<Start Sub Search 0 at level 1> Moving to Node #0,0
<Start Sub Search 1 at level 1> Moving to Node #0,1
<End Calling Sub Searches>"""
RESULTS = f"""\
<Sub Searches>
<No Solution in Sub Search 0 at level 1 at Node #0,0>
<Goal Reached in Sub Search 1 at level 1 at Node #0,1>
{CHILD_PATH}<End Sub Searches>
"""
MOVED = "Moving to Node #0\n"
NOTHING, END = "No solution found.\n", "<|end|>"


def run(posed: Problem, config: SearchConfig, seed: int = 0) -> Search:
    return search(posed, config, random.Random(seed))


def tell(config: SearchConfig, telling: Telling, posed: Problem = POSED) -> Demonstration:
    return narrate(posed, run(posed, config), telling)


def spelled(told: Demonstration) -> list[tuple[str, str]]:
    """Prompt and demonstrated text of each sequence."""
    for sequence in told.sequences:
        assert [s.demonstrated for s in sequence] == [False, True]
    return [("".join(a.pieces), "".join(b.pieces)) for a, b in told.sequences]


def test_threads() -> None:
    prompt = MOVED + STATE
    assert spelled(tell(SPAWN, Telling.THREADS)) == [
        (prompt, LISTED + SPAWNED),
        (prompt + LISTED + RESULTS, f"72,72 equal: Goal Reached\n{MOVED}{ROOT_PATH}{END}"),
        (MISS, MISS_TEXT + NOTHING + END),
        (HIT, HIT_TEXT + CHILD_PATH + END),
    ]


@pytest.mark.parametrize("config", [SPAWN, DIVE])
def test_serially_searches_stand_within_each_other(config: SearchConfig) -> None:
    enter, leave = "Start Sub Search at level 1: ", "Exit Sub Search at level 1\n"
    text = (
        f"{LISTED}{enter}{MISS}{MISS_TEXT}{NOTHING}{leave}No solution found in sub search\n"
        f"{enter}{HIT}{HIT_TEXT}{MOVED}{ROOT_PATH}{leave}{END}"
    )
    assert spelled(tell(config, Telling.SERIAL)) == [(STATE, text)]


def test_listed_states_are_moved_to() -> None:
    text = f"{LISTED}{MISS}{MISS_TEXT}{HIT}{HIT_TEXT}{MOVED}{ROOT_PATH}{END}"
    assert spelled(tell(LIST, Telling.SERIAL)) == [(STATE, text)]
    assert spelled(tell(LIST, Telling.THREADS)) == [(MOVED + STATE, text)]


def test_a_search_without_a_goal_says_so() -> None:
    told = spelled(tell(SPAWN, Telling.THREADS, Problem((3, 9, 5), 71)))
    assert told[1][1] == NOTHING + END
    assert told[1][0].count("<No Solution in Sub Search") == 2


def test_a_problem_of_one_number_is_its_own_path() -> None:
    goal, state = "5,5 equal: Goal Reached\n", "Current State: 5:[5], Operations: []"
    told = spelled(tell(SPAWN, Telling.SERIAL, Problem((5,), 5)))
    assert told == [(state, f"\n{goal}{MOVED}{state}\n{goal}{END}")]
    told = spelled(tell(SPAWN, Telling.SERIAL, Problem((5,), 6)))
    assert told == [(state.replace("5:", "6:"), f"\n{NOTHING}{END}")]


def test_each_call_is_a_sequence_and_every_token_is_learnt_once() -> None:
    found = run(POSED, SPAWN)
    told = narrate(POSED, found, Telling.THREADS)
    lengths = [len(sequence[1].pieces) for sequence in told.sequences]
    assert told.num_children == 2
    assert told.total_tokens == sum(lengths)
    assert told.sequential_tokens == lengths[0] + max(lengths[2:]) + lengths[1]


def test_a_window_stands_before_every_thread_and_children_before_the_root() -> None:
    found = run(POSED, SPAWN)
    told = spelled(narrate(POSED, found, Telling.THREADS, children=2, window=1024))
    window = "Token Budget: 1024 "
    budgets = [prompt.partition("Moving to")[0] for prompt, _ in told]
    assert budgets == [f"Sub Call Budget: 2 {window}"] * 2 + [window] * 2


def test_nested_searches_say_their_level_and_their_whole_path() -> None:
    config = SearchConfig((3, 3), (3, 3), spawn_depth=2)
    told = spelled(tell(config, Telling.THREADS, Problem((9, 8, 4, 3), 24)))
    whole = "".join(text for _, text in told)
    calls = re.findall(r"<Start Sub Search \d+ at level (\d)> Moving to Node #([\d,]+)", whole)
    assert {level for level, _ in calls} == {"1", "2"}
    assert all(name.count(",") == int(level) for level, name in calls)


@pytest.mark.parametrize("telling", [Telling.SERIAL, Telling.THREADS])
def test_pieces_are_the_tokens_of_the_text(telling: Telling) -> None:
    codec = HFCodec(build_tokenizer(paper.words(5_000), paper.SPECIALS, paper.PATTERN))
    config = SearchConfig((1, 5), (1, 5), 0.7, spawn_depth=2, max_value=5_000)
    spec = ProblemSpec(high=20, solvable=None)
    for posed in (problem(spec, 0, i) for i in range(10)):
        for sequence in tell(config, telling, posed).sequences:
            pieces = [p for segment in sequence for p in segment.pieces]
            text = "".join(pieces)
            assert codec.encode(text) == tuple(codec.vocabulary[p] for p in pieces)


def test_every_line_is_arithmetic_and_every_node_is_named_once() -> None:
    """The release corrupts moves; here each line follows from those before it."""
    config = SearchConfig((1, 10), (1, 15), 0.9, spawn_depth=1, order=Order.SHUFFLED)
    for index in range(20):
        posed = problem(ProblemSpec(), 0, index)
        for telling in (Telling.SERIAL, Telling.THREADS):
            for prompt, text in spelled(narrate(posed, run(posed, config, index), telling)):
                check_lines(prompt + text)


def check_lines(text: str) -> None:
    for a, op, b, c in re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", text):
        exact = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
        assert int(a) == int(b) * int(c) if op == "/" else exact[op] == int(c)
    search_part = text.partition("equal: Goal Reached")[0]
    names = re.findall(r"Generated Node #([\d,]+)", search_part)
    if "<Sub Searches>" not in text:
        assert len(names) == len(set(names))
    moved = re.findall(r"(?<!> )Moving to Node #([\d,]+)", search_part)
    assert set(moved) <= {*names, *moved[:1], "0"}
