"""Servers of each kind, in this process; and what real ones are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import apr
from apr import api
from apr.countdown.problem import Problem, Split
from apr.testing import ByteCodec
from apr.trace import Trace
from tests.remote.fakes import Fake, FakeLlamaCpp, FakeOpenAI, FakeSGLang, FakeVLLM, Sampler
from tests.remote.real import NUM_PROBLEMS

KINDS: tuple[type[Fake], ...] = (FakeSGLang, FakeVLLM, FakeLlamaCpp, FakeOpenAI)
Start = Callable[..., Any]

codec = ByteCodec()


def says(text: str) -> Sampler:
    """Continues every prompt with ``text``, then ends."""
    return lambda prompt: (*codec.encode(text), codec.eos_id)


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(kind, sampler, **settings)``: a running fake, stopped at the end of the test."""
    with ExitStack() as stack:
        yield lambda kind, sample, **settings: stack.enter_context(kind(sample, **settings))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.scheme)
def kind(request: pytest.FixtureRequest) -> type[Fake]:
    found: type[Fake] = request.param
    return found


@pytest.fixture(scope="session")
def embedded() -> api.Model:
    return api.load(apr.DEMO)


@pytest.fixture(scope="session")
def problems(embedded: api.Model) -> list[Problem]:
    """Mostly small ones, so that a busy machine gets through them; all have threads."""
    posed = api.pose(embedded.recipe, Split.TEST, 200)
    small = [p for p in posed if len(p.numbers) == 3]
    large = [p for p in posed if len(p.numbers) == 4]
    return small[: NUM_PROBLEMS - 2] + large[:2]


@pytest.fixture(scope="session")
def expected(embedded: api.Model, problems: list[Problem]) -> list[Trace]:
    return api.evaluate(embedded, problems)
