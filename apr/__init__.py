"""Adaptive parallel reasoning: language models that spawn and join threads of their own.

The names below are the public surface; each is imported when it is first asked for, so that
``import apr`` costs next to nothing::

    import apr

    model = apr.load()
    trace = apr.solve(model, apr.Problem((22, 26, 31, 53), 27))
    print(trace.answer, trace.grade, trace.total_tokens, trace.sequential_tokens)
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr.api import Inference as Inference
    from apr.api import Model as Model
    from apr.api import Recipe as Recipe
    from apr.api import evaluate as evaluate
    from apr.api import load as load
    from apr.api import pose as pose
    from apr.api import solve as solve
    from apr.countdown.problem import Problem as Problem
    from apr.errors import AprError as AprError
    from apr.runtime import Limits as Limits
    from apr.runtime import Observer as Observer
    from apr.runtime import Runtime as Runtime
    from apr.trace import Trace as Trace
    from apr.trace import read_traces as read_traces
    from apr.trace import write_traces as write_traces

    __version__: str

# Threads that share a step wait for each other some thirty times in it. Beside other work each such
# wait is for one that is not running, by one that keeps its core busy: after a fraction of a
# millisecond it is to sleep. Only the environment can say so, and OpenMP reads it with torch.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

DEMO = Path(__file__).parent / "checkpoints" / "demo"
"""The checkpoint that comes with the package."""

_HOMES = {
    "AprError": "apr.errors",
    "Inference": "apr.api",
    "Limits": "apr.runtime",
    "Model": "apr.api",
    "Observer": "apr.runtime",
    "Problem": "apr.countdown.problem",
    "Recipe": "apr.api",
    "Runtime": "apr.runtime",
    "Trace": "apr.trace",
    "evaluate": "apr.api",
    "load": "apr.api",
    "pose": "apr.api",
    "read_traces": "apr.trace",
    "solve": "apr.api",
    "write_traces": "apr.trace",
}

__all__ = [
    "DEMO",
    "AprError",
    "Inference",
    "Limits",
    "Model",
    "Observer",
    "Problem",
    "Recipe",
    "Runtime",
    "Trace",
    "__version__",
    "evaluate",
    "load",
    "pose",
    "read_traces",
    "solve",
    "write_traces",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("apr")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
