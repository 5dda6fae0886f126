"""Sub-tasks whose whole text returns to the parent, as in PASTA (Jin et al., 2502.11517).

Nothing runs otherwise than in ``apr``. What differs is what the model was trained on and what its
dialect passes on: a child's join carries all it wrote (``apr.countdown.compact.CompactPasta``).
In PASTA the parent goes on writing until it asks for the results; here it asks at once.

Cost: sampled tokens are those of the threads, as ever; but the parent's context holds the sum of
its children's texts, so ``longest_context`` grows with their number, and what does not fit the
context is lost. That is the price which a join message of the child's own saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from apr.methods import P
from apr.methods.apr import APR


@dataclass(frozen=True)
class Pasta(APR[P]):
    """For a runtime whose dialect returns whole texts, and a model trained so."""

    name: str = "pasta"
