"""How to run a model, as flags of ``apr eval``: from flags to `Inference`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from apr import config
from apr.api.recipe import Inference, MethodName
from apr.errors import ConfigError
from apr.runtime import ChildContext

OF_SEVERAL = (
    MethodName.BEST_OF_N,
    MethodName.SELF_CONSISTENCY,
    MethodName.MULTI_AGENT,
    MethodName.HOGWILD,
)
"""Methods that take a number of samples."""

_FIELDS = {
    "within": "within",
    "chooser": "chooser",
    "taken": "taken",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "children": "children",
    "window": "window",
    "tree_depth": "tree.depth",
    "beam": "tree.beam",
    "proposals": "tree.proposals",
    "value": "tree.value",
    "rollouts": "tree.rollouts",
    "context": "limits.context",
    "depth": "limits.depth",
    "max_children": "limits.children",
    "threads": "limits.threads",
    "tokens": "limits.total_tokens",
    "seconds": "limits.seconds",
    "first_success": "first_success",
    "fork": "child_context",
}
"""The field of `Inference` that each flag sets; besides these ``method`` and ``samples``."""
_SWITCHES = {"first_success": True, "fork": ChildContext.FORK}
"""Flags without a value, and what they set."""


def inference_of(flags: Mapping[str, Any]) -> Inference:
    """What ``flags`` say, by name; None leaves the default.

    Raises:
        ConfigError: a value that cannot be.
    """
    raw: dict[str, Any] = {"method": flags["method"], "samples": flags["samples"]}
    for flag, path in _FIELDS.items():
        value = flags[flag]
        if flag in _SWITCHES:
            value = _SWITCHES[flag] if value else None
        if value is not None:
            *sections, name = path.split(".")
            place = raw
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = value
    return config.build(Inference, raw)


def flags_of(how: Inference) -> list[str]:
    """The flags that say ``how``, in words; the method always, else no defaults.

    Raises:
        ConfigError: no flag says it.
    """
    usual = Inference()
    if how.limits.calls != usual.limits.calls:
        raise ConfigError("limits.calls has no flag, and each result needs a command: leave it out")
    words = ["--method", how.method.value]
    if how.method in OF_SEVERAL:
        words += ["--samples", str(how.samples)]
    for flag, path in _FIELDS.items():
        value = attrgetter(path)(how)
        if value != attrgetter(path)(usual):
            words.append(f"--{flag.replace('_', '-')}")
            words += [] if flag in _SWITCHES else [str(value)]
    return words
