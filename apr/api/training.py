"""From a recipe to data, and from data to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import torch

from apr import config
from apr.api.model import read_model_manifest
from apr.api.recipe import Recipe, RLRecipe
from apr.countdown.problem import Split
from apr.countdown.task import decisive_words, mark_words, number_words, special_words, vocabulary
from apr.data.packing import Marks, PackedBatches
from apr.data.shards import ShardConfig, read_manifest, read_shards, write_shards
from apr.data.tokenizer import HFCodec, build_tokenizer
from apr.errors import CheckpointError, ConfigError, DataError, StorageError
from apr.files import new_file
from apr.models.checkpoint import MANIFEST, default_device, load_checkpoint, save_checkpoint
from apr.models.llama import Llama
from apr.train.depth import deepened
from apr.train.numbers import start_as_waves
from apr.train.sft import Losses, train_sft
from apr.train.world import join_world

_CLAIM = "recipe.json"
"""In a run: what it is a run of."""


def codec_of(recipe: Recipe) -> HFCodec:
    """The tokenizer made for the text of ``recipe``."""
    text = recipe.demonstrations.text
    words, pattern = vocabulary(text, recipe.largest_number, recipe.pairs)
    return HFCodec(build_tokenizer(words, special_words(text), pattern))


def network_of(recipe: Recipe) -> Llama:
    """The network that ``recipe`` starts from.

    Raises:
        CheckpointError: it names a checkpoint that is damaged, or of another shape or tokenizer.
    """
    codec = codec_of(recipe)
    network = Llama(recipe.network.llama(codec.size, recipe.context, codec.eos_id))
    network.init_weights(recipe.seed)
    if recipe.waves:
        words = number_words(recipe.demonstrations.text, recipe.largest_number, recipe.pairs)
        start_as_waves(network, {codec.vocabulary[word]: n for word, n in words.items()})
    if recipe.checkpoint:
        _start_from(Path(recipe.checkpoint), network, codec, recipe)
    return network


def _start_from(checkpoint: Path, network: Llama, codec: HFCodec, recipe: Recipe) -> None:
    """Give ``network`` the weights of ``checkpoint``, but for words that only one of them knows."""
    loaded = load_checkpoint(checkpoint, dtype=torch.float32)
    known, own = HFCodec.load(checkpoint).vocabulary, codec.vocabulary
    ours = network.config
    theirs = replace(
        loaded.config,
        vocab_size=codec.size,
        max_position_embeddings=ours.max_position_embeddings,
        num_hidden_layers=max(loaded.config.num_hidden_layers, ours.num_hidden_layers),
        rope_theta=max(loaded.config.rope_theta, ours.rope_theta),
    )
    if known.keys() <= own.keys():
        shared = {word: word for word in known}
    else:
        shared = _spelled_alike(known, own) if _is_of_another_text(checkpoint, recipe) else {}
    if not shared or theirs != ours:
        raise CheckpointError(
            f"{checkpoint} has another shape or tokenizer than the recipe that starts from it: "
            "give the recipe the text, largest_number and network of the one that made it"
        )
    weights, initial = loaded.state_dict(), network.state_dict()
    new = torch.tensor([own[word] for word in shared])
    old = torch.tensor([known[word] for word in shared.values()])
    for name in ("embed_tokens.weight", "lm_head.weight"):
        weights[name] = initial[name].index_copy(0, new, weights[name][old])
    network.load_state_dict(deepened(weights, ours.num_hidden_layers))


def _is_of_another_text(checkpoint: Path, recipe: Recipe) -> bool:
    """Whether ``checkpoint`` spells what it learnt in other words, all numbers of it known here."""
    made_by = read_model_manifest(checkpoint).recipe
    texts = (made_by.demonstrations.text, recipe.demonstrations.text)
    return len({special_words(text) for text in texts}) == 2 and (
        made_by.largest_number <= recipe.largest_number
    )


def _spelled_alike(known: dict[str, int], own: dict[str, int]) -> dict[str, str]:
    """For words of ``own`` the word of ``known`` that is the same but for spaces around it."""
    bare: dict[str, str] = {}
    for word in sorted(known):  # " 12", a number, before "12", digits of a larger one.
        bare.setdefault(word.strip() or word, word)
    return {word: bare[word.strip()] for word in own if word.strip() in bare}


def batches_of(recipe: Recipe, directory: Path) -> PackedBatches:
    """What was made in ``directory``, one of the folders of ``make_data``, as batches.

    Raises:
        DataError: missing, damaged, or made for another tokenizer.
    """
    codec = codec_of(recipe)
    if read_manifest(directory)["tokenizer"] != codec.fingerprint:
        raise DataError(
            f"{directory} was made for another tokenizer: make it again with this recipe"
        )
    sft, words = recipe.sft, mark_words(recipe.demonstrations.text)
    return PackedBatches(
        read_shards(directory),
        sft.rows,
        sft.row_length,
        recipe.seed,
        codec.pad_id,
        marks=Marks(*(codec.vocabulary[word] for word in words)),
    )


def check_start(recipe: Recipe, run: Path) -> None:
    """Refuse before any work what ``train`` would refuse after its data was made.

    Raises:
        CheckpointError, ConfigError: as ``train``.
    """
    _check_claim(run, recipe)
    network_of(recipe)


def make_data(
    recipe: Recipe, directory: Path, workers: int = 1, progress: bool = True
) -> dict[Split, dict[str, Any]]:
    """Make what is missing of the demonstrations to train on and to hold out; their manifests."""
    return {
        split: _make_split(recipe, directory, split, workers, progress)
        for split in (Split.TRAIN, Split.VALID)
    }


def train(
    recipe: Recipe, run: Path, data: Path, progress: bool = True, deadline: float = inf
) -> Losses:
    """Train a network as ``recipe`` says, or go on where ``run`` stopped.

    The checkpoint, ``run/checkpoint``, is there once training has ended. Under ``torchrun`` every
    process calls this with the same arguments, the first one once the data is there.

    Args:
        deadline: when to stop, on the clock of ``time.monotonic``; at least one step is made.

    Raises:
        CheckpointError: the recipe names a checkpoint that cannot be gone on from.
        ConfigError: ``run`` holds another recipe's run, or the processes cannot share the batches
            of an update.
        DataError: ``data`` is missing, damaged, or made for another tokenizer.
        OutOfTime: the deadline came before the end. The same call goes on from there.
    """
    codec = codec_of(recipe)
    watched = _watched(recipe, codec)
    with join_world() as world:
        splits = (Split.TRAIN, Split.VALID)
        batches, held_out = (batches_of(recipe, data / split) for split in splits)
        network = network_of(recipe).to(default_device())
        if world.is_first:
            claim_run(run, recipe)
        losses = train_sft(
            network,
            batches,
            held_out,
            recipe.sft,
            run,
            watched,
            progress,
            weights=_weights(recipe, watched),
            deadline=deadline,
            world=world,
        )
        manifest = {
            "recipe": config.to_json(recipe),
            "tokenizer": codec.fingerprint,
            "parameters": network.num_parameters,
            "held_out_loss": losses.mean,
            "data": read_manifest(data / Split.TRAIN)["tally"],
        }
        if world.is_first:
            save_checkpoint(network, run / "checkpoint", codec.to_json(), manifest)
    return losses


def export(checkpoint: Path, directory: Path) -> None:
    """Copy a checkpoint in bfloat16: what engines on CUDA compute with, in half the bytes.

    Raises:
        CheckpointError: missing, damaged, or not made by a recipe.
        StorageError: the disk is full, the folder may not be written, or something else is there.
    """
    _check_replaceable(directory)
    model = load_checkpoint(checkpoint, dtype=torch.bfloat16)
    manifest = read_model_manifest(checkpoint).whole
    save_checkpoint(model, directory, HFCodec.load(checkpoint).to_json(), manifest)


def average(checkpoints: Sequence[Path], directory: Path) -> None:
    """Write the mean of several checkpoints' weights, in float32, with the recipe of the first.

    Of weights that were trained on from one another, at a rate that fell each time, the mean can be
    better than any of them, and costs no more to run (stochastic weight averaging, 1803.05407;
    model soups, 2203.05482): docs/training.md.

    Raises:
        CheckpointError: one is missing or damaged, or of another shape, tokenizer or text than the
            first; or there are fewer than two.
        StorageError: the disk is full, the folder may not be written, or something else is there.
    """
    _check_replaceable(directory)
    if len(checkpoints) < 2:
        raise CheckpointError("the mean is that of two checkpoints or more: name another")
    first, *others = checkpoints
    manifest = read_model_manifest(first)
    mean = load_checkpoint(first, dtype=torch.float32)
    for n, other in enumerate(others, 2):
        model = load_checkpoint(other, dtype=torch.float32)
        if model.config != mean.config or _spoken(other) != _spoken(first):
            raise CheckpointError(
                f"{other} has another shape, tokenizer or text than {first}: take the mean of "
                "checkpoints that were trained from the same beginning"
            )
        with torch.no_grad():
            for weight, theirs in zip(mean.parameters(), model.parameters(), strict=True):
                weight.lerp_(theirs, 1 / n)
    whole = manifest.whole | {"mean_of": [str(checkpoint) for checkpoint in checkpoints]}
    save_checkpoint(mean, directory, HFCodec.load(first).to_json(), whole)


def _spoken(checkpoint: Path) -> tuple[str, ...]:
    """How one speaks with a checkpoint: what another must share to be of one mind with it."""
    manifest = read_model_manifest(checkpoint)
    told = manifest.recipe.demonstrations
    return manifest.tokenizer, told.text, told.telling, told.condition


def _check_replaceable(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir() or (
        not (directory / MANIFEST).is_file() and any(directory.iterdir())
    ):
        raise StorageError(
            f"{directory} is there and is no checkpoint of apr: it is not replaced; name another"
        )


def _make_split(
    recipe: Recipe, directory: Path, split: Split, workers: int, progress: bool
) -> dict[str, Any]:
    demonstrate = replace(recipe.demonstrations, split=split)
    shards = ShardConfig(
        count=recipe.count if split is Split.TRAIN else recipe.held_out,
        per_shard=recipe.per_shard,
        solved_only=recipe.solved_only,
        context=recipe.context,
        overlong=recipe.overlong,
    )
    settings = config.to_json(demonstrate)
    codec = codec_of(recipe)
    return write_shards(directory / split, demonstrate, codec, shards, settings, workers, progress)


def _watched(recipe: Recipe, codec: HFCodec) -> dict[str, list[int]]:
    """Classes of tokens whose loss decides whether a problem is solved."""
    words = decisive_words(recipe.demonstrations.text)
    return {name: [codec.vocabulary[word] for word in members] for name, members in words.items()}


def _weights(recipe: Recipe, watched: dict[str, list[int]]) -> dict[int, float]:
    """Of tokens in the loss, where it is not 1."""
    weights = {"verdicts": recipe.verdict_weight, "operators": recipe.operator_weight}
    return {id: weight for name, weight in weights.items() for id in watched[name]}


def claim_run(run: Path, recipe: Recipe | RLRecipe) -> None:
    """Note what ``run`` is for, so that no run goes on from the state of another recipe."""
    if not _check_claim(run, recipe):
        with new_file(run / _CLAIM) as tmp:
            tmp.write_text(json.dumps(config.to_json(recipe), indent=2) + "\n", encoding="utf-8")


def _check_claim(run: Path, recipe: Recipe | RLRecipe) -> bool:
    """Whether ``run`` has been claimed, for this recipe; raises ConfigError if for another."""
    path = run / _CLAIM
    if not path.is_file():
        return False
    try:
        # Values, not text: what an older version did not know has its default.
        same = config.build(type(recipe), json.loads(path.read_text(encoding="utf-8"))) == recipe
    except ValueError:
        same = False
    if not same:
        raise ConfigError(f"{run} holds a run of another recipe: name another folder with --out")
    return True
