"""The network of the tests of the engine."""

from tests.engine.conftest import network, on_cpu

__all__ = ["network", "on_cpu"]
