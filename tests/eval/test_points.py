from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr.eval.cell import Cell, Results, read_results, write_results
from apr.eval.metrics import wilson
from apr.eval.points import Family, Point, alone_points, curves, points_of, within
from apr.eval.samples import Sample
from tests.eval.cells import cell, fill, trace


def results(folder: Path, made: Cell, solved: list[bool | None], end: float = 1.0) -> Results:
    (folder / made.name).mkdir(parents=True, exist_ok=True)
    write_results(folder / made.name, [trace(i, s, (10, 5), end) for i, s in enumerate(solved)], [])
    found = read_results(folder, made)
    assert found is not None
    return found


def sampled(folder: Path, made: Cell, correct: list[list[bool]]) -> Results:
    """Problem i has the samples of ``correct[i]``, of 10 (i + 1) tokens each."""
    traces = [trace(i, row[0]) for i, row in enumerate(correct)]
    drawn = [
        Sample(i, n, "right" if good else f"wrong {n}", good, 10 * (i + 1), 10 * (i + 1))
        for i, row in enumerate(correct)
        for n, good in enumerate(row)
    ]
    (folder / made.name).mkdir(parents=True)
    write_results(folder / made.name, traces, drawn)
    found = read_results(folder, made)
    assert found is not None
    return found


def test_a_cell_is_a_point(tmp_path: Path) -> None:
    (point,) = points_of([results(tmp_path, cell(), [True, False, True, None])])
    assert point.accuracy == (2 / 3, wilson(2, 3))
    assert (point.num_failed, point.num_seeds) == (1, 1)
    assert point.mean("total_tokens") == 15
    assert point.label == "threads"
    assert point.command == cell().command
    # The cell took until its last problem ended.
    assert point.goodput == pytest.approx(2 / 0.4)
    assert np.isnan(point.alone)


def test_seeds_of_one_setting_are_one_point(tmp_path: Path) -> None:
    first, second = (cell(temperature=1.0, seed=seed) for seed in (0, 1))
    (point,) = points_of(
        [results(tmp_path, first, [True, True]), results(tmp_path, second, [False, None])]
    )
    assert point.num_seeds == 2
    assert point.scores_P.tolist() == [0.5, 1.0]
    assert point.accuracy.value == 0.75
    assert point.accuracy.interval != wilson(1, 2)
    assert point.command == first.command


def test_a_cell_measured_alone_is_the_clock_of_its_setting(tmp_path: Path) -> None:
    both = [
        results(tmp_path, cell(), [True, False]),
        results(tmp_path, replace(cell(concurrency=1), problems="fewer"), [True], end=0.25),
    ]
    (point,) = points_of(both)
    assert (point.mean("wall_clock"), point.alone) == (1.0, 0.25)
    (alone,) = alone_points(both)
    assert alone.mean("wall_clock") == 0.25
    (only,) = points_of(both[1:])
    assert (only.accuracy.value, only.alone, only.goodput) == (1.0, 0.25, None)


def test_budgets_are_points_of_one_curve(tmp_path: Path) -> None:
    made = [cell(children=n) for n in (6, 1, 3)]
    points = points_of([results(tmp_path, m, [True]) for m in made])
    assert [p.label for p in points] == [
        "threads, 6 children",
        "threads, 1 child",
        "threads, 3 children",
    ]
    (series,) = curves(points).values()
    assert [p.cell.children for p in series] == [1, 3, 6]


def test_samples_are_curves_of_cons_and_pass(tmp_path: Path) -> None:
    made = cell("serial", "SoS+", method="best_of_n", temperature=1.0, seed=0)
    correct = [[True, False, True], [False, False, True], [False, False, False]]
    points = points_of([sampled(tmp_path, made, correct)])
    families = curves(points)
    assert set(families) == {
        "serial, best of n (first)",
        "serial, cons@n",
        "serial, pass@n",
    }
    passed = families["serial, pass@n"]
    assert [p.accuracy.value for p in passed] == pytest.approx([3 / 9, 5 / 9, 2 / 3])
    assert [p.mean("total_tokens") for p in passed] == [20, 40, 60]
    assert [p.command for p in passed] == [f"apr serial pass {n}" for n in (1, 2, 3)]
    assert all(p.needs_verifier for p in passed)
    voted = families["serial, cons@n"]
    assert voted[0].scores_P == pytest.approx(passed[0].scores_P)
    assert voted[2].scores_P.tolist() == [1.0, 0.0, 0.0]
    assert not any(p.needs_verifier for p in voted)
    # All samples were drawn together: that is the clock of voting on all of them.
    assert [p.goodput is None for p in voted] == [True, True, False]
    assert voted[2].mean("wall_clock") == 1.0
    assert np.isnan(voted[1].mean("wall_clock"))


def test_the_same_samples_are_told_of_once(tmp_path: Path) -> None:
    how: dict[str, Any] = {"method": "best_of_n", "temperature": 1.0, "seed": 0}
    made = [cell("serial", "SoS+", **how), cell("serial", "SoS+", chooser="logprob", **how)]
    made += [cell(within=within, **how) for within in ("apr", "serial")]
    made.append(cell("serial", "SoS+", within="apr", **how))
    points = points_of([sampled(tmp_path, m, [[True, False]]) for m in made])
    assert [p.series for p in points if p.family is Family.CONS and p.size == 2] == [
        "serial, cons@n",
        "threads, cons@n",
        "threads, cons@n, not spawning",
        "serial, cons@n, spawning",
    ]


def test_points_are_compared_on_the_same_problems_only(tmp_path: Path) -> None:
    a, b, other = cell(), cell(children=3), replace(cell(children=4), problems="others")
    x, y, z = points_of(
        [
            results(tmp_path, a, [True, True, False, None]),
            results(tmp_path, b, [False, True, False, True]),
            results(tmp_path, other, [True, True, True, True]),
        ]
    )
    gain = x.over(y)
    assert gain is not None
    assert gain.value == pytest.approx(1 / 3)
    assert x.over(z) is None


def test_the_largest_budget_within_an_amount(tmp_path: Path) -> None:
    def point(total: float) -> Point:
        (made,) = points_of([results(tmp_path, cell(children=int(total)), [True])])
        return replace(made, columns={"total_tokens": np.array([total])})

    series = [point(t) for t in (10, 30, 20)]
    assert within(series, "total_tokens", 25) is series[2]
    assert within(series, "total_tokens", 1000) is series[1]
    assert within(series, "total_tokens", 30) is series[1]
    assert within(series, "total_tokens", 9.9) is None
    assert within(series, "sequential_tokens", 1000) is None, "what is not known is not within"


@pytest.mark.parametrize(
    ("how", "family", "label"),
    [
        ({"method": "serial"}, Family.SERIAL, "threads, serial"),
        ({"method": "pasta"}, Family.PASTA, "threads"),
        ({"besides": "first success"}, Family.THREADS, "threads, first success"),
        ({"children": 0}, Family.THREADS, "threads, 0 children"),
        (
            {"method": "hogwild", "taken": "all"},
            Family.HOGWILD,
            "threads, hogwild (all), n = 8",
        ),
        ({"method": "self_consistency"}, Family.CONS, "threads, cons@n, not spawning, n = 8"),
        ({"method": "multi_agent"}, Family.AGENTS, "threads, agents, not spawning, n = 8"),
        ({"method": "tree_of_thoughts"}, Family.TREE, "threads, tree_of_thoughts"),
        ({"window": 512}, Family.THREADS, "threads, window 512"),
        ({"limits": {"context": 1024}}, Family.THREADS, "threads, context 1,024"),
    ],
)
def test_labels(tmp_path: Path, how: dict[str, Any], family: Family, label: str) -> None:
    made = cell(**how)
    fill(tmp_path, made, 0.5)
    found = read_results(tmp_path, made)
    assert found is not None
    (point,) = points_of([found])
    assert (point.family, point.label) == (family, label)


def test_engines_are_told_apart(tmp_path: Path) -> None:
    exact, rounded = cell("float"), cell("int8")
    rounded = replace(rounded, fingerprint=exact.fingerprint, engine="embedded://?products=int8")
    points = points_of(
        [results(tmp_path, exact, [True, True]), results(tmp_path, rounded, [True, False])]
    )
    assert [(p.label, p.accuracy.value, p.num_seeds) for p in points] == [
        ("float", 1.0, 1),
        ("int8", 0.5, 1),
    ]


def test_the_most_samples_are_the_curve_and_each_setting_has_its_own(tmp_path: Path) -> None:
    def drawn(samples: int, context: int | None) -> Results:
        how = {"method": "best_of_n", "samples": samples, "limits": {"context": context}}
        made = cell("serial", "SoS+", temperature=1.0, seed=0, **how)
        return sampled(tmp_path, made, [[True, False, True, False][:samples]])

    points = points_of([drawn(2, 256), drawn(2, None), drawn(4, None)])
    found = {name: [p.size for p in c] for name, c in curves(points).items() if "@" in name}
    assert found == {
        "serial, cons@n": [1, 2, 3, 4],
        "serial, pass@n": [1, 2, 3, 4],
        "serial, cons@n, context 256": [1, 2],
        "serial, pass@n, context 256": [1, 2],
    }


def test_what_is_measured_alone_takes_no_curve_away(tmp_path: Path) -> None:
    how: dict[str, Any] = {"method": "best_of_n", "temperature": 1.0, "seed": 0}
    alone, loaded = (cell("serial", "SoS+", concurrency=n, **how) for n in (1, 64))
    correct = [[True, False]]
    points = points_of([sampled(tmp_path, c, correct) for c in (alone, loaded)])
    assert [p.label for p in points if p.family is Family.PASS] == [
        "serial, pass@n, n = 1",
        "serial, pass@n, n = 2",
    ]


def test_no_children_are_the_smallest_budget(tmp_path: Path) -> None:
    made = [cell(children=n) for n in (2, 0, 1)]
    (series,) = curves(points_of([results(tmp_path, m, [True]) for m in made])).values()
    assert [p.cell.children for p in series] == [0, 1, 2]


def test_a_seed_that_the_world_failed_is_no_seed(tmp_path: Path) -> None:
    first, second = (cell(temperature=1.0, seed=seed) for seed in (0, 1))
    (point,) = points_of(
        [results(tmp_path, first, [None, None]), results(tmp_path, second, [True, False])]
    )
    assert (len(point.seeds), point.num_failed, point.accuracy.value) == (1, 2, 0.5)
