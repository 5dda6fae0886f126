from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_what_needs_no_tensors_imports_no_torch() -> None:
    """Importing torch costs a second, which a remote engine or a look at a trace need not pay."""
    modules = "apr, apr.config, apr.trace, apr.runtime, apr.testing, apr.methods, apr.dialects.tags"
    code = f"import {modules}, apr.countdown.problem, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("said", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_go_to_sleep_unless_somebody_says_otherwise(
    said: dict[str, str], spins: str | None
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | said
    code = f"import os, apr; assert os.environ.get('GOMP_SPINCOUNT') == {spins!r}"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
