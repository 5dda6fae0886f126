"""A model and what one does with it: load it, solve problems, tell what came of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from apr import DEMO, config
from apr.api.recipe import Inference, MethodName, Recipe, Sampled
from apr.countdown.answer import spell
from apr.countdown.demonstrate import Condition
from apr.countdown.diagnose import Diagnosis, by_kind, diagnose
from apr.countdown.narrate import Telling
from apr.countdown.problem import Problem, Split, problem, solvable
from apr.countdown.task import Countdown, dialect_of, step_ends
from apr.data.tokenizer import HFCodec
from apr.engine import EmbeddedEngine, EngineConfig
from apr.errors import CheckpointError, ConfigError, ProblemError
from apr.eval.run import run_problems
from apr.hogwild import HogwildEngine
from apr.interfaces import Codec, Engine
from apr.methods import Method
from apr.methods.apr import APR
from apr.methods.best_of_n import BestOfN
from apr.methods.coordinate import Within
from apr.methods.hogwild import Hogwild
from apr.methods.multi_agent import MultiAgent
from apr.methods.pasta import Pasta
from apr.methods.self_consistency import SelfConsistency
from apr.methods.serial import Serial
from apr.methods.tree_of_thoughts import TreeOfThoughts
from apr.models.checkpoint import MANIFEST, default_device, load_checkpoint, read_config
from apr.remote import connect
from apr.runtime import Observer, Runtime
from apr.trace import Trace, num_sampled
from apr.types import Sampling

EMBEDDED = "embedded://"
"""What the address of the embedded engine begins with; its settings may follow, as a query."""


@dataclass(frozen=True)
class _Noted:
    """A method whose traces say of which model they are, and how it was run."""

    within: Method[Problem]
    name: str
    meta: dict[str, Any]

    async def solve(self, problem: Problem, observer: Observer | None = None) -> Trace:
        trace = await self.within.solve(problem, observer)
        return replace(trace, method=self.name, meta=self.meta)


@dataclass(frozen=True)
class Model:
    """A language model, where it runs, and what it was trained to write."""

    engine: Engine
    codec: Codec
    recipe: Recipe
    about: dict[str, Any] = field(default_factory=dict)
    """What traces note of it: the folder it came from, its tokenizer."""

    def task(self, how: Inference) -> Countdown:
        """What its problems are posed and graded as."""
        told = self.recipe.demonstrations
        return Countdown(told.text, told.telling, how.children, how.window)

    def method(self, how: Inference | None = None) -> Method[Problem]:
        """A way to solve problems with this model.

        Raises:
            ConfigError: ``how`` asks for what the model was not trained on.
        """
        how = how or Inference()
        self._check(how)
        told = self.recipe.demonstrations
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
        noted = {**self.about, "context": runtime.context, "inference": config.to_json(how)}
        return _Noted(_method(runtime, self.task(how), how), how.label, noted)

    def _check(self, how: Inference) -> None:
        told = self.recipe.demonstrations
        for condition, such in ((Condition.CHILDREN, 4), (Condition.WINDOW, 1024)):
            is_told = getattr(how, condition) is not None
            if is_told and told.condition is not condition:
                raise ConfigError(
                    f"the model was not trained to heed a number of {condition}: leave it out"
                )
            if not is_told and told.condition is condition:
                raise ConfigError(
                    f"the model was trained to be told a number of {condition}, always: "
                    f"set {condition}, such as {such}"
                )
        if how.method is MethodName.PASTA and told.telling is not Telling.PASTA:
            raise ConfigError(
                f"the model was trained on the {told.telling} telling, and pasta takes one trained "
                "on pasta: use apr or serial"
            )
        if how.method is MethodName.MULTI_AGENT and told.telling is Telling.SERIAL:
            raise ConfigError(
                "the model was trained on single threads and hears no agents: take one that spawns"
            )


def _method(runtime: Runtime, task: Countdown, how: Inference) -> Method[Problem]:
    within: Within[Problem] = APR if how.within is Sampled.APR else Serial
    match how.method:
        case MethodName.APR:
            return APR(runtime, task)
        case MethodName.SERIAL:
            return Serial(runtime, task)
        case MethodName.PASTA:
            return Pasta(runtime, task)
        case MethodName.BEST_OF_N:
            return BestOfN(runtime, task, within, how.samples, how.chooser)
        case MethodName.SELF_CONSISTENCY:
            return SelfConsistency(runtime, task, within, how.samples)
        case MethodName.MULTI_AGENT:
            return MultiAgent(runtime, task, within, how.samples, task.delegate)
        case MethodName.HOGWILD:
            return Hogwild(_sharing(runtime), task, how.samples, how.taken)
        case MethodName.TREE_OF_THOUGHTS:
            return TreeOfThoughts(runtime, task, step_ends(task.text), how.tree)


def _sharing(runtime: Runtime) -> Runtime:
    """With an engine whose workers share one cache, if there is one for its model."""
    if isinstance(runtime.engine, EmbeddedEngine):
        return replace(runtime, engine=HogwildEngine(runtime.engine))
    return runtime


def load(
    checkpoint: Path | str = DEMO,
    engine: EngineConfig | str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """A checkpoint that ``train`` or ``reinforce`` wrote, over an engine.

    Args:
        engine: settings of the embedded engine, as such or as ``embedded://?burst=1``; or
            addresses of servers that run this checkpoint (see ``apr.remote.connect``), of whose
            folder only tokenizer and recipe are read then.
        dtype: type of the weights; float32 on a CPU and bfloat16 on CUDA by default.

    Raises:
        CheckpointError: missing, damaged, of another tokenizer, or not made by a recipe.
        ConfigError: the address of a server is none, or the embedded engine cannot run so.
        EngineError: a server does not answer.
    """
    if isinstance(engine, str) and engine.startswith(EMBEDDED):
        engine = config.build_query(EngineConfig, engine.removeprefix(EMBEDDED).removeprefix("?"))
    checkpoint = Path(checkpoint)
    shape = read_config(checkpoint)
    codec = HFCodec.load(checkpoint)
    _, recipe, tokenizer = read_model_manifest(checkpoint)
    if tokenizer != codec.fingerprint or shape.vocab_size != codec.size:
        raise CheckpointError(
            f"tokenizer.json in {checkpoint} is not the one its weights were trained with: "
            "put back the file that came with the checkpoint"
        )
    about: dict[str, Any] = {"model": str(checkpoint), "tokenizer": tokenizer}
    if isinstance(engine, str):
        served = connect(engine, codec)
        return Model(served, codec, recipe, {**about, "server": served.about})
    network = load_checkpoint(checkpoint, default_device(), dtype)
    engine = engine or EngineConfig()
    if engine != EngineConfig():
        about["engine"] = config.to_json(engine)
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


def explain(traces: Sequence[Trace], checkpoint: Path) -> dict[str, Diagnosis]:
    """Why the model in ``checkpoint`` solved the problems of ``traces`` or not, by kind of problem.

    Raises:
        CheckpointError: missing or damaged, or the traces are of another tokenizer.
        DataError: a trace is not of a Countdown problem, or put together of samples.
    """
    kinds = by_kind(traces)
    told = read_model_manifest(checkpoint).recipe.demonstrations
    codec = HFCodec.load(checkpoint)
    if any(t.meta.get("tokenizer") not in (None, codec.fingerprint) for t in traces):
        raise CheckpointError(
            f"the traces were not written with the tokenizer in {checkpoint}: name their own model"
        )
    return {
        kind: diagnose(of_kind, told.text, codec.decode, told.solver)
        for kind, of_kind in kinds.items()
    }


def facts(trace: Trace, codec: Codec) -> dict[str, Any]:
    """``trace`` as plain values and text, for programs that want neither ids nor logprobs."""
    return {
        **trace.problem,
        "method": trace.method,
        "answer": trace.answer,
        "expression": None if trace.answer is None else spell(trace.answer),
        "correct": trace.is_correct,
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


class Manifest(NamedTuple):
    """What a checkpoint says of itself."""

    whole: dict[str, Any]
    recipe: Recipe
    tokenizer: str  # fingerprint of the one it was trained with


def read_model_manifest(checkpoint: Path) -> Manifest:
    """Raises CheckpointError where there is none, or none that this version reads."""
    path = checkpoint / MANIFEST
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"no checkpoint at {checkpoint}, where no folder is: train it first, or name another"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "recipe" in manifest:
            recipe = config.build(Recipe, manifest["recipe"])
            return Manifest(manifest, recipe, manifest["tokenizer"])
    except ConfigError as e:
        raise CheckpointError(
            f"{path} holds a recipe of another version ({e}): train it again with this one"
        ) from e
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} is damaged ({e}): copy the checkpoint again") from e
    raise CheckpointError(
        f"{checkpoint} has no {MANIFEST} with a recipe, so apr sft did not make it: use it from "
        "Python, as docs/own.md shows, or name a checkpoint that apr sft made"
    )
