from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from apr.api import Network, Recipe
from apr.api.training import codec_of, network_of
from apr.countdown.demonstrate import Demonstrate
from apr.countdown.narrate import Text
from apr.errors import ConfigError
from apr.models.llama import Llama
from apr.train.numbers import periods, width
from apr.train.sft import SFTConfig

LARGEST = 300
WIDTH = width(LARGEST)
RECIPE = Recipe(SFTConfig(1), largest_number=LARGEST, network=Network(hidden_size=64))
WAVES = replace(RECIPE, waves=True)


def embedded(model: Llama, recipe: Recipe, text: Text = Text.COMPACT) -> torch.Tensor:
    """The waves (N, WIDTH) of the numbers from 0 on."""
    lead = "" if text is Text.PAPER else " "
    vocabulary = codec_of(recipe).vocabulary
    ids = [vocabulary[f"{lead}{n}"] for n in range(LARGEST + 1)]
    return model.embed_tokens.weight[ids, :WIDTH].detach()


@pytest.mark.parametrize("text", Text)
def test_numbers_that_are_near_look_alike_and_no_two_are_equal(text: Text) -> None:
    recipe = replace(WAVES, demonstrations=Demonstrate(text=text))
    waves = embedded(network_of(recipe), recipe, text)
    likeness = waves @ waves.T
    assert torch.equal(likeness.argmax(dim=1), torch.arange(LARGEST + 1))
    assert likeness[100, 101] > likeness[100, 137]
    assert likeness[100, 110] > likeness[100, 113], "of one last digit"


def test_the_wave_of_a_sum_is_the_wave_of_one_number_turned_by_the_other() -> None:
    cos, sin = embedded(network_of(WAVES), WAVES).chunk(2, dim=1)
    turned = torch.cat(
        [cos[53] * cos[88] - sin[53] * sin[88], sin[53] * cos[88] + cos[53] * sin[88]]
    )
    assert torch.allclose(turned, torch.cat([cos[141], sin[141]]), atol=1e-4)


@pytest.mark.parametrize("largest", [9, 300, 1_000, 3_000, 10_000])
def test_waves_are_as_long_as_the_numbers_need(largest: int) -> None:
    *shorter, longest = periods(largest)
    assert longest >= 2 * largest > max(shorter)
    assert width(largest) == 2 * (len(shorter) + 1)


def test_neighbours_can_be_told_apart() -> None:
    model = network_of(WAVES)
    ids = [codec_of(WAVES).vocabulary[f" {n}"] for n in range(LARGEST + 1)]
    rows = torch.nn.functional.normalize(model.embed_tokens.weight[ids].detach(), dim=1)
    likeness = rows @ rows.T - torch.eye(LARGEST + 1)
    assert likeness.max() < 0.85


def test_nothing_else_changes() -> None:
    plain, waves = network_of(RECIPE), network_of(WAVES)
    vocabulary = codec_of(RECIPE).vocabulary
    others = [id for word, id in vocabulary.items() if not word.strip().isdigit()]
    for (name, before), after in zip(plain.named_parameters(), waves.parameters(), strict=True):
        if name not in ("embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(before, after)
            continue
        assert not torch.equal(before, after)
        assert torch.equal(before[others], after[others])
        if name == "lm_head.weight":
            assert torch.equal(before[:, WIDTH:], after[:, WIDTH:])


def test_tied_embeddings_are_written_once() -> None:
    network = Network(hidden_size=64, tie_word_embeddings=True)
    tied = network_of(replace(WAVES, network=network))
    assert torch.equal(embedded(tied, WAVES), embedded(network_of(WAVES), WAVES))


def test_a_network_too_narrow_for_them_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_size is 16: make it wider"):
        replace(WAVES, network=Network(hidden_size=16))
