from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from apr.train.attention import packed_attention
from benchmarks.sft import training_flops
from tests.tiny import tiny_config, tiny_model


@pytest.mark.parametrize("tied", [False, True])
def test_operations_are_those_that_a_step_takes(tied: bool) -> None:
    """As torch counts the products with weights; of attention it counts hidden pairs, too."""
    model, lengths = tiny_model(tiny_config(tied)), [11, 7]
    segments = torch.tensor([[0] * 11 + [1] * 7])
    ids, positions = torch.arange(18), torch.cat([torch.arange(n) for n in lengths])
    with FlopCounterMode(display=False) as counter:
        model.logits(model(ids, positions, packed_attention(segments))).sum().backward()
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counted.items() if op.endswith("mm"))
    c = model.config
    width = c.num_hidden_layers * c.num_attention_heads * c.head_dim
    pairs = sum(n * n for n in lengths)
    assert training_flops(model, lengths) == products + 6 * width * pairs
