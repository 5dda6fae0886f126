"""Cells with made-up results, for what reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr.eval.cell import SETTING, Cell, Grid, write_results
from apr.eval.grid import write_grid
from apr.eval.paper import TEMPERATURES, Setting
from apr.eval.samples import Sample
from apr.trace import Call, End, Thread, Trace
from apr.types import FinishReason, Grade

NUM_PROBLEMS = 40
HOW: dict[str, Any] = {
    "method": "apr",
    "samples": 8,
    "within": "serial",
    "chooser": "first",
    "temperature": 0.0,
    "seed": None,
    "children": None,
    "window": None,
    "limits": {"context": None},
}


def cell(model: str = "threads", stands_for: str = "APR", **how: Any) -> Cell:
    """``how`` sets what of the inference is not usual, ``concurrency`` and ``besides``."""
    concurrency, besides = how.pop("concurrency", 64), how.pop("besides", "")
    method = how.get("method", "apr")
    draws = {"cons": f"apr {model} cons {{n}}", "pass": f"apr {model} pass {{n}}"}
    made = Cell(
        model=model,
        stands_for=stands_for,
        checkpoint=f"runs/{model}",
        fingerprint=model,
        method={"best_of_n": "best of 8 serial, first"}.get(method, method),
        inference={**HOW, **how},
        problems="all",
        count=NUM_PROBLEMS,
        concurrency=concurrency,
        command="",
        besides=besides,
        draws=draws if method == "best_of_n" else {},
    )
    return replace(made, command=f"apr eval {made.name}")


def call(num_sampled: int, end: float = 1.0) -> Call:
    ids = tuple(range(num_sampled))
    return Call((1, 2, 3), ids, tuple(0.0 for _ in ids), FinishReason.STOP, 0.0, end)


def trace(
    index: int, correct: bool | None, tokens: Sequence[int] = (10,), end: float = 1.0
) -> Trace:
    """A root of ``tokens[0]`` tokens, and a child of each other number; None is a failure."""
    children = tuple(range(1, len(tokens)))
    threads = [
        Thread(
            i,
            0 if i else None,
            "",
            (call(n, end),),
            (children,) if children and not i else (),
            End.JOINED,
            "",
        )
        for i, n in enumerate(tokens)
    ]
    return Trace(
        {"numbers": [index, 2], "target": 3},
        "apr",
        tuple(threads),
        answer="1" if correct else None,
        grade=None if correct is None else Grade(correct, "because"),
        error="EngineError: down" if correct is None else None,
        meta={"index": index, "ended": end * (index + 1) / 10},
    )


def fill(folder: Path, made: Cell, accuracy: float, num_children: int = 0) -> None:
    """Results for ``made``: which problems are solved depends on how hard they are, and on luck."""
    rng = random.Random(made.name)
    traces, samples = [], []
    num_samples = 8 if made.inference["method"] == "best_of_n" else 0
    for index in range(NUM_PROBLEMS):
        ease = accuracy + (index / NUM_PROBLEMS - 0.5) * 0.4
        tokens = [rng.randint(30, 90)] + [rng.randint(10, 30) for _ in range(num_children)]
        traces.append(trace(index, rng.random() < ease, tokens, rng.uniform(0.2, 2)))
        for number in range(num_samples):
            correct = rng.random() < ease
            claim = "right" if correct else rng.choice(["wrong", "other", None])
            length = rng.randint(40, 100)
            samples.append(Sample(index, number, claim, correct, length, length))
    (folder / made.name).mkdir(parents=True)
    (folder / made.name / SETTING).write_text(json.dumps(made.to_json()))
    write_results(folder / made.name, traces, samples)


def fill_whole_grid(folder: Path) -> list[Cell]:
    """Everything that a figure or a table asks for."""
    threads = [(Setting.THREADS, 0.6, 4), (Setting.THREADS_RL, 0.75, 6)]
    serial = [(Setting.SERIAL, 0.5, 0), (Setting.SERIAL_RL, 0.55, 0)]
    filled: list[tuple[Cell, float, int]] = []
    for temperature in TEMPERATURES:
        how: dict[str, Any] = {"temperature": temperature, "seed": 0 if temperature else None}
        loss = temperature / 10
        for setting, accuracy, _ in serial:
            made = cell(_named(setting), setting, method="serial", **how)
            filled.append((made, accuracy - loss, 0))
        if temperature:
            made = cell("serial", Setting.SERIAL, method="best_of_n", **how)
            filled.append((made, 0.5 - loss, 8))
        for setting, accuracy, children in threads:
            filled.append((cell(_named(setting), setting, **how), accuracy - loss, children))
        for setting in (Setting.CHILDREN, Setting.CHILDREN_RL):
            for n in range(1, 7):
                made = cell(_named(setting), setting, children=n, **how)
                filled.append((made, 0.3 + n * 0.08 - loss, n))
    for setting, accuracy, children in threads + serial:
        method = "serial" if setting.startswith("SoS") else "apr"
        made = cell(_named(setting), setting, method=method, concurrency=1)
        filled.append((made, accuracy, children))
    for made, accuracy, children in filled:
        fill(folder, made, accuracy, children)
    cells = [made for made, _, _ in filled]
    write_grid(folder, Grid(cells, "a machine", "apr eval recipes/grid.toml"))
    return cells


def _named(setting: Setting) -> str:
    names = {"SoS+": "serial", "APR": "threads", "APR conditioned": "threads, asked for"}
    return names[setting.removesuffix(" + RL")] + (" + RL" if setting.endswith("RL") else "")
