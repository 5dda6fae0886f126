"""What numbers of inference are rounded to, where speed or memory is worth it."""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor


class Precision(StrEnum):
    """What keys and values are kept as, and what is multiplied."""

    MODEL = "model"
    """As the weights are: exact."""
    BFLOAT16 = "bfloat16"
    """8 significant bits: half the memory of float32."""
    INT8 = "int8"
    """8 bits a number and a scale for each row, head of a token or column: a quarter of float32."""

    @property
    def number(self) -> int:
        """How C knows it."""
        return list(Precision).index(self)

    def rounded(self, x: Tensor) -> Tensor:
        """What is left of ``x``, of any shape; rows of the last axis have a scale each."""
        if self is Precision.BFLOAT16:
            return x.bfloat16().to(x.dtype)
        if self is Precision.INT8:
            scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 127
            # By way of the reciprocal, as in C, so that no tie goes the other way.
            return (x * scale.reciprocal()).round() * scale
        return x
