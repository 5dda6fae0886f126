"""Verbs that make data and models."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apr.cli.flags import Minutes, Overrides, Workers, deadline
from apr.cli.recipes import load, load_sft

if TYPE_CHECKING:
    from apr.api import Recipe


def data(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or a name such as mini.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="By default data/RECIPE.")] = None,
    workers: Workers = None,
    overrides: Overrides = None,
) -> None:
    """Let the solver write demonstrations to train on; goes on where it was cut off."""
    loaded = load_sft(recipe, overrides)
    _make_data(loaded, out or Path("data", Path(recipe).stem), workers)


def sft(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or a name such as mini.")],
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="By default runs/RECIPE.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="By default data/RECIPE.")
    ] = None,
    workers: Workers = None,
    minutes: Minutes = None,
    overrides: Overrides = None,
) -> None:
    """Train a model on demonstrations, made first if missing; goes on where it was cut off.

    On several devices: torchrun --nproc-per-node N -m apr sft RECIPE --set sft.accumulate=N
    """
    until = deadline(minutes)
    loaded = load_sft(recipe, overrides)
    stem = Path(recipe).stem
    run, folder = out or Path("runs", stem), data or Path("data", stem)
    from apr import api

    if _is_first():
        api.check_start(loaded, run)
        _make_data(loaded, folder, workers)
    losses = api.train(loaded, run, folder, sys.stderr.isatty(), until)
    if not _is_first():
        return
    typer.echo(f"held-out loss {losses.mean:.4f} nats per token")
    for name, loss in losses.by_class.items():
        typer.echo(f"  {name} {loss:.4f}, {losses.shares[name]:.1%} of the whole")
    typer.echo(f"checkpoint in {run / 'checkpoint'}")


def grpo(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or a name such as grpo.")],
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="By default runs/RECIPE.")] = None,
    minutes: Minutes = None,
    overrides: Overrides = None,
) -> None:
    """Train a model further on whole trees of threads, by the grade of their answers (GRPO).

    Goes on where it was cut off. On several devices: torchrun --nproc-per-node N -m apr grpo RECIPE
    """
    until = deadline(minutes)
    from apr import api

    loaded = load(recipe, api.RLRecipe, overrides)
    run = out or Path("runs", Path(recipe).stem)
    api.reinforce(loaded, run, sys.stderr.isatty(), until)
    if _is_first():
        typer.echo(f"checkpoint in {run / 'checkpoint'}")


def average(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints, two or more.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; replaced if there.")],
) -> None:
    """Take the mean of the weights of checkpoints that were trained from the same beginning.

    apr average runs/rounds/checkpoint runs/rounds-last/checkpoint runs/rounds-mean
    """
    from apr import api

    api.average(checkpoints, directory)
    typer.echo(f"checkpoint in {directory}")


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to copy.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; replaced if there.")],
) -> None:
    """Copy a checkpoint in bfloat16, split into files that a repository takes.

    apr export runs/mini/checkpoint results/mini
    """
    from apr import api

    api.export(checkpoint, directory)
    size = sum(file.stat().st_size for file in directory.iterdir())
    typer.echo(f"{directory}: {size / 1e6:.1f} MB")


def _is_first() -> bool:
    """Whether this is the process of ``torchrun`` that speaks, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _make_data(recipe: Recipe, folder: Path, workers: int | None) -> None:
    from apr import api

    workers = workers or os.cpu_count() or 1
    for split, made in api.make_data(recipe, folder, workers, sys.stderr.isatty()).items():
        tally = made["tally"]
        typer.echo(
            f"{folder / split}: {tally['kept']:,} demonstrations of {tally['made']:,}, "
            f"{made['solve_rate']:.1%} solved, {made['tokens_per_demonstration']:.0f} tokens each, "
            f"{made['sequential_tokens_per_demonstration']:.0f} in sequence, "
            f"{made['children_per_demonstration']:.1f} children, longest {tally['longest']}"
        )
