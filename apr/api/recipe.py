"""What people write down: recipes of training, and how to run a model.

A recipe says which problems there are, how a search over them is told, the shape of a network and
how it is trained. A checkpoint keeps the recipe that made it, so a model knows its own text,
dialect, problems and context.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum

from apr.config import check_drawing, check_least
from apr.countdown.demonstrate import Demonstrate
from apr.countdown.problem import Split
from apr.countdown.task import number_words
from apr.data.shards import Overlong
from apr.engine import EngineConfig
from apr.errors import ConfigError
from apr.methods.best_of_n import Chooser
from apr.methods.hogwild import Taken
from apr.methods.tree_of_thoughts import TreeConfig
from apr.models.llama import LlamaConfig
from apr.runtime import ChildContext, Limits
from apr.train.grpo import GRPOConfig
from apr.train.numbers import width
from apr.train.sft import SFTConfig


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

    def __post_init__(self) -> None:
        self.llama()

    def llama(
        self, vocab_size: int = 1, context: int = 1, eos_id: int | None = None
    ) -> LlamaConfig:
        """The same with what a recipe adds.

        Raises:
            ConfigError: there is no such network.
        """
        return LlamaConfig(
            **asdict(self),
            vocab_size=vocab_size,
            max_position_embeddings=context,
            eos_token_id=eos_id,
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a checkpoint depends on."""

    sft: SFTConfig
    demonstrations: Demonstrate = field(default_factory=Demonstrate)
    count: int = 100_000
    """Demonstrations to train on, before filters."""
    held_out: int = 2_000
    """Demonstrations of the validation split, for the held-out loss."""
    per_shard: int = 5_000
    """Demonstrations to a file of data, which one worker makes: fewer, where each takes long."""
    solved_only: bool = False
    """Train only on demonstrations that find a solution."""
    overlong: Overlong = Overlong.CUT
    """What becomes of demonstrations that do not fit the context."""
    context: int = 256
    """Most tokens of one sequence, in training and ever after."""
    largest_number: int = 400
    """Numbers up to this are one token each; larger ones are spelled in digits."""
    pairs: bool = False
    """Whether larger numbers are spelled in pairs of digits, a token for each."""
    network: Network = field(default_factory=Network)
    verdict_weight: float = 1.0
    """Weight in the loss of the tokens that say whether an expression hits the target. They decide
    everything, are few, and nearly all alike: unweighted, they are learnt last."""
    operator_weight: float = 1.0
    """Weight in the loss of operators, which decide where they say what is tried next: a division
    that goes is rare, and one that is left out nobody finds."""
    waves: bool = False
    """Whether embeddings of numbers start as waves (``apr.train.numbers``): arithmetic is learnt
    several times as fast."""
    checkpoint: str = ""
    """What training starts from, of the same shape; by default random weights. Words that its
    tokenizer lacks start as they would without it. It may have learnt another text: numbers and
    operators mean the same in all of them."""
    seed: int = 0
    """Of the weights and of the order of batches; the demonstrations have their own."""

    def __post_init__(self) -> None:
        if self.demonstrations.split is not Split.TRAIN:
            raise ConfigError(
                "a recipe makes demonstrations to train on and to hold out by itself: leave "
                "demonstrations.split out"
            )
        check_least(
            1,
            count=self.count,
            held_out=self.held_out,
            per_shard=self.per_shard,
            context=self.context,
            largest_number=self.largest_number,
        )
        check_least(
            0,
            verdict_weight=self.verdict_weight,
            operator_weight=self.operator_weight,
            seed=self.seed,
        )
        words = number_words(self.demonstrations.text, self.largest_number, self.pairs)
        taken = width(max(words.values()))
        if self.waves and self.network.hidden_size < taken:
            raise ConfigError(
                f"waves take {taken} numbers of each embedding and network.hidden_size is "
                f"{self.network.hidden_size}: make it wider, or leave waves out"
            )


class MethodName(StrEnum):
    """Ways to spend inference on a problem; ``apr.methods`` says what each is and costs."""

    APR = "apr"
    """Threads, as the model spawns them."""
    SERIAL = "serial"
    """One thread that may not spawn."""
    PASTA = "pasta"
    """Threads whose whole text returns to their parent, for models trained so."""
    BEST_OF_N = "best_of_n"
    """Samples, of which a chooser takes one."""
    SELF_CONSISTENCY = "self_consistency"
    """Samples that vote on the answer."""
    MULTI_AGENT = "multi_agent"
    """Samples whose answers the model merges."""
    HOGWILD = "hogwild"
    """Workers that see each other's tokens as they are written, on the embedded engine."""
    TREE_OF_THOUGHTS = "tree_of_thoughts"
    """Breadth-first search over partial texts."""


class Sampled(StrEnum):
    """What methods that take several samples take them of."""

    SERIAL = "serial"
    APR = "apr"


_ONE_RUN = (MethodName.APR, MethodName.SERIAL, MethodName.PASTA)


@dataclass(frozen=True, slots=True)
class Inference:
    """How to run a model on a problem."""

    method: MethodName = MethodName.APR
    samples: int = 8
    """How many, for methods that sample several times."""
    within: Sampled = Sampled.SERIAL
    """What those samples are of."""
    chooser: Chooser = Chooser.FIRST
    """Which sample ``best_of_n`` takes."""
    taken: Taken = Taken.FIRST
    """Which claim of its workers ``hogwild`` takes; ``samples`` is how many they are."""
    tree: TreeConfig = field(default_factory=TreeConfig)
    """Size of ``tree_of_thoughts``."""
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
        check_drawing(self.temperature, self.top_p, self.top_k)
        check_least(0, children=self.children, window=self.window)
        check_least(1, samples=self.samples)
        if self.temperature == 0 and self.method not in _ONE_RUN:
            raise ConfigError(
                f"{self.method} takes several samples, and at temperature 0 they are all equal: "
                "set a temperature, such as 1"
            )

    @property
    def label(self) -> str:
        """``kind`` and ``besides``."""
        return ", ".join(filter(None, [self.kind, self.besides]))

    @property
    def besides(self) -> str:
        """What else was set of it that no table has a column for, in words; mostly nothing."""
        limits, usual = asdict(self.limits), asdict(Limits())
        set_of_it = {
            f"top p {self.top_p:g}": self.top_p < 1,
            f"top k {self.top_k}": self.top_k > 0,
            "forked": self.child_context is ChildContext.FORK,
            "first success": self.first_success,
        }
        told = [words for words, is_set in set_of_it.items() if is_set]
        # The context is a budget, and named as one.
        told += [
            f"{name.replace('_', ' ')} up to {limit:,}"
            for name, limit in limits.items()
            if limit != usual[name] and name != "context"
        ]
        return ", ".join(told)

    @property
    def kind(self) -> str:
        """The method with what tells it from its own kind, as tables name it."""
        match self.method:
            case MethodName.BEST_OF_N:
                return f"best of {self.samples} {self.within}, {self.chooser}"
            case MethodName.SELF_CONSISTENCY:
                return f"cons@{self.samples} {self.within}"
            case MethodName.MULTI_AGENT:
                return f"{self.samples} agents, {self.within}"
            case MethodName.HOGWILD:
                return f"hogwild {self.samples}, {self.taken}"
            case MethodName.TREE_OF_THOUGHTS:
                return f"tree of thoughts, {self.tree.value}"
            case _:
                return self.method


@dataclass(frozen=True, slots=True)
class RLRecipe:
    """Everything that a checkpoint made by reinforcement learning depends on."""

    checkpoint: str
    """Folder of the checkpoint to start from; its own recipe says which problems to pose."""
    sampling: Inference = field(default_factory=lambda: Inference(temperature=1.0))
    """How rollouts are sampled."""
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    validation: int = 200
    """Problems of the validation split to solve greedily every so often."""
    unsolved: float = 0.0
    """Share of the problems to train on that are drawn until the search of the demonstrations,
    balances left out, does not solve them: where nearly every rollout succeeds, hardly any group
    has something to teach."""
    seed: int = 0
    """Of the problems posed and of the rollouts."""

    def __post_init__(self) -> None:
        how = self.sampling
        if (how.temperature, how.top_p, how.top_k) != (1.0, 1.0, 0):
            raise ConfigError(
                "rollouts are drawn from the model's own distribution, which is what is trained: "
                "leave sampling.temperature at 1, and top_p and top_k out"
            )
        if how.method is MethodName.HOGWILD:
            raise ConfigError(
                "workers of hogwild see more than their own text, which is nothing to train on: "
                "take another sampling.method"
            )
        if how.method not in _ONE_RUN:
            raise ConfigError(
                f"sampling.method is {how.method}, which answers from several samples: train on "
                "one run, such as apr or serial"
            )
        if how.seed is not None:
            raise ConfigError("rollouts are seeded by the recipe: set seed, not sampling.seed")
        check_least(1, validation=self.validation)
        if not 0 <= self.unsolved <= 1:
            raise ConfigError(f"unsolved is a share between 0 and 1, not {self.unsolved}")
