"""The packaged model, for one small run of each method over the real parts."""

from __future__ import annotations

import pytest

import apr
from apr.countdown.task import Countdown, dialect_of
from apr.runtime import Runtime
from apr.types import Sampling


@pytest.fixture(scope="session")
def demo() -> tuple[Runtime, Countdown]:
    """Sampled at temperature 1, seeded."""
    model = apr.load()
    told = model.recipe.demonstrations
    sampling = Sampling(max_tokens=model.engine.context, temperature=1.0, seed=1)
    dialect = dialect_of(told.text, told.telling)
    return Runtime(model.engine, model.codec, dialect, sampling), Countdown(told.text, told.telling)
