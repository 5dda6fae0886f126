"""Hand-made rollouts of one problem, small enough to work out by hand what each token is worth.

All ids are below 40. Those from 10 on were sampled, and a call ends in SPAWN or JOIN.
"""

from __future__ import annotations

from collections.abc import Sequence

from apr.trace import Call, End, Thread, Trace
from apr.train.advantage import Advantage, Credit
from apr.types import FinishReason, Grade, Ids

SPAWN, JOIN = 38, 39


def engine_logprob(id: int) -> float:
    """What the engine reports; so far from a tiny model's own that a cap of 2 is met."""
    return -3.0 - id % 4 / 2


def call(prompt: Ids, *sampled: int, shift: float = 0.0) -> Call:
    logprobs = tuple(engine_logprob(i) + shift for i in sampled)
    return Call(prompt, sampled, logprobs, FinishReason.STOP, 0.0, 1.0)


def thread(
    index: int,
    parent: int | None,
    message: str,
    *calls: Call,
    spawns: tuple[tuple[int, ...], ...] = (),
    end: End = End.JOINED,
) -> Thread:
    return Thread(index, parent, message, calls, spawns, end, "")


def trace(
    *threads: Thread, correct: bool = False, own: Sequence[float | None] | None = None
) -> Trace:
    """``own``: each thread's own return, as ``judge`` tells it."""
    own = [None] * len(threads) if own is None else own
    return Trace({}, "apr", threads, grade=Grade(correct, ""), meta={"own": own})


def judge(trace: Trace) -> list[float | None]:
    own: list[float | None] = trace.meta["own"]
    return own


# 14 tokens, 10 of them in sequence. A root that goes on once, a child that does and has a child
# itself, and a child whose prompt was written anew. A root's own return is to be ignored.
NESTED = trace(
    thread(
        0,
        None,
        "go",
        call((2, 3), 10, 11, SPAWN),
        call((2, 3, 10, 11, SPAWN, 8, 9), 12, JOIN),
        spawns=((1, 3),),
    ),
    thread(1, 0, "x", call((4,), 13, SPAWN), call((4, 13, SPAWN, 8), JOIN), spawns=((2,),)),
    thread(2, 1, "y", call((5,), 14, JOIN)),
    thread(3, 0, "z", call((6,), 15, 16), call((7, 9), 17, JOIN)),
    correct=True,
    own=[0.0, 1.0, 0.0, 1.0],
)

# 12 tokens, 5 in sequence, 10 with log-probabilities. Two children with one message; one that wrote
# what a child of NESTED did; one of which nobody can tell; one cut short, which costs all the same.
WIDE = trace(
    thread(
        0,
        None,
        "go",
        call((2, 3), 10, SPAWN),
        call((2, 3, 10, SPAWN, 8, 9, 8), JOIN),
        spawns=((1, 2, 3, 4, 5),),
    ),
    thread(1, 0, "x", call((4,), JOIN)),
    thread(2, 0, "x", call((4,), 18, JOIN)),
    thread(3, 0, "y", call((5,), 14, JOIN, shift=-0.25)),
    thread(4, 0, "y", call((5,), 21, 22), end=End.EXHAUSTED),
    thread(5, 0, "w", Call((7,), (23, 24), (), None, 0.0, 1.0), end=End.CANCELLED),
    own=[1.0, 0.0, 0.0, 1.0, None, None],
)

# 4 tokens, no spawn.
SERIAL = trace(thread(0, None, "go", call((2, 3), 25, 26, 27, JOIN)))

# The engine went down.
FAILED = Trace(
    {},
    "apr",
    (thread(0, None, "go", Call((2, 3), (28,), (), None, 0.0, 1.0), end=End.FAILED),),
    error="EngineError: down",
)

ROLLOUTS = [NESTED, WIDE, SERIAL]

ROOT_2 = 2**0.5
# Rewards are 1, 0, 0; the children's own returns by message: x 1, 0, 0; y 0, 1; z 1, alone. For
# credit ``mixed``, a quarter is the child's own.
ADVANTAGES = {
    (Advantage.GRPO, Credit.ROOT): [[ROOT_2] * 4, [-1 / ROOT_2] * 6, [-1 / ROOT_2]],
    (Advantage.GRPO, Credit.THREAD): [
        [ROOT_2, ROOT_2, -1.0, 0.0],
        [-1 / ROOT_2, -1 / ROOT_2, -1 / ROOT_2, 1.0, -1 / ROOT_2, -1 / ROOT_2],
        [-1 / ROOT_2],
    ],
    (Advantage.MEAN_ONLY, Credit.ROOT): [[2 / 3] * 4, [-1 / 3] * 6, [-1 / 3]],
    (Advantage.MEAN_ONLY, Credit.THREAD): [
        [2 / 3, 2 / 3, -1 / 2, 0.0],
        [-1 / 3, -1 / 3, -1 / 3, 1 / 2, -1 / 3, -1 / 3],
        [-1 / 3],
    ],
    (Advantage.MEAN_ONLY, Credit.MIXED): [
        [2 / 3, 2 / 3, 3 / 8, 1 / 2],
        [-1 / 3, -1 / 3, -1 / 3, -1 / 8, -1 / 3, -1 / 3],
        [-1 / 3],
    ],
    (Advantage.LEAVE_ONE_OUT, Credit.ROOT): [[1.0] * 4, [-1 / 2] * 6, [-1 / 2]],
    (Advantage.LEAVE_ONE_OUT, Credit.THREAD): [
        [1.0, 1.0, -1.0, 0.0],
        [-1 / 2, -1 / 2, -1 / 2, 1.0, -1 / 2, -1 / 2],
        [-1 / 2],
    ],
}
