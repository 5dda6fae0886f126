"""What one run with many samples says of all smaller numbers of samples.

A trace of ``best_of_n`` or ``self_consistency`` keeps every sample it drew. From N of them follow
pass@n and cons@n for every n up to N, averaged over the choices of n among N, which is less noisy
than to draw n anew for each.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from math import comb
from statistics import fmean
from typing import NamedTuple

from apr.eval.metrics import pass_at_n
from apr.interfaces import Task
from apr.methods import P, claim
from apr.trace import Trace

MAX_CHOICES = 1_000
"""Choices of n among N samples that are voted on; where there are more, so many at random."""


class Sample(NamedTuple):
    """One sample of one problem."""

    problem: int  # its index
    sample: int  # from 0, in the order of the seeds
    claim: str | None  # its answer in canonical form; None where it claims none
    correct: bool
    total_tokens: int
    sequential_tokens: int


class Spent(NamedTuple):
    """What n samples of one problem come to, on average over the choices of n."""

    score: float  # chance that the problem counts as solved
    total_tokens: float
    sequential_tokens: float  # of the longest of the n


def samples_of(trace: Trace, task: Task[P], problem: P, index: int) -> list[Sample]:
    """Those that a trace of ``best_of_n`` or ``self_consistency`` drew; none, if it failed."""
    if trace.error is not None or trace.root.calls or len(trace.root.spawns) != 1:
        return []
    (roots,) = trace.root.spawns
    return [
        _sample(subtree(trace, root), task, problem, index, number)
        for number, root in enumerate(roots)
    ]


def subtree(trace: Trace, root: int) -> Trace:
    """The thread at ``root`` and all below it, as a trace of its own without a grade."""
    end = root + 1
    while end < len(trace.threads) and (trace.threads[end].parent or 0) >= root:
        end += 1
    threads = tuple(
        replace(
            thread,
            index=thread.index - root,
            parent=None if thread.index == root or thread.parent is None else thread.parent - root,
            spawns=tuple(tuple(child - root for child in spawn) for spawn in thread.spawns),
        )
        for thread in trace.threads[root:end]
    )
    return Trace(trace.problem, trace.method, threads)


def pass_n(samples: Sequence[Sample], n: int) -> Spent:
    """pass@n of one problem (Chen et al., 2107.03374)."""
    num_correct = sum(s.correct for s in samples)
    return _spent(samples, n, pass_at_n(len(samples), num_correct, n))


def cons_n(samples: Sequence[Sample], n: int) -> Spent:
    """cons@n of one problem: the share of choices of n whose vote is right.

    The vote is that of ``apr.methods.self_consistency``: no claim, no vote; of equals the earliest.
    """
    score = fmean(_vote(chosen) for chosen in _choices(samples, n))
    return _spent(samples, n, score)


def _sample(own: Trace, task: Task[P], problem: P, index: int, number: int) -> Sample:
    answer = claim(task, own.root)
    return Sample(
        problem=index,
        sample=number,
        claim=None if answer is None else task.canonical(answer),
        correct=task.grade(problem, answer).correct,
        total_tokens=own.total_tokens,
        sequential_tokens=own.sequential_tokens,
    )


def _vote(samples: Sequence[Sample]) -> bool:
    claims = [s for s in samples if s.claim is not None]
    votes = Counter(s.claim for s in claims)
    # ``max`` takes the first of equals.
    return bool(claims) and max(claims, key=lambda s: votes[s.claim]).correct


def _choices(samples: Sequence[Sample], n: int) -> Iterator[Sequence[Sample]]:
    if comb(len(samples), n) <= MAX_CHOICES:
        yield from combinations(samples, n)
        return
    rng = random.Random(f"{len(samples)}/{n}")
    for _ in range(MAX_CHOICES):
        yield [samples[i] for i in sorted(rng.sample(range(len(samples)), n))]


def _spent(samples: Sequence[Sample], n: int, score: float) -> Spent:
    return Spent(
        score=score,
        total_tokens=n * fmean(s.total_tokens for s in samples),
        sequential_tokens=_mean_longest([s.sequential_tokens for s in samples], n),
    )


def _mean_longest(lengths: Sequence[int], n: int) -> float:
    """Mean, over all choices of ``n``, of the longest: it is the k-th shortest in C(k - 1, n - 1)
    of them."""
    ordered = sorted(lengths)
    weighed = sum(comb(k, n - 1) * length for k, length in enumerate(ordered))
    return weighed / comb(len(ordered), n)
