"""The command line: thin verbs over ``apr.api``.

What is heavy is imported inside the verbs that need it: help, grading and drawing are quick.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import apr
from apr.cli import look, reason, servers, train
from apr.cli.flags import Verbs

app = typer.Typer(
    name="apr",
    cls=Verbs,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
engine = typer.Typer(cls=Verbs, help="Real servers that run a checkpoint.")


def _add(to: typer.Typer, panel: str | None, *verbs: Callable[..., None]) -> None:
    for verb in verbs:
        to.command(rich_help_panel=panel)(verb)


# A negative number is no option.
app.command(rich_help_panel="Reason", context_settings={"ignore_unknown_options": True})(
    reason.solve
)
app.command(name="eval", rich_help_panel="Reason")(reason.evaluate)
app.add_typer(engine, name="engine", rich_help_panel="Reason")
_add(app, "Look", look.report, look.table, look.trace, look.explain, look.grade)
_add(app, "Train", train.data, train.sft, train.grpo, train.average, train.export)
_add(engine, None, servers.launch, servers.gguf)


@app.callback(invoke_without_command=True)
def verbs(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
) -> None:
    r"""Adaptive parallel reasoning: language models that spawn and join threads of their own.

    A model is posed a Countdown problem: reach the target from the numbers,
    each used exactly once, by + - * and /. It searches in a thread, hands
    parts of the search to child threads that run at the same time, hears what
    they found, and answers. The answer is checked exactly.

    [bold]Watch a model reason[/bold]
      apr solve 22 26 31 53 --target 27
      apr solve 22 26 31 53 --target 27 --json

    [bold]Train threads, and the same searches told by one thread[/bold]
      apr sft mini
      apr sft mini --out runs/one --data data/one \
        --set demonstrations.telling=serial

    [bold]Know whether threads pay[/bold]
      apr eval runs/mini/checkpoint --context 128
      apr eval runs/one/checkpoint --context 128 --method serial
      apr table runs/eval/*.jsonl
    """
    if version:
        typer.echo(f"apr {apr.__version__}")
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> None:
    """Entry point of the program ``apr``."""
    # What a terminal cannot show must not end a run; who chose another way to deal with it has it.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    app(prog_name="apr")
