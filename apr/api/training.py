"""From a recipe to data, and from data to a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr import config
from apr.api.recipe import Recipe, RLRecipe
from apr.countdown.problem import Split
from apr.countdown.task import decisive_words, special_words, vocabulary
from apr.data.packing import PackedBatches
from apr.data.shards import ShardConfig, read_manifest, read_shards, write_shards
from apr.data.tokenizer import HFCodec, build_tokenizer
from apr.errors import ConfigError, DataError
from apr.files import new_file
from apr.models.checkpoint import default_device, save_checkpoint
from apr.models.llama import Llama, LlamaConfig
from apr.train.sft import Losses, train_sft


def codec_of(recipe: Recipe) -> HFCodec:
    """The tokenizer made for the text of ``recipe``."""
    text = recipe.demonstrations.text
    words, pattern = vocabulary(text, recipe.largest_number)
    return HFCodec(build_tokenizer(words, special_words(text), pattern))


def make_data(
    recipe: Recipe, directory: Path, workers: int = 1, progress: bool = True
) -> dict[Split, dict[str, Any]]:
    """Make what is missing of the demonstrations to train on and to hold out; their manifests."""
    return {
        split: _make_split(recipe, directory, split, workers, progress)
        for split in (Split.TRAIN, Split.VALID)
    }


def train(recipe: Recipe, run: Path, data: Path, progress: bool = True) -> Losses:
    """Train a network as ``recipe`` says, or go on where ``run`` stopped.

    The checkpoint, ``run/checkpoint``, is there once training has ended.

    Raises:
        DataError: ``data`` is missing, damaged, or made for another tokenizer.
    """
    codec = codec_of(recipe)
    batches, held_out = (
        _batches(recipe, codec, data / split) for split in (Split.TRAIN, Split.VALID)
    )
    claim_run(run, recipe)
    network = Llama(_llama_config(recipe, codec))
    network.init_weights(recipe.seed)
    network.to(default_device())
    watched = _watched(recipe, codec)
    losses = train_sft(
        network,
        batches,
        held_out,
        recipe.sft,
        run,
        watched,
        progress,
        weights=dict.fromkeys(watched["verdicts"], recipe.verdict_weight),
    )
    manifest = {
        "recipe": config.to_json(recipe),
        "tokenizer": codec.fingerprint,
        "parameters": network.num_parameters,
        "held_out_loss": losses.mean,
        "data": read_manifest(data / Split.TRAIN)["tally"],
    }
    save_checkpoint(network, run / "checkpoint", codec.to_json(), manifest)
    return losses


def _make_split(
    recipe: Recipe, directory: Path, split: Split, workers: int, progress: bool
) -> dict[str, Any]:
    demonstrate = replace(recipe.demonstrations, split=split)
    shards = ShardConfig(
        count=recipe.count if split is Split.TRAIN else recipe.held_out,
        solved_only=recipe.solved_only,
        context=recipe.context,
        overlong=recipe.overlong,
    )
    settings = config.to_json(demonstrate)
    codec = codec_of(recipe)
    return write_shards(directory / split, demonstrate, codec, shards, settings, workers, progress)


def _batches(recipe: Recipe, codec: HFCodec, directory: Path) -> PackedBatches:
    if read_manifest(directory)["tokenizer"] != codec.fingerprint:
        raise DataError(
            f"{directory} was made for another tokenizer: make it again with this recipe"
        )
    sft = recipe.sft
    return PackedBatches(
        read_shards(directory), sft.rows, sft.row_length, recipe.seed, codec.pad_id
    )


def _llama_config(recipe: Recipe, codec: HFCodec) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=codec.size,
        max_position_embeddings=recipe.context,
        eos_token_id=codec.eos_id,
        **config.to_json(recipe.network),
    )


def _watched(recipe: Recipe, codec: HFCodec) -> dict[str, list[int]]:
    """Classes of tokens whose loss decides whether a problem is solved."""
    words = decisive_words(recipe.demonstrations.text)
    return {name: [codec.vocabulary[word] for word in members] for name, members in words.items()}


def claim_run(run: Path, recipe: Recipe | RLRecipe) -> None:
    """Note what ``run`` is for, so that no run goes on from the state of another recipe."""
    path = run / "recipe.json"
    text = json.dumps(config.to_json(recipe), indent=2) + "\n"
    if not path.is_file():
        with new_file(path) as tmp:
            tmp.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{run} holds a run of another recipe: name another folder with --out")
