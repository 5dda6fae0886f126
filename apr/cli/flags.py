"""What the verbs share: flags that say how to run a model, and one sentence for each error."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial, wraps
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from apr.errors import AprError, InputError, OutOfTime

if TYPE_CHECKING:
    from apr.api import Inference

# Typer exports the leaves of its errors only; this is their base for a flag it cannot read.
_UsageError: Any = typer.BadParameter.__base__

output = partial(typer.Option, rich_help_panel="Output")
_sampling = partial(typer.Option, rich_help_panel="Sampling")
_limit = partial(typer.Option, rich_help_panel="Limits")
_method = partial(typer.Option, rich_help_panel="Methods that sample")

_METHOD = (
    "apr: threads as the model spawns them; serial: one thread that may not spawn; pasta; or one "
    "that samples: best_of_n, self_consistency, multi_agent, hogwild, tree_of_thoughts."
)
_VALUE = "What a thought is worth: its mean logprob, or rollouts that claim an answer."
_WINDOW = "Budget of context told to models trained on one; the limit itself is --context."
_CHILDREN = "Child threads told to models trained on their number; the limit is --max-children."
_TOKENS = "Sampled tokens of one run; methods that sample make several for a problem."
_DEPTH = "Levels of threads below the root; 8 by default."
_SPAWNED = "Children of one spawn; 64 by default."
_THREADS = "Threads of one run, shared out at each spawn; 1,024 by default."
_FIRST = "The first child to succeed cancels its siblings."

Json = Annotated[bool, output("--json", help="Print one JSON object, and nothing else.")]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="ADDRESS",
        help="Server that runs the checkpoint: vllm://host:port, sglang://..., several by commas; "
        "or the embedded engine set otherwise: embedded://?products=int8.",
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0, help="Stop after so many, state saved, with code 75; the same command goes on."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: --set sft.steps=100."),
]


@dataclass(frozen=True)
class RunFlags:
    """How to run a model, as flags."""

    method: Annotated[str, typer.Option(metavar="NAME", help=_METHOD)] = "apr"
    samples: Annotated[int, _method(help="How many, for methods that sample.")] = 8
    within: Annotated[str, _method(metavar="serial|apr", help="What they are of.")] = "serial"
    chooser: Annotated[
        str, _method(metavar="first|logprob|oracle", help="Which of them best_of_n takes.")
    ] = "first"
    taken: Annotated[
        str, _method(metavar="first|vote", help="Which claim of its workers hogwild takes.")
    ] = "first"
    tree_depth: Annotated[int, _method(help="Levels of thoughts.")] = 3
    beam: Annotated[int, _method(help="Thoughts kept of a level.")] = 5
    proposals: Annotated[int, _method(help="Thoughts sampled after each that was kept.")] = 5
    value: Annotated[str, _method(metavar="logprob|rollouts", help=_VALUE)] = "logprob"
    rollouts: Annotated[int, _method(help="How many value a thought.")] = 3
    temperature: Annotated[float, _sampling(help="0 is greedy.")] = 0.0
    top_p: Annotated[float, _sampling(help="Nucleus mass to sample from; 1 is all.")] = 1.0
    top_k: Annotated[int, _sampling(help="Likeliest tokens to sample from; 0 is all.")] = 0
    seed: Annotated[int | None, _sampling(help="Same seed, same traces.")] = None
    children: Annotated[int | None, _sampling(help=_CHILDREN)] = None
    window: Annotated[int | None, _sampling(help=_WINDOW)] = None
    context: Annotated[int | None, _limit(help="Tokens of a call, its prompt included.")] = None
    depth: Annotated[int | None, _limit(help=_DEPTH)] = None
    max_children: Annotated[int | None, _limit(min=1, help=_SPAWNED)] = None
    threads: Annotated[int | None, _limit(help=_THREADS)] = None
    tokens: Annotated[int | None, _limit(min=1, help=_TOKENS)] = None
    seconds: Annotated[float | None, _limit(help="Wall clock of one run.")] = None
    first_success: Annotated[bool, _limit("--first-success", help=_FIRST)] = False
    fork: Annotated[bool, _limit("--fork", help="Children see all their parent wrote.")] = False

    def inference(self) -> Inference:
        """Raises ConfigError for a value that cannot be."""
        from apr.api import inference_of

        return inference_of(asdict(self))


def deadline(minutes: float | None) -> float:
    """So many minutes from now on the clock of ``time.monotonic``; never, where none are given."""
    return inf if minutes is None else time.monotonic() + 60 * minutes


def run_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Let ``verb`` take the fields of its parameter ``how``, a ``RunFlags``, one by one."""
    flags = get_type_hints(RunFlags, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        if parameter.name != "how":
            parameters.append(parameter)
            continue
        parameters += [
            parameter.replace(name=f.name, annotation=flags[f.name], default=f.default)
            for f in fields(RunFlags)
        ]

    @wraps(verb)
    def run(**given: Any) -> None:
        verb(how=RunFlags(**{name: given.pop(name) for name in flags}), **given)

    # Typer reads what a verb takes off its signature.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


class Verbs(TyperGroup):
    """Verbs that fail with one sentence: 2 for what the user can mend, 1 for the world.

    75 ("try again", as ``sysexits.h`` has it): out of time, and the same command goes on.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except _UsageError as e:
            verb = e.ctx.command_path if e.ctx else "apr"
            code = _fail(f"{e.format_message().rstrip('.')} (see {verb} --help)", 2)
        except OutOfTime as e:
            code = _fail(str(e), 75)
        except AprError as e:
            code = _fail(str(e), 2 if isinstance(e, InputError) else 1)
        except OSError as e:
            code = _fail(*_refused(e))
        sys.exit(code or 0)


def _refused(error: OSError) -> tuple[str, int]:
    """What the system would not do, and the code to exit with."""
    why = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"cannot use {error.filename} ({why}): name another path, or open this one to you", 2
    if _output_is_stuck():
        return f"cannot write standard output ({why}): make room there or send it elsewhere", 2
    return f"the system refuses ({why}): mend that, and give the same command again", 1


def _output_is_stuck() -> bool:
    try:
        print(end="", flush=True)  # also where there is no standard output at all
    except OSError:
        # What is left would fail once more at exit, with a traceback.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False


def _fail(message: str, code: int) -> int:
    typer.echo("error: " + " ".join(message.split()), err=True)
    return code
