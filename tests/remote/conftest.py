"""Servers of each kind, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from apr.testing import ByteCodec
from tests.remote.fakes import Fake, FakeLlamaCpp, FakeOpenAI, FakeSGLang, FakeVLLM, Sampler

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
