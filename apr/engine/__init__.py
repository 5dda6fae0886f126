"""The embedded engine: continuous batching over paged keys and values with a radix prefix cache.

Turns prompt ids into sampled ids. Knows neither threads nor tasks.
"""

from apr.engine.engine import EmbeddedEngine, EngineConfig

__all__ = ["EmbeddedEngine", "EngineConfig"]
