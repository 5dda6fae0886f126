from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from apr.errors import ContextError
from apr.eval.run import run_problems
from apr.runtime import Observer
from apr.trace import End, Thread, Trace


@dataclass
class Sleeper:
    """Solves problem n in n milliseconds; -1 cannot be posed."""

    name: str = "sleeper"
    num_active: int = 0
    most_active: int = 0
    num_cancelled: int = 0

    async def solve(self, problem: int, observer: Observer | None = None) -> Trace:
        if problem < 0:
            raise ContextError(f"the prompt of {problem} leaves no room")
        self.num_active += 1
        self.most_active = max(self.most_active, self.num_active)
        try:
            await asyncio.sleep(problem / 1000)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_active -= 1
        return Trace({"n": problem}, self.name, (Thread(0, None, "", (), (), End.JOINED, ""),))


def numbers(traces: list[Trace]) -> list[int]:
    return [trace.problem["n"] for trace in traces]


def test_traces_come_in_the_order_of_the_problems() -> None:
    ended: list[Trace] = []
    traces = asyncio.run(run_problems(Sleeper(), [40, 1, 20], 3, ended.append))
    assert numbers(traces) == [40, 1, 20]
    assert numbers(ended) == [1, 20, 40]


@pytest.mark.parametrize("concurrency", [1, 3, 100])
def test_no_more_run_than_asked_for(concurrency: int) -> None:
    sleeper = Sleeper()
    traces = asyncio.run(run_problems(sleeper, iter(range(10)), concurrency))
    assert numbers(traces) == list(range(10))
    assert sleeper.most_active == min(concurrency, 10)


def test_no_problems_no_traces() -> None:
    assert asyncio.run(run_problems(Sleeper(), [], 4)) == []


def test_bad_input_is_raised_itself_and_ends_the_rest() -> None:
    sleeper = Sleeper()
    with pytest.raises(ContextError, match="prompt of -1"):
        asyncio.run(run_problems(sleeper, [10_000, 10_000, -1, 10_000], 4))
    assert sleeper.num_active == 0
    assert sleeper.num_cancelled == 3


def test_cancelling_cancels_every_run() -> None:
    sleeper = Sleeper()

    async def cut_short() -> None:
        async with asyncio.timeout(0.01):
            await run_problems(sleeper, [10_000] * 5, 4)

    with pytest.raises(TimeoutError):
        asyncio.run(cut_short())
    assert sleeper.num_cancelled == 4
