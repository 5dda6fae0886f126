"""A task of one's own, from nothing to a trained model and its figures.

Halve an even number, triple an odd one and add one: by that rule, Collatz's, one comes to 1, from
some numbers soon, from some late. A problem is a few numbers, its answer the most steps that one of
them takes. The root gives each number to a child, which walks to 1 and counts; it hears the counts
and returns the largest::

    python examples/own_task.py         # a minute on one core; given again, it goes on where it was
    apr trace runs/own/traces.jsonl --model runs/own/checkpoint
"""

from __future__ import annotations

import argparse
import asyncio
import random
from functools import partial
from pathlib import Path
from typing import Any

import rich

from apr import Runtime, terminal, write_traces
from apr.data.packing import PackedBatches
from apr.data.shards import ShardConfig, read_shards, write_shards
from apr.data.tokenizer import EOS, PAD, HFCodec, build_tokenizer
from apr.dialects.tags import TAGS, Tags
from apr.dialects.told import Told, demonstration
from apr.engine import EmbeddedEngine
from apr.eval.metrics import summarize
from apr.eval.run import run_problems
from apr.methods.apr import APR
from apr.models.checkpoint import save_checkpoint
from apr.models.llama import Llama, LlamaConfig
from apr.train.numbers import start_as_waves
from apr.train.optim import OptimConfig
from apr.train.sft import SFTConfig, train_sft
from apr.types import Demonstration, Grade, Sampling

Problem = tuple[int, ...]
CONTEXT = 256
WORDS = {f" {n}": n for n in range(1_000)}
CODEC = HFCodec(build_tokenizer(list(WORDS), [PAD, EOS, *TAGS], " ?[0-9]+"))
SHAPE = LlamaConfig(
    vocab_size=CODEC.size,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=CONTEXT,
    eos_token_id=CODEC.eos_id,
)


def walk(n: int) -> list[int]:
    """From ``n`` to 1."""
    return [n] if n == 1 else [n, *walk(3 * n + 1 if n % 2 else n // 2)]


STARTS = [n for n in range(2, 200) if max(walk(n)) < len(WORDS)]


def draw(split: str, index: int) -> Problem:
    """Problem ``index`` of a split; hardly one is in two of them."""
    rng = random.Random(f"{split}/{index}")
    return tuple(rng.sample(STARTS, rng.randint(4, 8)))


class Slowest:
    """The task: how a problem is posed, and how an answer is read and graded."""

    def prompt(self, problem: Problem) -> str:
        return Tags().child_prompt(tell(problem).message)

    def answer(self, message: str) -> str | None:
        return message.strip() or None

    def canonical(self, answer: str) -> str:
        return answer

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        right = tell(problem).join.strip()
        return Grade(answer == right, "correct" if answer == right else f"{right} is right")

    def to_json(self, problem: Problem) -> dict[str, Any]:
        return {"numbers": list(problem)}


def tell(problem: Problem) -> Told:
    """How a model is to solve ``problem``."""
    counts = [len(walk(n)) - 1 for n in problem]
    walks = ["".join(f" {m} {i}" for i, m in enumerate(walk(n))) for n in problem]
    told = zip(problem, walks, counts, strict=True)
    children = [Told(f" {n}", [steps], f" {count}") for n, steps, count in told]
    return Told("".join(f" {n}" for n in problem), [children], f" {max(counts)}")


def demonstrate(split: str, index: int) -> Demonstration:
    told = demonstration(tell(draw(split, index)), CODEC)
    # Children are all alike: the root and one of them, so that what roots do is met more often.
    return told.only([n < 2 for n in range(len(told.sequences))])


def train(run: Path, steps: int) -> Llama:
    """A network trained on demonstrations; what ``run`` holds of it already is not made again."""
    batches = {}
    for split, count in (("train", 4_000), ("valid", 100)):
        # Data made by other settings is refused: change them when the demonstrations change.
        settings = {"split": split, "version": 1}
        make = partial(demonstrate, split)
        write_shards(run / split, make, CODEC, ShardConfig(count), settings)
        batches[split] = PackedBatches(read_shards(run / split), 8, CONTEXT, 0, CODEC.pad_id)
    network = Llama(SHAPE)
    network.init_weights(0)
    start_as_waves(network, {CODEC.vocabulary[word]: n for word, n in WORDS.items()})
    # The answer, one token of a root's thirty, is the hardest to learn.
    config = SFTConfig(steps, 8, CONTEXT, heard_weight=10.0, optim=OptimConfig(warmup=20))
    train_sft(network, batches["train"], batches["valid"], config, run)
    save_checkpoint(network, run / "checkpoint", CODEC.to_json())
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description="Train threads on a task of one's own.")
    parser.add_argument("--out", type=Path, default=Path("runs/own"), help="folder")
    parser.add_argument("--steps", type=int, default=500, help="updates of the weights")
    parser.add_argument("--count", type=int, default=200, help="problems to evaluate on")
    args = parser.parse_args()
    engine = EmbeddedEngine(train(args.out, args.steps))
    runtime = Runtime(engine, CODEC, Tags(), Sampling(max_tokens=CONTEXT))
    problems = [draw("test", index) for index in range(args.count)]
    traces = asyncio.run(run_problems(APR(runtime, Slowest()), problems, concurrency=64))
    write_traces(args.out / "traces.jsonl", traces)
    rich.print(terminal.tree(traces[0]), terminal.verdict(traces[0], traces[0].answer))
    rich.print(terminal.scores([terminal.Row("own", "apr", CONTEXT, summarize(traces))]))


if __name__ == "__main__":
    main()
