from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from apr.countdown import compact
from apr.countdown.compact import MAX_HEARD, Compact, CompactNumbered
from apr.countdown.grade import grade
from apr.countdown.narrate import Message, Telling, Text, check_telling, narrate
from apr.countdown.problem import Problem, ProblemSpec, problem
from apr.countdown.solver import Node, Search, SearchConfig, search
from apr.data.tokenizer import HFCodec, build_tokenizer
from apr.errors import ConfigError
from apr.interfaces import Join
from apr.types import Demonstration, Segment

POSED = Problem((3, 9, 5), 72)
SPAWN = SearchConfig((2, 2), (2, 2), spawn_depth=1)
DIVE = SearchConfig((2, 2))
FULL = SearchConfig(spawn_depth=1)
LIST = SearchConfig((2, 2), promising=0.0)

ROOT = "<thread> 72 : 9 5 3</thread>"
MISS, HIT = "<thread> 72 : 3 , 9 - 5</thread>", "<thread> 72 : 9 , 5 + 3</thread>"
MISS_TEXT = " = 4 : 4 3 4 + 3 = 7 x 4 * 3 = 12 x"
HIT_TEXT = " = 8 : 9 8 9 + 8 = 17 x 9 * 8 = 72 !"
PATH = " 5 + 3 = 8 , 9 * 8 = 72"


def run(posed: Problem, config: SearchConfig) -> Search:
    return search(posed, config, random.Random(0))


def tell(config: SearchConfig, telling: Telling, posed: Problem = POSED) -> Demonstration:
    return narrate(posed, run(posed, config), telling)


def spelled(told: Demonstration) -> list[list[str]]:
    """Each sequence: prompt, told, heard, told, ..."""
    for sequence in told.sequences:
        assert [s.demonstrated for s in sequence] == [bool(i % 2) for i in range(len(sequence))]
    return [["".join(s.pieces) for s in sequence] for sequence in told.sequences]


def test_threads_return_their_path_or_nothing() -> None:
    assert spelled(tell(SPAWN, Telling.THREADS)) == [
        [
            ROOT,
            f"<spawn>{MISS}{HIT}</spawn>",
            f"<joined><thread>{PATH}</thread></joined>",
            f"<join>{PATH}</join>",
        ],
        [MISS, f"{MISS_TEXT}<join></join>"],
        [HIT, f"{HIT_TEXT}<join>{PATH}</join>"],
    ]


def test_the_whole_text_gives_a_child_the_state_its_step_is_taken_from() -> None:
    told = narrate(POSED, run(POSED, SPAWN), Telling.THREADS, message=compact.whole_message)
    miss, hit = "<thread> 72 : 9 5 3 , 9 - 5</thread>", "<thread> 72 : 9 5 3 , 5 + 3</thread>"
    plain = spelled(tell(SPAWN, Telling.THREADS))
    assert spelled(told) == [
        [ROOT, f"<spawn>{miss}{hit}</spawn>", *plain[0][2:]],
        [miss, *plain[1][1:]],
        [hit, *plain[2][1:]],
    ]


def test_weighed_the_parent_hears_a_few_and_returns_the_first_that_is_true() -> None:
    posed = Problem((9, 5, 3), 12)
    told = narrate(posed, run(posed, FULL), Telling.WEIGHED, false_claims=1.0)
    (_, _, heard, last), *children = spelled(told)
    returned = [c[-1].partition("<join>")[2].removesuffix("</join>") for c in children]
    paths = [p.removesuffix("</thread>") for p in heard.split("<thread>")[1:]]
    paths[-1] = paths[-1].removesuffix("</joined>").removesuffix("</thread>")
    assert len(paths) == MAX_HEARD < len(children)
    wrong = [p for p in paths if not grade(posed, p).correct]
    heard_of = returned[: len(paths)]
    assert [p for p in paths if p not in wrong] == [p for p in heard_of if p]
    assert len(wrong) == heard_of.count("") > 0
    assert all(p.endswith(" = 12") for p in wrong)
    assert last == f"<join>{next(filter(None, returned))}</join>"


def test_numbered_the_parent_returns_the_number_of_the_first_that_is_true() -> None:
    posed = Problem((9, 5, 3), 12)
    weighed, told = (
        spelled(narrate(posed, run(posed, FULL), t, false_claims=1.0))
        for t in (Telling.WEIGHED, Telling.NUMBERED)
    )
    assert told[0][:2] == weighed[0][:2]
    assert told[1:] == weighed[1:]
    (heard, last), (numbered, returned) = weighed[0][2:], told[0][2:]
    paths = heard.removeprefix("<joined>").removesuffix("</joined>").split("</thread>")[:-1]
    again = "".join(f"{path} : {n}</thread>" for n, path in enumerate(paths, 1))
    assert numbered == f"<joined>{again}</joined>"
    first = next(n for n, p in enumerate(paths, 1) if p[len("<thread>") :] in last)
    assert first > 1, "a false claim is heard before"
    assert returned == f"<join> : {first}</join>"
    # What is read again from the number is the path.
    prompt = "".join(told[0][:-1])
    assert CompactNumbered().read(prompt, returned) == Compact().read(prompt, last)


def test_numbered_a_thread_without_children_returns_its_own_path() -> None:
    assert spelled(tell(DIVE, Telling.NUMBERED)) == spelled(tell(DIVE, Telling.THREADS))
    told = tell(SPAWN, Telling.NUMBERED, Problem((3, 9, 5), 71))
    assert spelled(told)[0][2:] == ["<joined></joined>", "<join></join>"]


BEYOND = Problem((75, 50, 40), 60)
BALANCED = replace(FULL, max_value=300, balances=True)
COMPARED = " : 75 50 40 60 75 * 50 = 3750 : 60 * 40 = 2400 x 75 * 40 = 3000 : 60 * 50 = 3000 !"
PROVED = " 75 * 40 = 3000 , 3000 / 50 = 60"


@pytest.mark.parametrize("message", [compact.message, compact.whole_message])
def test_products_are_compared_in_a_second_spawn(message: Message) -> None:
    found = run(BEYOND, BALANCED)
    told = narrate(BEYOND, found, Telling.NUMBERED, message=message)
    root, *_, child = spelled(told)
    asked = "<thread> 60 : 75 50 40 =</thread>"
    assert root[2:] == [
        "<joined></joined>",
        f"<spawn>{asked}</spawn>",
        f"<joined><thread>{PROVED} : 1</thread></joined>",
        "<join> : 1</join>",
    ]
    assert child == [asked, f"{COMPARED}<join>{PROVED}</join>"]
    assert told.succeeded[0]
    assert told.succeeded[-1]
    assert told.num_children == len(told.sequences) - 1
    before = found._replace(visits=found.visits[:1], goal=None)
    first = narrate(BEYOND, before, Telling.NUMBERED, message=message)
    alone = sum(len(s.pieces) for s in told.sequences[-1] if s.demonstrated)
    waited = told.sequential_tokens - first.sequential_tokens
    written = len(told.sequences[0][3].pieces) + len(told.sequences[0][5].pieces)
    assert waited == alone + written - len(first.sequences[0][3].pieces)


def test_a_root_that_heard_nothing_spawns_again_and_says_what_divides_but_once() -> None:
    posed = Problem((9, 6, 2), 13)
    config = SearchConfig((2, 2), spawn_depth=1, rounds=0, full_width=2)
    found = run(posed, config)
    assert len(found.visits) > 1
    told = narrate(posed, found, Telling.NUMBERED, false_claims=1.0, rests=True)
    root = spelled(told)[0]
    rests = " 9 / 6 , 9 / 2 , 6 / 2 = 3 ,"
    spawns = ["".join(compact.spawn(asked(13, v.successors))) for v in found.visits]
    assert root[1] == rests + spawns[0]
    # Nor what is false: a parent goes on where it heard nothing at all, and only there.
    assert root[2 : 2 * len(spawns)] == [p for s in spawns[1:] for p in ("<joined></joined>", s)]
    heard, returned = root[2 * len(spawns) :]
    assert found.goal is not None
    assert "".join(compact.path_pieces(found.goal.path)) in heard
    assert returned.startswith("<join> : ")
    waits = [
        max(sum(len(p.pieces) for p in t if p.demonstrated) for t in told.sequences[1:][a:b])
        for a, b in ((0, 2), (2, 4), (4, 6))
        if a < told.num_children
    ]
    written = sum(len(p.pieces) for p in told.sequences[0] if p.demonstrated)
    assert told.sequential_tokens == written + sum(waits)


def asked(target: int, nodes: Sequence[Node]) -> list[list[str]]:
    return [compact.message(target, node) for node in nodes]


def test_what_goes_unheard_is_not_told() -> None:
    posed = Problem((9, 5, 3, 2), 12)
    found = search(posed, BALANCED, random.Random(0), unheard=True)
    told = narrate(posed, found, Telling.NUMBERED)
    plain = narrate(posed, run(posed, BALANCED), Telling.NUMBERED)
    assert any(told.succeeded[1:])
    root = spelled(told)[0]
    assert root[:2] == spelled(plain)[0][:2]
    assert root[2] == "<joined></joined>"
    assert spelled(told)[1 : plain.num_children + 1] == spelled(plain)[1:]
    # Nor what is false: a parent goes on where it heard nothing at all, and only there.
    false = narrate(posed, found, Telling.NUMBERED, false_claims=1.0)
    assert spelled(false)[0][:4] == root[:4]


def test_of_products_too_a_parent_hears_what_is_false() -> None:
    """Each child that found nothing claims what one of its comparisons would prove."""
    posed = Problem((93, 62, 52, 32), 56)
    told = narrate(posed, run(posed, BALANCED), Telling.NUMBERED, false_claims=1.0)
    root = told.sequences[0]
    *paths, _ = "".join(root[4].pieces).removeprefix("<joined>").split("</thread>")
    claims = [p.removeprefix("<thread>").rpartition(" :") for p in paths]
    true = [grade(posed, path).correct for path, *_ in claims]
    assert true[-1]
    assert true.count(True) == 1
    assert all(path.count(" ,") == 2 and path.endswith(" 56") for path, *_ in claims)
    assert "".join(root[5].pieces) == f"<join> :{claims[-1][2]}</join>"


def test_serially_products_are_compared_in_line() -> None:
    ((prompt, text),) = spelled(narrate(BEYOND, run(BEYOND, BALANCED), Telling.SERIAL))
    assert prompt == "<thread> 60 : 75 50 40</thread>"
    assert text.endswith(f" x ={COMPARED}<join>{PROVED}</join>")


def test_numbered_nested_threads_each_return_a_number() -> None:
    posed = Problem((1, 2, 3, 4), 24)
    nested = replace(FULL, spawn_depth=2)
    told = spelled(narrate(posed, run(posed, nested), Telling.NUMBERED))
    parents = [t for t in told if len(t) > 2]
    assert len(parents) > 1
    for thread in parents:
        message = thread[-1].removeprefix("<join>").removesuffix("</join>")
        assert message == "" or message.startswith(" : ")
        read = CompactNumbered().read("".join(thread[:-1]), thread[-1])
        assert isinstance(read, Join)
        assert grade(posed, read.message).correct == bool(message)


def test_pasta_returns_their_whole_text() -> None:
    told = spelled(tell(SPAWN, Telling.PASTA))
    heard = [f"<thread>{MISS_TEXT} ,</thread>", f"<thread>{HIT_TEXT} ,{PATH}</thread>"]
    assert told[0][2] == f"<joined>{''.join(heard)}</joined>"
    assert told[1:] == spelled(tell(SPAWN, Telling.THREADS))[1:]


@pytest.mark.parametrize("config", [SPAWN, DIVE])
def test_serially_one_thread_does_it_all(config: SearchConfig) -> None:
    text = f" 9 - 5{MISS_TEXT} 5 + 3{HIT_TEXT}<join>{PATH}</join>"
    assert spelled(tell(config, Telling.SERIAL)) == [[ROOT, text]]


RESTS = """
 = 12 : 12 8 6
 12 + 8 = 20 : 20 6 20 + 6 = 26 x 20 - 6 = 14 x
 12 - 8 = 4 : 6 4 6 + 4 = 10 x 6 - 4 = 2 x 6 * 4 = 24 x
 12 / 8 ,
 12 + 6 = 18 : 18 8 18 + 8 = 26 x 18 - 8 = 10 x 12 - 6 = 6 : 8 6 8 + 6 = 14 x 8 - 6 = 2 x
 12 / 6 = 2 : 8 2 8 + 2 = 10 x 8 - 2 = 6 x 8 * 2 = 16 x 8 / 2 = 4 x
 8 + 6 = 14 : 14 12 14 + 12 = 26 x 14 - 12 = 2 x 8 - 6 = 2 : 12 2 12 + 2 = 14 x 12 - 2 = 10 x
 12 * 2 = 24 x 12 / 2 = 6 x
 8 / 6 ,
<join></join>""".replace("\n", "")


DIVISIONS = " 9 / 8 , 9 / 6 , 9 / 3 = 3 , 8 / 6 , 8 / 3 , 6 / 3 = 2 ,"


def test_divisions_that_leave_a_rest_are_told_where_a_search_goes_on() -> None:
    posed = Problem((9, 3, 8, 6), 30)
    tell = partial(narrate, posed, run(posed, replace(FULL, max_value=30)), Telling.NUMBERED)
    told, plain = spelled(tell(rests=True)), spelled(tell())
    assert ["<thread> 30 : 8 6 , 9 + 3</thread>", RESTS] in told
    (prompt, spawn, *after), *children = told
    assert [prompt, spawn.removeprefix(DIVISIONS), *after] == plain[0] != told[0]
    without = [[re.sub(r" [0-9]+ / [0-9]+ ,", "", text) for text in texts] for texts in children]
    assert without == plain[1:]


def test_where_a_beam_chooses_divisions_are_told_before_what_it_chose() -> None:
    """By a single thread, too: once, however many rounds it goes through, and in order below."""
    posed = Problem((9, 3, 8, 6), 30)
    best = replace(FULL, max_value=30, beam=(1, 1), rounds=0, order="heuristic", full_width=3)
    tell = partial(narrate, posed, run(posed, best), Telling.SERIAL)
    (told,), (plain,) = spelled(tell(rests=True)), spelled(tell())
    assert told[1].startswith(f"{DIVISIONS} 9 - 8 = 1 : 6 3 1 6 + 3 = 9")
    searched = told[1].removeprefix(DIVISIONS)
    assert " 9 / 6 , 9 + 5 = 14 : 14 6" in searched
    assert re.sub(r" [0-9]+ / [0-9]+ ,", "", searched) == plain[1]


def test_of_two_equal_numbers_a_division_is_told_once_and_nothing_is_divided_by_zero() -> None:
    told = narrate(
        Problem((4, 4, 3), 9), run(Problem((4, 4, 3), 9), FULL), Telling.THREADS, rests=True
    )
    assert spelled(told)[0][1].startswith(" 4 / 4 = 1 , 4 / 3 ,<spawn>")
    assert compact.division_pieces(4, 0) == [" 4", " /", " 0", " ,"]


def test_listed_states_are_said_again_when_they_are_taken_up() -> None:
    listed = " 9 - 5 = 4 , 5 + 3 = 8 ,"
    text = f"{listed} 9 - 5{MISS_TEXT} 5 + 3{HIT_TEXT}<join>{PATH}</join>"
    for telling in Telling:
        assert spelled(tell(LIST, telling)) == [[ROOT, text]]


def test_a_search_without_a_goal_joins_with_nothing() -> None:
    told = tell(SPAWN, Telling.THREADS, Problem((3, 9, 5), 71))
    assert not told.solved
    assert spelled(told)[0][2:] == ["<joined></joined>", "<join></join>"]


def test_a_problem_of_one_number_is_answered_by_it() -> None:
    told = spelled(tell(SPAWN, Telling.THREADS, Problem((5,), 5)))
    assert told == [["<thread> 5 : 5</thread>", "<join> 5</join>"]]
    told = spelled(tell(SPAWN, Telling.THREADS, Problem((5,), 6)))
    assert told == [["<thread> 6 : 5</thread>", "<join></join>"]]


def test_budgets_stand_before_the_root_alone() -> None:
    told = narrate(POSED, run(POSED, SPAWN), Telling.THREADS, children=2, window=512)
    first = [sequence[0] for sequence in spelled(told)]
    assert first == [f"<children> 2<window> 512{ROOT}", MISS, HIT]


def test_tokens_are_those_demonstrated() -> None:
    told = tell(SPAWN, Telling.THREADS)
    lengths = [
        sum(len(s.pieces) for s in sequence if s.demonstrated) for sequence in told.sequences
    ]
    assert told.num_children == 2
    assert told.total_tokens == sum(lengths)
    assert told.sequential_tokens == lengths[0] + max(lengths[1:])
    serial = tell(DIVE, Telling.SERIAL)
    assert serial.total_tokens == serial.sequential_tokens
    assert serial.num_children == 0


def test_the_same_search_has_the_same_demonstration() -> None:
    found = run(POSED, SPAWN)
    assert narrate(POSED, found, Telling.THREADS) == narrate(POSED, found, Telling.THREADS)


@pytest.mark.parametrize("telling", Telling)
def test_pieces_are_the_tokens_of_the_text(telling: Telling) -> None:
    codec = HFCodec(build_tokenizer(compact.words(10_000), compact.SPECIALS, compact.PATTERN))
    config = SearchConfig((1, 5), (1, 5), 0.7, spawn_depth=2, max_value=10_000)
    spec = ProblemSpec(high=20, solvable=None)
    for posed in (problem(spec, 0, i) for i in range(20)):
        for sequence in tell(config, telling, posed).sequences:
            check_pieces(sequence, codec)


def check_pieces(sequence: list[Segment], codec: HFCodec) -> None:
    pieces = [p for segment in sequence for p in segment.pieces]
    assert codec.encode("".join(pieces)) == tuple(codec.vocabulary[p] for p in pieces)


def test_the_paper_text_has_no_pasta_telling() -> None:
    for telling in (Telling.PASTA, Telling.WEIGHED, Telling.NUMBERED):
        with pytest.raises(ConfigError, match=f"no {telling} telling"):
            check_telling(Text.PAPER, telling)
    for telling in Telling:
        check_telling(Text.COMPACT, telling)
