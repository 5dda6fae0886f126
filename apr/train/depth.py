"""A deeper network that starts from a shallower one, and says at first exactly what that says.

Each further layer is a copy of the one below it whose outputs are 0, so that it adds nothing until
it has learnt something; they are spread evenly (block expansion, LLaMA Pro, Wu et al., 2401.02415).
"""

from __future__ import annotations

import torch
from torch import Tensor

_OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def deepened(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights of a `Llama` as those of one of ``layers`` layers, which is as deep or deeper."""
    by_layer: dict[int, dict[str, Tensor]] = {}
    out: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.startswith("layers."):
            _, number, part = name.split(".", 2)
            by_layer.setdefault(int(number), {})[part] = weight
        else:
            out[name] = weight
    for layer, (origin, is_copy) in enumerate(_origins(len(by_layer), layers)):
        for part, weight in by_layer[origin].items():
            silent = is_copy and part in _OUTPUTS
            out[f"layers.{layer}.{part}"] = torch.zeros_like(weight) if silent else weight
    return out


def _origins(few: int, many: int) -> list[tuple[int, bool]]:
    """For each of ``many`` layers, which of the ``few`` it comes from, and whether as a copy."""
    more = many - few
    copied = [(few * (i + 1) - 1) // more for i in range(more)]
    return sorted([*((i, False) for i in range(few)), *((i, True) for i in copied)])
