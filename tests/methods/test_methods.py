from __future__ import annotations

import asyncio

import pytest

from apr.dialects.tags import Tags
from apr.errors import EngineError
from apr.methods.apr import APR
from apr.methods.serial import Serial
from apr.runtime import Runtime
from apr.testing import ByteCodec, Reply, Script, ScriptedEngine
from apr.trace import End, Trace
from apr.types import Grade, Sampling
from tests.methods.doubling import Doubling

SPAWN = "<spawn><thread>a</thread></spawn>"
SCRIPT = {
    "4?": SPAWN,
    "<thread>a</thread>": "<join>8</join>",
    f"4?{SPAWN}<joined><thread>8</thread></joined>": "<join>8</join>",
    f"4?{SPAWN}<joined><thread></thread></joined>": "<join>7</join>",
    "1?": "<join></join>",
    "2?": "<join>4",
    "3?": Reply("<join>6", error=EngineError("down")),
}


def solve(
    method: type[APR[int]] | type[Serial[int]], problem: int, script: Script = SCRIPT
) -> Trace:
    codec = ByteCodec()
    runtime = Runtime(ScriptedEngine(script, codec), codec, Tags(), Sampling(max_tokens=100))
    return asyncio.run(method(runtime, Doubling()).solve(problem))


def test_apr_spawns_and_its_answer_is_graded() -> None:
    trace = solve(APR, 4)
    assert (trace.problem, trace.method, trace.num_children) == ({"number": 4}, "apr", 1)
    assert (trace.answer, trace.grade) == ("8", Grade(True, "correct"))


def test_serial_refuses_every_spawn_and_tells_the_model_so() -> None:
    trace = solve(Serial, 4)
    assert (trace.method, trace.num_children) == ("serial", 0)
    assert (trace.answer, trace.grade) == ("7", Grade(False, "wrong"))
    assert trace.root.notes == ("Refused 1 of 1 children: threads may be 0 levels deep.",)


@pytest.mark.parametrize(("problem", "end"), [(1, End.JOINED), (2, End.MALFORMED)])
def test_a_run_that_claims_nothing_is_graded_as_wrong(problem: int, end: End) -> None:
    trace = solve(APR, problem)
    assert trace.root.end is end
    assert (trace.answer, trace.grade) == (None, Grade(False, "no answer"))


def test_a_run_that_the_engine_failed_has_no_answer_and_no_grade() -> None:
    trace = solve(APR, 3)
    assert trace.error == "EngineError: down"
    assert (trace.answer, trace.grade) == (None, None)
    assert trace.problem == {"number": 3}
