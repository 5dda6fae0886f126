"""What several verbs say in the same words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer
from rich.console import Console
from rich.tree import Tree

from apr import terminal
from apr.countdown.answer import spell
from apr.errors import DataError
from apr.eval.metrics import summarize
from apr.eval.posed import Problems, note_of
from apr.trace import Trace


def console_of() -> Console:
    """Standard output; where it is no terminal, lines are as long as they need to be."""
    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def name_of(checkpoint: Path) -> str:
    """What a checkpoint is called: its folder, or that of its run."""
    checkpoint = checkpoint.resolve()
    return checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name


def note(posed: Iterable[tuple[str, Problems]]) -> None:
    """Say so where rows side by side were posed different problems."""
    if said := note_of(posed):
        typer.echo(f"note: {said}", err=True)


def row_of(file: Path, traces: list[Trace]) -> terminal.Row:
    if not traces:
        raise no_trace(file)
    first = traces[0]
    model = model_of(first)
    name = file.stem if model is None else name_of(model)
    return terminal.Row(name, first.method, first.meta.get("context"), summarize(traces))


def model_of(trace: Trace) -> Path | None:
    """The checkpoint that ``trace`` was made with, where it says so."""
    stated = trace.meta.get("model")
    return Path(stated) if isinstance(stated, str) else None


def no_trace(file: Path) -> DataError:
    return DataError(f"{file} holds no trace: name one that apr eval wrote")


def draw(console: Console, trace: Trace, drawn: Tree | None = None) -> None:
    fold = console.is_terminal and len(trace.threads) > console.height
    console.print(drawn or terminal.tree(trace, fold))
    console.print(terminal.verdict(trace, answer_of(trace)))


def answer_of(trace: Trace) -> str | None:
    """What ``trace`` claims, as people write it."""
    target = trace.problem.get("target")
    if trace.answer is None or target is None or (expression := spell(trace.answer)) is None:
        return trace.answer
    return f"{expression} = {target}" if trace.is_correct else expression
