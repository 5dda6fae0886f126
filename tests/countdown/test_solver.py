from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest

from apr.countdown.balance import balances
from apr.countdown.problem import Problem, ProblemSpec, problem, reaches
from apr.countdown.solver import (
    Heuristic,
    Mode,
    Node,
    Order,
    Search,
    SearchConfig,
    Visit,
    multiply_heuristic,
    search,
    start_of,
    successors,
)
from apr.errors import ConfigError

PAPER = SearchConfig((1, 10), (1, 15), promising=0.9, spawn_depth=1, order=Order.SHUFFLED)
FOUR = [problem(ProblemSpec(high=30, solvable=None), 1, i) for i in range(40)]


def run(posed: Problem, config: SearchConfig, seed: int = 0) -> Search:
    return search(posed, config, random.Random(seed))


def searches(found: Search) -> Iterator[Search]:
    yield found
    for visit in found.visits:
        for below in visit.searches:
            yield from searches(below)


def visits(found: Search) -> Iterator[Visit]:
    for s in searches(found):
        yield from s.visits


@pytest.mark.parametrize(
    "settings",
    [
        {"beam": (3, 2)},
        {"beam": (-1, 2)},
        {"child_beam": (5, 1)},
        {"promising": 1.1},
        {"promising": -0.1},
        {"spawn_depth": -1},
        {"max_children": -1},
        {"max_value": -1},
        {"balances": True},
        {"max_final": -1},
        {"max_value": 50, "max_final": 100},
        {"spawn_size": 1},
        {"full_width": -1},
        {"rounds": 2, "spawn_depth": 1},
        {"rounds": 2, "beam": (4, 4)},
        {"rounds": -1, "beam": (4, 4), "spawn_depth": 1},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SearchConfig(**settings)


def test_a_search_depends_on_its_seed_alone() -> None:
    assert [run(p, PAPER, 3) for p in FOUR] == [run(p, PAPER, 3) for p in FOUR]
    assert [run(p, PAPER, 3) for p in FOUR] != [run(p, PAPER, 4) for p in FOUR]


def test_certain_settings_draw_nothing() -> None:
    rng = random.Random(0)
    before = rng.getstate()
    search(FOUR[0], SearchConfig((4, 4), (6, 6), promising=1.0, spawn_depth=1), rng)
    search(FOUR[0], SearchConfig((4, 4), promising=0.0), rng)
    assert rng.getstate() == before


@pytest.mark.parametrize(
    "config",
    [PAPER, SearchConfig((3, 3), (4, 4), 0.5, spawn_depth=2), SearchConfig((1, 5), promising=0.5)],
)
def test_every_step_is_right_and_made_of_what_is_there(config: SearchConfig) -> None:
    """The release shadows a loop index, which corrupts moves."""
    for posed in FOUR:
        for s in searches(run(posed, config)):
            for visit in s.visits:
                for node in visit.successors:
                    check_child(visit.node, node)


def check_child(parent: Node, node: Node) -> None:
    *before, step = node.path
    assert tuple(before) == parent.path
    made = {"+": step.a + step.b, "-": step.a - step.b, "*": step.a * step.b}
    if step.op == "/":
        assert step.value * step.b == step.a
    else:
        assert step.value == made[step.op]
    assert step.value >= 0
    rest = Counter(parent.numbers)
    rest.subtract([step.a, step.b])
    assert min(rest.values()) >= 0
    rest[step.value] += 1
    assert Counter(node.numbers) == +rest
    assert list(node.numbers) == sorted(node.numbers, reverse=True)
    assert node == parent.after(step)


def test_only_what_was_shown_is_visited() -> None:
    for posed in FOUR:
        for s in searches(run(posed, PAPER)):
            shown = {s.start.path}
            for visit in s.visits:
                assert visit.node.path in shown
                shown |= {node.path for node in visit.successors}


def test_a_goal_is_a_leaf_that_was_judged() -> None:
    """The release judges the last node generated in place of the one at hand."""
    for posed in FOUR:
        found = run(posed, PAPER)
        for visit in visits(found):
            hits = [n for n in visit.successors if n.numbers == (posed.target,)]
            assert hits in ([], list(visit.successors[-1:]))
        if found.goal is not None:
            assert found.goal.numbers == (posed.target,)


def test_full_width_finds_whatever_there_is() -> None:
    for posed in FOUR:
        found = run(posed, SearchConfig(spawn_depth=1))
        assert (found.goal is not None) == reaches(posed.numbers, posed.target)


def test_successors_stand_in_a_fixed_order_and_equal_pairs_once() -> None:
    steps = [step for step, _ in successors((6, 3, 3))]
    spelled = [f"{s.a}{s.op}{s.b}={s.value}" for s in steps]
    assert spelled == ["6+3=9", "6-3=3", "6*3=18", "6/3=2", "3+3=6", "3-3=0", "3*3=9", "3/3=1"]
    states = dict(zip(spelled, (numbers for _, numbers in successors((6, 3, 3))), strict=True))
    assert states["6/3=2"] == (3, 2)
    assert states["3-3=0"] == (6, 0)
    assert [s.op for s, _ in successors((3, 0))] == ["+", "-", "*"]


def test_a_value_too_large_is_left_out() -> None:
    assert all(s.value <= 20 for s, _ in successors((9, 8, 7), max_value=20))
    config = SearchConfig(max_value=40, spawn_depth=1)
    values = [n.path[-1].value for v in visits(run(FOUR[0], config)) for n in v.successors]
    assert max(values) <= 40


BALANCED = SearchConfig(spawn_depth=1, max_value=300, balances=True)


def test_where_children_find_nothing_products_are_compared() -> None:
    """No path within 300; 43 * 41 - 37 * 46 = 61."""
    posed = Problem((43, 41, 46, 37), 61)
    bounded = replace(BALANCED, balances=False)
    assert run(posed, bounded).goal is None
    found = run(posed, BALANCED)
    first, last = found.visits
    assert (first,) == run(posed, bounded).visits
    assert last.mode is Mode.BALANCE
    assert last.balances == balances((46, 43, 41, 37), 61)
    assert found.goal is not None
    assert found.goal.path in [b.path for b in last.balances]
    assert found.goal.numbers == (61,)


def test_where_a_child_finds_something_they_are_not() -> None:
    solved = [p for p in FOUR if run(p, replace(BALANCED, balances=False)).goal]
    assert solved
    for posed in solved:
        assert run(posed, BALANCED) == run(posed, replace(BALANCED, balances=False))


def test_or_as_if_it_had_gone_unheard() -> None:
    for posed in FOUR:
        found = search(posed, BALANCED, random.Random(0), unheard=True)
        assert [v.mode for v in found.visits] == [Mode.SPAWN, Mode.BALANCE]
        assert found.visits[:1] == run(posed, replace(BALANCED, balances=False)).visits
        path = next((b.path for b in found.visits[1].balances if b.path), None)
        assert (found.goal and found.goal.path) == path


def test_what_a_root_found_by_itself_is_never_unheard() -> None:
    for settings in ({"spawn_size": 5}, {"promising": 0.5}):
        config = replace(BALANCED, **settings)
        plain = replace(config, balances=False)
        for posed in FOUR:
            found = search(posed, config, random.Random(1), unheard=True)
            before = search(posed, plain, random.Random(1))
            by_children = before.visits[-1].mode is Mode.SPAWN
            if before.goal is not None and not by_children:
                assert found == before
            else:
                assert found.visits[-1].mode is Mode.BALANCE


def test_only_three_or_four_numbers_are_balanced() -> None:
    for posed in (Problem((7,), 8), Problem((7, 2), 100), Problem((1, 1, 1, 1, 1), 90)):
        assert all(v.mode is not Mode.BALANCE for v in run(posed, BALANCED).visits)


def width(found: Search) -> list[int]:
    return [len(v.successors) for v in found.visits]


def test_a_root_that_heard_nothing_spawns_for_the_next_best() -> None:
    """In rounds it asks for what full width asks for at once, until something is found."""
    wide = SearchConfig(spawn_depth=1, max_value=100)
    narrow = replace(wide, beam=(3, 3), rounds=0)
    again = 0
    for posed in FOUR:
        found, whole = run(posed, narrow), run(posed, wide)
        assert (found.goal is None) == (whole.goal is None)
        assert {v.mode for v in found.visits} == {Mode.SPAWN}
        asked = [child for visit in found.visits for child in visit.successors]
        assert len(set(asked)) == len(asked)
        for visit in found.visits[:-1]:
            assert len(visit.successors) == 3
            assert all(s.goal is None for s in visit.searches)
        if found.goal is None:
            assert set(asked) == set(whole.visits[0].successors)
        again += len(found.visits) > 1
    assert again


def test_rounds_of_any_size_go_through_one_list() -> None:
    ranked = replace(BALANCED, beam=(1, 1), rounds=0, order=Order.HEURISTIC)
    for posed in FOUR[:10]:
        lists = []
        for size in (1, 2, 3, 5, 40):
            config = replace(ranked, beam=(size, size))
            found = search(posed, config, random.Random(0), unheard=True)
            *rounds, last = found.visits
            assert last.mode is Mode.BALANCE, "though children found something, nobody heard"
            assert {len(visit.successors) for visit in rounds[:-1]} <= {size}
            lists.append([child for visit in rounds for child in visit.successors])
            below = [v for visit in rounds for s in visit.searches for v in s.visits]
            whole = run(posed, BALANCED).visits[0].searches
            assert {v for s in whole for v in s.visits} == set(below), "at full width, in its order"
        assert all(one == lists[0] for one in lists)


def test_as_often_as_there_are_rounds_and_only_the_root() -> None:
    posed = Problem((1, 1, 1, 1, 2), 90)
    config = SearchConfig((2, 2), (2, 2), spawn_depth=2, rounds=3)
    found = run(posed, config)
    assert width(found) == [2, 2, 2]
    _, *below = searches(found)
    assert {len(s.visits) for s in below} == {1}
    assert run(posed, replace(config, rounds=1)).visits == found.visits[:1]


def test_the_best_go_first_whatever_the_heuristic() -> None:
    ranks = {
        Heuristic.SUM: lambda numbers, target: sum(numbers),
        Heuristic.MULTIPLY: multiply_heuristic,
    }
    for heuristic, posed in product(Heuristic, FOUR[:10]):
        config = SearchConfig((3, 3), spawn_depth=1, rounds=0, heuristic=heuristic)
        rounds = [
            [ranks[heuristic](child.numbers, posed.target) for child in visit.successors]
            for visit in run(posed, config).visits
        ]
        for better, worse in pairwise(rounds):
            assert max(better) <= min(worse)


def test_near_the_end_a_beam_can_be_of_full_width() -> None:
    config = SearchConfig((2, 2), (2, 2), spawn_depth=1, full_width=3, max_value=100)
    for posed in FOUR:
        for visit in visits(run(posed, config)):
            numbers = visit.node.numbers
            if len(numbers) == 3:
                assert len(visit.searches) == len(visit.successors) or visit.searches[-1].goal
                assert len(visit.successors) == len(successors(numbers, 100))
            elif len(numbers) == 4:
                assert len(visit.successors) == 2


def test_complete_expressions_that_cannot_hit_are_left_out() -> None:
    """No target is above 100, so a search finds what it found, and shows less."""
    whole = SearchConfig(max_value=1_000, spawn_depth=1)
    short = replace(whole, max_final=100)
    left_out = 0
    for posed in FOUR:
        long, told = run(posed, whole), run(posed, short)
        assert told.goal == long.goal
        mine, all_of_them = [[*visits(found)] for found in (told, long)]
        assert [v.node for v in mine] == [v.node for v in all_of_them]
        for visit, full in zip(mine, all_of_them, strict=True):
            complete = len(visit.node.numbers) == 2
            kept = [n for n in full.successors if not complete or n.path[-1].value <= 100]
            assert list(visit.successors) == kept
            left_out += len(full.successors) - len(kept)
    assert left_out > 1_000


def test_the_multiply_heuristic_is_the_distance_to_factors() -> None:
    # Of 24: 2 3 4 6 8 12 24.
    assert multiply_heuristic((24,), 24) == 0
    assert multiply_heuristic((10, 7, 1), 24) == 2 + 1 + 1
    assert multiply_heuristic((30,), 24) == 6
    # Of 1 there is none: the distance to the target itself.
    assert multiply_heuristic((5,), 1) == 4


def test_a_beam_keeps_the_nearest_in_the_order_enumerated() -> None:
    posed = Problem((9, 8, 4, 3), 24)
    enumerated = successors((9, 8, 4, 3))
    ranks = sorted(multiply_heuristic(numbers, 24) for _, numbers in enumerated)
    visit = run(posed, SearchConfig((5, 5), promising=0.0)).visits[0]
    kept = [node.path[-1] for node in visit.successors]
    assert len(kept) == 5
    assert sorted(multiply_heuristic(n.numbers, 24) for n in visit.successors) == ranks[:5]
    assert kept == [step for step, _ in enumerated if step in kept]


def test_of_equal_rank_the_first_enumerated_are_kept() -> None:
    enumerated = successors((9, 8, 4, 3))
    by_rank = sorted(enumerated, key=lambda s: multiply_heuristic(s[1], 24))
    for beam in range(1, len(enumerated) + 1):
        config = SearchConfig((beam, beam), promising=0.0)
        visit = run(Problem((9, 8, 4, 3), 24), config).visits[0]
        assert {n.path[-1] for n in visit.successors} == {step for step, _ in by_rank[:beam]}


def test_orders_keep_the_same_successors() -> None:
    posed = Problem((9, 8, 4, 3), 24)
    first = {
        order: run(posed, SearchConfig((6, 6), promising=0.0, order=order)).visits[0].successors
        for order in Order
    }
    assert len({frozenset(nodes) for nodes in first.values()}) == 1
    ranks = [multiply_heuristic(n.numbers, 24) for n in first[Order.HEURISTIC]]
    assert ranks == sorted(ranks)
    shuffled = {
        run(posed, SearchConfig((6, 6), promising=0.0, order=Order.SHUFFLED), seed)
        .visits[0]
        .successors
        for seed in range(10)
    }
    assert len(shuffled) > 5


def test_beams_are_drawn_from_their_ranges() -> None:
    config = SearchConfig((2, 4), (5, 7), promising=1.0, spawn_depth=1)
    posed = Problem((29, 23, 17, 13), 61)
    root, child = set(), set()
    for seed in range(60):
        (visit, *_) = run(posed, config, seed).visits
        assert visit.mode is Mode.SPAWN
        root.add(len(visit.successors))
        child |= {len(s.visits[0].successors) for s in visit.searches}
    assert root == {2, 3, 4}
    assert child == {5, 6, 7}


def test_listed_states_are_taken_up_best_first() -> None:
    posed = Problem((9, 8, 4, 3), 23)
    found = run(posed, SearchConfig((4, 4), promising=0.0))
    waiting: list[int] = []
    for visit in found.visits:
        rank = multiply_heuristic(visit.node.numbers, 23)
        if visit.node.path:
            assert rank == min(waiting)
            waiting.remove(rank)
        if len(visit.node.numbers) > 2:
            waiting += [multiply_heuristic(n.numbers, 23) for n in visit.successors]
    assert all(visit.mode is Mode.LIST for visit in found.visits)


def test_with_full_width_they_are_taken_up_as_they_came() -> None:
    found = run(Problem((9, 8, 4), 99), SearchConfig(promising=0.0))
    (first, *others) = found.visits
    assert [v.node for v in others] == list(first.successors)


def test_a_dive_shows_all_and_ends_at_a_goal() -> None:
    posed = Problem((9, 8, 4, 3), 24)
    found = run(posed, SearchConfig())
    (visit,) = found.visits
    assert visit.mode is Mode.DIVE
    assert len(visit.successors) == len(successors((9, 8, 4, 3)))
    assert len(visit.searches) < len(visit.successors)
    assert [s.goal is not None for s in visit.searches][-1:] == [True]
    assert not any(s.goal for s in visit.searches[:-1])
    assert [s.start for s in visit.searches] == list(visit.successors[: len(visit.searches)])


def test_a_spawn_searches_every_child() -> None:
    found = run(Problem((9, 8, 4, 3), 24), SearchConfig((6, 6), (6, 6), spawn_depth=1))
    visit = found.visits[0]
    assert visit.mode is Mode.SPAWN
    assert [s.start for s in visit.searches] == list(visit.successors)
    goals = [s.goal for s in visit.searches if s.goal is not None]
    assert len(goals) > 1
    assert found.goal == goals[0]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_threads_spawn_no_deeper_than_allowed(depth: int) -> None:
    config = SearchConfig((3, 3), (3, 3), spawn_depth=depth, spawn_size=3)

    def depth_of(found: Search) -> int:
        below = [depth_of(s) + (v.mode is Mode.SPAWN) for v in found.visits for s in v.searches]
        return max(below, default=0)

    assert max(depth_of(run(p, config)) for p in FOUR) == depth


def test_small_states_are_not_worth_a_spawn() -> None:
    config = SearchConfig((3, 3), (3, 3), spawn_depth=3, spawn_size=4)
    for posed in FOUR:
        spawned = [v for v in visits(run(posed, config)) if v.mode is Mode.SPAWN]
        assert {len(v.node.numbers) for v in spawned} == {4}


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_spawn_has_at_most_max_children(most: int) -> None:
    config = SearchConfig(spawn_depth=1, max_children=most, child_beam=(2, 2))
    for posed in FOUR[:10]:
        spawned = [v for v in visits(run(posed, config)) if v.mode is Mode.SPAWN]
        assert [len(v.searches) for v in spawned] == [most]


def test_a_problem_of_one_number() -> None:
    solved = run(Problem((5,), 5), PAPER)
    assert solved.goal == solved.start == start_of(Problem((5,), 5))
    assert run(Problem((5,), 6), PAPER).goal is None
