"""The composition root: recipes, and what one does with them. Everything below meets here.

A recipe says which problems there are, how a search over them is told, the shape of a network and
how it is trained. A checkpoint keeps the recipe that made it, so a model knows its own text,
dialect, problems and context.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from apr import DEMO, config
from apr.countdown.answer import spell
from apr.countdown.demonstrate import Condition, Demonstrate
from apr.countdown.problem import Problem, Split, problem, solvable
from apr.countdown.task import Countdown, decisive_words, dialect_of, special_words, vocabulary
from apr.data.packing import PackedBatches
from apr.data.shards import Overlong, ShardConfig, read_manifest, read_shards, write_shards
from apr.data.tokenizer import HFCodec, build_tokenizer
from apr.engine import EmbeddedEngine, EngineConfig
from apr.errors import CheckpointError, ConfigError, DataError, ProblemError
from apr.eval.run import run_problems
from apr.files import new_file
from apr.interfaces import Codec, Engine
from apr.methods import Method
from apr.methods.apr import APR
from apr.methods.serial import Serial
from apr.models.checkpoint import (
    MANIFEST,
    default_device,
    load_checkpoint,
    read_config,
    save_checkpoint,
)
from apr.models.llama import Llama, LlamaConfig
from apr.runtime import ChildContext, Limits, Observer, Runtime
from apr.trace import Trace, num_sampled
from apr.train.sft import Losses, SFTConfig, train_sft
from apr.types import Sampling


@dataclass(frozen=True, slots=True)
class Network:
    """Shape of the network; vocabulary and context are the recipe's."""

    hidden_size: int = 128
    intermediate_size: int = 320
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a checkpoint depends on."""

    sft: SFTConfig
    demonstrations: Demonstrate = field(default_factory=Demonstrate)
    count: int = 100_000
    """Demonstrations to train on, before filters."""
    held_out: int = 2_000
    """Demonstrations of the validation split, for the held-out loss."""
    solved_only: bool = False
    """Train only on demonstrations that find a solution."""
    overlong: Overlong = Overlong.CUT
    """What becomes of demonstrations that do not fit the context."""
    context: int = 256
    """Most tokens of one sequence, in training and ever after."""
    largest_number: int = 400
    """Numbers up to this are one token each; larger ones are spelled in digits."""
    network: Network = field(default_factory=Network)
    verdict_weight: float = 1.0
    """Weight in the loss of the tokens that say whether an expression hits the target. They decide
    everything, are few, and nearly all alike: unweighted, they are learnt last."""
    seed: int = 0
    """Of the weights and of the order of batches; the demonstrations have their own."""


class MethodName(StrEnum):
    """Ways to spend inference on a problem."""

    APR = "apr"
    """Threads, as the model spawns them."""
    SERIAL = "serial"
    """One thread that may not spawn."""


@dataclass(frozen=True, slots=True)
class Inference:
    """How to run a model on a problem."""

    method: MethodName = MethodName.APR
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    limits: Limits = field(default_factory=Limits)
    child_context: ChildContext = ChildContext.FRESH
    first_success: bool = False
    """The first child that succeeds cancels its siblings."""
    children: int | None = None
    """Number of child threads to condition on, for models trained so."""
    window: int | None = None
    """Context window in tokens to condition on, for models trained so."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError("temperature and top_k are 0 or more, and top_p above 0 and up to 1")
        for name in ("children", "window"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}: give 0 or more")


@dataclass(frozen=True)
class _Noted:
    """A method whose traces say of which model they are, and how it was run."""

    within: Method[Problem]
    meta: dict[str, Any]

    @property
    def name(self) -> str:
        return self.within.name

    async def solve(self, problem: Problem, observer: Observer | None = None) -> Trace:
        return replace(await self.within.solve(problem, observer), meta=self.meta)


@dataclass(frozen=True)
class Model:
    """A language model, where it runs, and what it was trained to write."""

    engine: Engine
    codec: Codec
    recipe: Recipe
    about: dict[str, Any] = field(default_factory=dict)
    """What traces note of it: the folder it came from, its tokenizer."""

    def method(self, how: Inference | None = None) -> Method[Problem]:
        """A way to solve problems with this model.

        Raises:
            ConfigError: ``how`` asks for a condition that the model was not trained on.
        """
        how = how or Inference()
        told = self.recipe.demonstrations
        for condition in (Condition.CHILDREN, Condition.WINDOW):
            if getattr(how, condition) is not None and told.condition is not condition:
                raise ConfigError(
                    f"the model was not trained to heed a number of {condition}: leave it out"
                )
        task = Countdown(told.text, told.telling, how.children, how.window)
        sampling = Sampling(
            max_tokens=self.engine.context,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            seed=how.seed,
        )
        runtime = Runtime(
            self.engine,
            self.codec,
            dialect_of(told.text, told.telling),
            sampling,
            how.limits,
            how.child_context,
            how.first_success,
        )
        kind = APR if how.method is MethodName.APR else Serial
        noted = {**self.about, "context": runtime.context, "inference": config.to_json(how)}
        return _Noted(kind(runtime, task), noted)


def load(checkpoint: Path = DEMO, engine: EngineConfig | None = None) -> Model:
    """A checkpoint that ``train`` wrote, over the embedded engine.

    Raises:
        CheckpointError: missing, damaged, of another tokenizer, or not made by a recipe.
    """
    shape = read_config(checkpoint)
    codec = HFCodec.load(checkpoint)
    recipe, tokenizer = _read_manifest(checkpoint)
    if tokenizer != codec.fingerprint or shape.vocab_size != codec.size:
        raise CheckpointError(
            f"tokenizer.json in {checkpoint} is not the one its weights were trained with: "
            "put back the file that came with the checkpoint"
        )
    network = load_checkpoint(checkpoint, default_device())
    about = {"model": str(checkpoint), "tokenizer": tokenizer}
    return Model(EmbeddedEngine(network, engine, codec), codec, recipe, about)


def solve(
    model: Model, posed: Problem, how: Inference | None = None, observer: Observer | None = None
) -> Trace:
    """Solve one problem; ``observer`` hears of threads and tokens while it happens.

    Raises:
        ProblemError: the problem has no solution.
        ContextError: its prompt does not leave room to sample.
    """
    if not solvable(posed):
        numbers = " ".join(map(str, posed.numbers))
        raise ProblemError(f"no way leads from {numbers} to {posed.target}: pose another problem")
    return asyncio.run(model.method(how).solve(posed, observer))


def evaluate(
    model: Model,
    problems: Iterable[Problem],
    how: Inference | None = None,
    concurrency: int = 64,
    on_trace: Callable[[Trace], None] | None = None,
) -> list[Trace]:
    """Solve many problems, ``concurrency`` at a time; traces in their order."""
    return asyncio.run(run_problems(model.method(how), problems, concurrency, on_trace))


def pose(recipe: Recipe, split: Split, count: int, seed: int = 0) -> list[Problem]:
    """The first ``count`` problems of a split, of the kind that ``recipe`` trains on."""
    spec = recipe.demonstrations.problems
    return [problem(spec, seed, index, split) for index in range(count)]


def facts(trace: Trace, codec: Codec) -> dict[str, Any]:
    """``trace`` as plain values and text, for programs that want neither ids nor logprobs."""
    return {
        **trace.problem,
        "method": trace.method,
        "answer": trace.answer,
        "expression": None if trace.answer is None else spell(trace.answer),
        "correct": trace.grade is not None and trace.grade.correct,
        "reason": trace.grade.reason if trace.grade else trace.error,
        "total_tokens": trace.total_tokens,
        "sequential_tokens": trace.sequential_tokens,
        "num_threads": len(trace.threads),
        "longest_context": trace.longest_context,
        "wall_clock": trace.wall_clock,
        "threads": [
            {
                "index": thread.index,
                "parent": thread.parent,
                "message": thread.message,
                "text": [codec.decode(call.ids) for call in thread.calls],
                "end": thread.end,
                "join": thread.join,
                "success": thread.success,
                "notes": list(thread.notes),
                "num_tokens": num_sampled(thread),
            }
            for thread in trace.threads
        ],
    }


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
    _claim(run, recipe)
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


def _claim(run: Path, recipe: Recipe) -> None:
    """Note what ``run`` is for, so that no run goes on from the state of another recipe."""
    path = run / "recipe.json"
    text = json.dumps(config.to_json(recipe), indent=2) + "\n"
    if not path.is_file():
        with new_file(path) as tmp:
            tmp.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{run} holds a run of another recipe: name another folder with --out")


class _Manifest(NamedTuple):
    """What a checkpoint says of itself."""

    recipe: Recipe
    tokenizer: str  # fingerprint of the one it was trained with


def _read_manifest(checkpoint: Path) -> _Manifest:
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"no {MANIFEST} in {checkpoint}: name a checkpoint that apr sft made, or build a Model "
            "around this one in Python"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return _Manifest(config.build(Recipe, manifest["recipe"]), manifest["tokenizer"])
    except ConfigError as e:
        raise CheckpointError(
            f"{path} holds a recipe of another version ({e}): train it again with this one"
        ) from e
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} is damaged ({e}): copy the checkpoint again") from e
