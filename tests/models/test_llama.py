from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from apr.models.llama import Llama
from apr.train.attention import causal_reference
from tests.tiny import reference_logits, tiny_config, tiny_model

IDS = torch.tensor([5, 3, 17, 17, 2, 30, 8])


def test_only_the_distance_of_positions_counts() -> None:
    model = tiny_model()
    with torch.no_grad():
        near = model(IDS, torch.arange(7), causal_reference)
        far = model(IDS, torch.arange(7) + 50, causal_reference)
        wider = model(IDS, torch.arange(7) * 2, causal_reference)
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)
    assert (near - wider).abs().max() > 0.1


def test_a_token_sees_what_came_before_it_and_no_more() -> None:
    model = tiny_model()
    changed = IDS.clone()
    changed[4] = 9
    difference = (reference_logits(model, IDS) - reference_logits(model, changed)).abs().amax(-1)
    assert difference[:4].max() == 0
    assert difference[4:].min() > 1e-3


def test_tied_weights_are_one_and_count_once() -> None:
    tied, untied = tiny_model(tiny_config(tied=True)), tiny_model()
    assert tied.lm_head.weight is tied.embed_tokens.weight
    assert untied.num_parameters - tied.num_parameters == 40 * 24
    assert untied.num_parameters == sum(
        [
            2 * 40 * 24,  # embedding and head
            2 * (4 + 2 * 2) * 8 * 24,  # queries, keys and values
            2 * 4 * 8 * 24,  # their way out
            2 * 3 * 24 * 36,  # gate, up and down
            5 * 24,  # norms
        ]
    )


@pytest.mark.parametrize("tied", [False, True])
def test_weights_begin_as_a_function_of_the_seed_with_no_opinion(tied: bool) -> None:
    models = [Llama(tiny_config(tied)) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model.init_weights(seed)
    first, same, other = (dict(m.named_parameters()) for m in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(p, other[name]) for name, p in first.items() if p.dim() == 2)
    loss = F.cross_entropy(reference_logits(models[0], IDS), IDS)
    assert loss.item() == pytest.approx(math.log(40), abs=0.2)
