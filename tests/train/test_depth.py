"""A deeper network starts as the shallower one that it comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from apr.models.llama import Llama
from apr.train.attention import causal_reference
from apr.train.depth import deepened
from tests.tiny import reference_logits, tiny_config, tiny_model

IDS = torch.arange(16) * 7 % 40


def made(layers: int) -> Llama:
    return tiny_model(replace(tiny_config(), num_hidden_layers=layers))


@pytest.mark.parametrize("layers", [4, 5, 6, 7, 8, 13])
def test_it_says_the_same(layers: int) -> None:
    shallow, deep = made(4), made(layers)
    assert layers == 4 or not torch.equal(
        reference_logits(deep, IDS), reference_logits(shallow, IDS)
    )
    deep.load_state_dict(deepened(shallow.state_dict(), layers))
    assert torch.equal(reference_logits(deep, IDS), reference_logits(shallow, IDS))


def test_further_layers_are_spread_evenly_and_learn() -> None:
    shallow, deep = made(4), made(6)
    deep.load_state_dict(deepened(shallow.state_dict(), 6))
    silent = [not block.mlp.down_proj.weight.any() for block in deep.layers]
    assert silent == [False, False, True, False, False, True]
    for copy, origin in ((2, 1), (5, 3)):
        theirs = shallow.layers[origin].mlp.gate_up_proj.weight
        assert torch.equal(deep.layers[copy].mlp.gate_up_proj.weight, theirs)
    deep.logits(deep(IDS, torch.arange(16), causal_reference)).logsumexp(-1).sum().backward()
    assert all(block.mlp.down_proj.weight.grad.any() for block in deep.layers)
