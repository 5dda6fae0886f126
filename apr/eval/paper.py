"""Numbers of the paper, to be drawn beside ours: Pan et al., 2504.15466. Facts only.

Its task is Countdown with four numbers up to 99, its network has 228M parameters outside of the
embeddings and a context of 4,096 tokens, its test set 1,000 problems. Accuracies are shares of 1.

``TABLES`` holds what the paper tabulates, in three groups: how its serial search compares with the
earlier one, what other demonstrations make of it, and every setting by temperature. Numbers that
its text gives stand by themselves. What is worked out from them says so where it is defined.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

SOURCE = "Pan et al., 2025, arXiv 2504.15466"
URL = "https://arxiv.org/abs/2504.15466"
CONTEXT = 4_096


class Setting(StrEnum):
    """What a model can stand beside."""

    SOS = "SoS"
    """Serial search as Stream of Search tells it (Gandhi et al., 2404.03683)."""
    SERIAL = "SoS+"
    SERIAL_RL = "SoS+ + RL"
    SERIAL_WIDE = "SoS+ beam 15"
    """Demonstrations of a wider beam."""
    SERIAL_SOLVED = "SoS+ rejection-sampled"
    """Trained only on demonstrations that find a solution."""
    THREADS = "APR"
    THREADS_RL = "APR + RL"
    CHILDREN = "APR conditioned"
    """On the number of child threads; accuracies are those with 10."""
    CHILDREN_RL = "APR conditioned + RL"


TEMPERATURES = (0.0, 0.1, 0.5, 1.0)

ACCURACY: dict[Setting, dict[float, float]] = {
    Setting.SOS: {0.0: 0.495, 0.1: 0.496, 0.5: 0.471, 1.0: 0.379},
    Setting.SERIAL: {0.0: 0.573, 0.1: 0.571, 0.5: 0.520, 1.0: 0.481},
    Setting.SERIAL_RL: {0.0: 0.600, 0.1: 0.593, 0.5: 0.591, 1.0: 0.581},
    Setting.SERIAL_WIDE: {0.0: 0.509, 1.0: 0.425},
    Setting.SERIAL_SOLVED: {0.0: 0.565, 1.0: 0.545},
    Setting.THREADS: {0.0: 0.755, 0.1: 0.759, 0.5: 0.749, 1.0: 0.678},
    Setting.THREADS_RL: {0.0: 0.834, 0.1: 0.829, 0.5: 0.813, 1.0: 0.764},
    Setting.CHILDREN: {0.0: 0.832, 0.1: 0.833, 0.5: 0.838, 1.0: 0.801},
    Setting.CHILDREN_RL: {0.0: 0.833, 0.1: 0.833, 0.5: 0.838, 1.0: 0.819},
}


class Table(NamedTuple):
    title: str
    rows: tuple[Setting, ...]


TABLES = (
    Table("Table 1: serial search, as first published and improved", (Setting.SOS, Setting.SERIAL)),
    Table(
        "Table 2: other demonstrations for serial search",
        (Setting.SERIAL, Setting.SERIAL_WIDE, Setting.SERIAL_SOLVED),
    ),
    Table(
        "Table 3: every setting by temperature",
        (
            Setting.SERIAL,
            Setting.SERIAL_RL,
            Setting.THREADS,
            Setting.THREADS_RL,
            Setting.CHILDREN,
            Setting.CHILDREN_RL,
        ),
    ),
)


class Spending(NamedTuple):
    """A point of accuracy against total tokens."""

    tokens: float
    accuracy: float
    note: str


# Figure 4a, at temperature 1. The text gives 80.1 % at about 20k tokens, cons@7 66.6 %, pass@8
# 68.4 % at 24k, and that APR reaches the latter with 57.4 % less compute.
PASS_8_TOKENS = 24_000.0
SAMPLE_TOKENS = PASS_8_TOKENS / 8
"""Of one serial sample, worked out from pass@8."""
LESS_COMPUTE = 0.574
ONE_SAMPLE = Spending(SAMPLE_TOKENS, ACCURACY[Setting.SERIAL][1.0], "1 sample")
FIGURE_4A = {
    "threads": (
        Spending(PASS_8_TOKENS * (1 - LESS_COMPUTE), 0.684, "57.4 % less"),
        Spending(20_000.0, 0.801, "10 children"),
    ),
    "cons@n": (ONE_SAMPLE, Spending(7 * SAMPLE_TOKENS, 0.666, "cons@7")),
    "pass@n": (ONE_SAMPLE, Spending(PASS_8_TOKENS, 0.684, "pass@8")),
}

# Figure 4b, at a window of 4,096: by how much APR leads, roughly, by the number of children.
FIGURE_4B_LEAD = {6: 0.10, 10: 0.20}


class Change(NamedTuple):
    """A figure before and after reinforcement learning."""

    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.after / self.before


# Figures 5 and 7.
TOTAL_TOKENS = {
    Setting.THREADS: Change(10_964, 16_720),
    Setting.SERIAL: Change(2_201, 2_660),
}
TOKENS_PER_THREAD = Change(1_471, 1_796)
NUM_CHILDREN = Change(6.1, 8.2)


AFTER_RL = {
    Setting.SERIAL: Setting.SERIAL_RL,
    Setting.THREADS: Setting.THREADS_RL,
    Setting.CHILDREN: Setting.CHILDREN_RL,
}
"""What reinforcement learning makes of each."""


def rl_change(before: Setting) -> Change:
    """Accuracy of greedy decoding before and after reinforcement learning (figures 5 and 7)."""
    return Change(ACCURACY[before][0.0], ACCURACY[AFTER_RL[before]][0.0])


# Figure 6: eight A6000, one for the parent and seven for its children.
LATENCY_SECONDS = 5.0
LATENCY_ACCURACY = {Setting.SERIAL: 0.573, Setting.THREADS: 0.752}
