"""Fixtures of more than one test module."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import pytest
from hypothesis import settings

# Tests use tensors so small that threads only get in each other's way; processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a machine says of colours and proxies is for its user, not for these tests.
for _name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE"):
    os.environ.pop(_name, None)
for _name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Only tests for a GPU see one: the others compare bit for bit, which holds on a CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


DiskLimit = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def disk_limit() -> DiskLimit:
    """``with disk_limit(n)``: a file may not grow beyond n bytes, whatever library writes it."""

    @contextmanager
    def limit(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Type ``apr ...``."""
    from apr import cli

    def type_in(*args: object) -> Ran:
        with pytest.raises(SystemExit) as exit:
            cli.app(list(map(str, args)), prog_name="apr")
        assert isinstance(exit.value.code, int)
        return Ran(exit.value.code, *capsys.readouterr())

    return type_in
