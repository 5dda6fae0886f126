"""A deeper network starts as the shallower one that it comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from apr.models.llama import Llama, LlamaConfig
from apr.train.attention import packed_attention
from apr.train.depth import deepened

SHALLOW = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=16,
)


def says(network: Llama) -> torch.Tensor:
    ids, device = torch.arange(16)[None] * 7 % 40, torch.device("cpu")
    attend = packed_attention(torch.zeros_like(ids), device)
    with torch.no_grad():
        return network.logits(network(ids.flatten(), torch.arange(16), attend))


def made(layers: int) -> Llama:
    network = Llama(replace(SHALLOW, num_hidden_layers=layers))
    network.init_weights(0)
    return network


@pytest.mark.parametrize("layers", [4, 5, 6, 7, 8, 13])
def test_it_says_the_same(layers: int) -> None:
    shallow, deep = made(4), made(layers)
    deep.load_state_dict(deepened(shallow.state_dict(), layers))
    assert torch.equal(says(deep), says(shallow))


def test_further_layers_are_spread_evenly_and_learn() -> None:
    shallow, deep = made(4), made(6)
    deep.load_state_dict(deepened(shallow.state_dict(), 6))
    silent = [not block.mlp.down_proj.weight.any() for block in deep.layers]
    assert silent == [False, False, True, False, False, True]
    for copy, origin in ((2, 1), (5, 3)):
        theirs = shallow.layers[origin].mlp.gate_up_proj.weight
        assert torch.equal(deep.layers[copy].mlp.gate_up_proj.weight, theirs)
    ids, attend = torch.arange(16), packed_attention(torch.zeros(1, 16).long(), torch.device("cpu"))
    deep.logits(deep(ids, ids, attend)).logsumexp(-1).sum().backward()
    assert all(block.mlp.down_proj.weight.grad.any() for block in deep.layers)
