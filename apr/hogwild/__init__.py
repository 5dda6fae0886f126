"""The engine of Hogwild! inference: workers that share one cache, beside the embedded engine.

Turns a prompt into what n workers write, each of whom sees the others. Knows no task.
"""

from apr.hogwild.engine import HogwildEngine

__all__ = ["HogwildEngine"]
