"""Engines that do the same work in turns."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.work import Generate


class Result(NamedTuple):
    """Of each engine by its name."""

    tokens_per_second: dict[str, float]  # median of the rounds
    same_ids: dict[str, float]  # share of requests that got the ids that the first engine gave

    def figures(self) -> dict[str, dict[str, float]]:
        """Also how many times as fast as each other engine the first is."""
        first, *others = self.tokens_per_second
        speed = self.tokens_per_second[first]
        ratios = {name: round(speed / self.tokens_per_second[name], 3) for name in others}
        return {**self._asdict(), "ratios": ratios}


def race(engines: Mapping[str, Generate], rounds: int) -> Result:
    """Each engine in turn, ``rounds`` times, after a round to warm up."""
    rates: dict[str, list[float]] = defaultdict(list)
    same: dict[str, list[bool]] = defaultdict(list)
    for n in range(rounds + 1):
        first: list[list[int]] | None = None
        for name, generate in engines.items():
            start = time.perf_counter()
            answers = generate(n)
            rate = sum(map(len, answers)) / (time.perf_counter() - start)
            note = "" if n else " (warm-up)"
            print(f"round {n} {name}: {rate:.0f} tokens/s{note}", flush=True)
            first = first or answers
            same[name] += map(list.__eq__, answers, first)
            if n:
                rates[name].append(rate)
    return Result(
        {name: round(statistics.median(r), 1) for name, r in rates.items()},
        {name: round(sum(s) / len(s), 3) for name, s in same.items()},
    )
