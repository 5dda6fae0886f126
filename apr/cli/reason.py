"""Verbs that solve problems."""

from __future__ import annotations

import gc
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

import apr
from apr import config, terminal
from apr.cli.flags import Engine, Json, Overrides, RunFlags, output, run_flags
from apr.cli.recipes import load_sft
from apr.cli.shown import console_of, draw, name_of, note, row_of
from apr.countdown.problem import Problem, Split, read_problems, solvable, split_of
from apr.errors import ConfigError, DataError, EngineError, ProblemError, StorageError
from apr.eval.journal import Journal
from apr.files import check_writable
from apr.trace import Trace, write_traces

if TYPE_CHECKING:
    from apr.api import Inference, Model

_MODEL = "Checkpoint; the packaged demo by default."


@run_flags
def solve(
    *,
    numbers: Annotated[
        list[str], typer.Argument(metavar="NUMBERS...", help="Whole numbers, each used once.")
    ],
    target: Annotated[str, typer.Option(help="What to make of them.")],
    model: Annotated[Path | None, typer.Option(metavar="DIR", help=_MODEL)] = None,
    engine: Engine = None,
    how: RunFlags,
    as_json: Json = False,
    trace: Annotated[Path | None, output(metavar="FILE", help="Keep the trace there.")] = None,
) -> None:
    """Solve one problem, and draw its tree of threads while it runs.

    apr solve 5 13 4 --target 32 --model runs/mini/checkpoint
    """
    posed = Problem(tuple(map(_whole, numbers)), _whole(target))
    if trace is not None:
        check_writable(trace)
    from apr import api

    inference = how.inference()
    ready = _ready(model or apr.DEMO, engine)
    console = console_of()
    done = _watch(ready, posed, inference, None if as_json else console)
    if trace is not None:
        write_traces(trace, [done])
    trained_on = ready.recipe.demonstrations.problems
    if not trained_on.covers(posed):
        typer.echo(f"note: this model was trained on {trained_on}", err=True)
    if as_json:
        typer.echo(json.dumps(api.facts(done, ready.codec)))
    else:
        draw(console, done)
    if done.error is not None:
        raise EngineError(done.error)


@run_flags
def evaluate(
    *,
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL|GRID.toml]", help=f"{_MODEL} Or a grid.")
    ] = None,
    problems: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='JSON lines, or a list, of {"numbers": [], "target": n}'),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Problems of a recipe; the model's own by default."),
    ] = None,
    split: Annotated[Split, typer.Option(help="Which part of them.")] = Split.TEST,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many; by default 500, of a file all.")
    ] = None,
    problem_seed: Annotated[int, typer.Option(help="Other seeds, other problems.")] = 0,
    engine: Engine = None,
    how: RunFlags,
    concurrency: Annotated[int, typer.Option(min=1, help="Problems at the same time.")] = 64,
    out: Annotated[
        Path | None,
        output(metavar="FILE", help="Traces; by default runs/eval/MODEL-METHOD.jsonl."),
    ] = None,
    force: Annotated[bool, output("--force", help="Replace that file.")] = False,
    as_json: Json = False,
    overrides: Overrides = None,
) -> None:
    """Solve many problems: how many are right, and what it cost.

    apr eval runs/mini/checkpoint --method apr --count 200

    --set changes the recipe whose problems --task poses:

    apr eval apr/checkpoints/six --task six --set demonstrations.problems.num_numbers=[6,6]

    With a grid, a TOML file of models, methods and budgets, all of them in turn; --out names a
    folder, by default runs/eval/GRID, and --set changes the grid. Given again, it goes on where it
    was cut off. All other settings stand in the grid.

    apr eval recipes/grid.toml --set count=50
    """
    if model is not None and model.suffix == ".toml":
        elsewhere = [problems, task, count, engine, how != RunFlags(), force, problem_seed]
        if any(elsewhere) or split is not Split.TEST or concurrency != 64:
            raise ConfigError(
                f"{model} is a grid, which says itself how to run: give only --out, --set, --json"
            )
        _evaluate_grid(model, out or Path("runs", "eval", model.stem), overrides, as_json)
        return
    if overrides and task is None:
        raise ConfigError(
            "--set changes a grid or the recipe of --task, and here is neither: give the flags "
            "themselves, or a --task"
        )
    checkpoint = model or apr.DEMO
    out = out or Path("runs", "eval", f"{name_of(checkpoint)}-{how.method}.jsonl")
    _check_output(out, force)
    if problems is not None and (task is not None or problem_seed or split is not Split.TEST):
        raise ConfigError(
            "--problems says what to solve, and --task, --split and --problem-seed do, too: give "
            "one of them"
        )
    posed = read_problems(problems)[:count] if problems is not None else []
    if problems is not None and not posed:
        raise DataError(f"{problems} holds no problem: put one on each line")
    from apr import api

    inference = how.inference()
    recipe = load_sft(task, overrides) if task is not None else None
    ready = _ready(checkpoint, engine)
    if problems is None:
        posed = api.pose(recipe or ready.recipe, split, count or 500, problem_seed)
    _note_posed(ready, posed, of_others=problems is not None)
    with _kept_as_they_end(out) as journal:
        start = time.perf_counter()
        traces = _evaluate(ready, posed, inference, concurrency, journal)
        seconds = time.perf_counter() - start
        write_traces(out, traces)
    _show(traces, out, seconds, as_json)
    if problems is not None and not as_json:
        _tell_hopeless(posed, traces)


def _check_output(out: Path, force: bool) -> None:
    if out.is_dir():
        raise StorageError(f"{out} is a folder: name a file in it by --out")
    if out.exists() and not force:
        raise StorageError(f"{out} is there: name another --out, or replace it with --force")
    check_writable(out)


def _note_posed(model: Model, posed: list[Problem], of_others: bool) -> None:
    """What of the problems makes figures mean something else than one thinks."""
    trained_on = model.recipe.demonstrations.problems
    num_foreign = sum(not trained_on.covers(p) for p in posed)
    num_known = sum(split_of(p.numbers) is Split.TRAIN for p in posed) if of_others else 0
    num_again = len(posed) - len({(tuple(sorted(p.numbers)), p.target) for p in posed})
    notes = {
        f"are of another kind: this model was trained on {trained_on}": num_foreign,
        "have numbers that such a model may have been trained with": num_known,
        "were met before: intervals take them for different ones": num_again,
    }
    for what, count in notes.items():
        if count:
            typer.echo(f"note: {count} of {len(posed)} problems {what}", err=True)


def _show(traces: list[Trace], out: Path, seconds: float, as_json: bool) -> None:
    rate = sum(t.total_tokens for t in traces) / seconds
    row = row_of(out, traces)
    if as_json:
        facts = {"wall_clock": seconds, "tokens_per_second": rate, "out": str(out)}
        typer.echo(json.dumps({**row.to_json(), **facts}))
        return
    console = console_of()
    console.print(terminal.scores([row]))
    console.print(f"{seconds:.1f} s, {rate:,.0f} tokens/s; traces in {out}", highlight=False)


def _tell_hopeless(posed: list[Problem], traces: list[Trace]) -> None:
    missed = [p for p, t in zip(posed, traces, strict=True) if not t.is_correct]
    if num_hopeless := sum(not solvable(p) for p in missed):
        console_of().print(f"without any solution: {num_hopeless} of them", highlight=False)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        what = "option" if text.startswith("-") else "whole number"
        raise ProblemError(f"{text!r} is no {what} here: see apr solve --help") from None


def _ready(model: Path, engine: str | None) -> Model:
    """A model, loaded."""
    from apr import api

    ready = api.load(model, engine)
    # Decoding makes many objects and no cycles: looking for cycles as often as by default takes a
    # fifth of the time that it takes outside of the network.
    gc.set_threshold(50_000)
    return ready


def _watch(model: Model, posed: Problem, how: Inference, console: Console | None) -> Trace:
    from apr import api

    if console is None or not console.is_terminal:
        return api.solve(model, posed, how)
    watch = terminal.Watch(model.codec)
    with Live(watch, console=console, refresh_per_second=10, transient=True):
        return api.solve(model, posed, how, watch)


@contextmanager
def _kept_as_they_end(out: Path) -> Iterator[Journal]:
    """A file beside ``out``, in which traces stand until ``out`` holds them all; a body that fails
    leaves it there."""
    journal = Journal(_free(out))
    try:
        yield journal
    except BaseException:
        with suppress(StorageError):
            journal.flush()
        if journal.num_kept:
            typer.echo(f"{journal.num_kept} traces that had ended are in {journal.path}", err=True)
        raise
    journal.path.unlink(missing_ok=True)


def _evaluate(
    model: Model, posed: list[Problem], how: Inference, concurrency: int, journal: Journal
) -> list[Trace]:
    """All traces; those that the world did not fail are in ``journal`` as soon as they end."""
    from tqdm import tqdm

    from apr import api

    num_done = num_correct = 0
    with tqdm(total=len(posed), desc="eval", disable=not sys.stderr.isatty()) as bar:

        def count(trace: Trace) -> None:
            nonlocal num_done, num_correct
            num_done, num_correct = num_done + 1, num_correct + trace.is_correct
            bar.set_postfix(accuracy=f"{num_correct / num_done:.1%}")
            bar.update()
            if trace.error is None:
                journal.append(trace)

        traces = api.evaluate(model, posed, how, concurrency, count)
    errors = [t.error for t in traces if t.error is not None]
    if errors and len(errors) == len(traces):
        raise EngineError(f"every run failed: {errors[0]}")
    if errors:
        typer.echo(f"note: {len(errors)} of {len(traces)} runs failed: {errors[0]}", err=True)
    return traces


def _free(out: Path) -> Path:
    """A name beside ``out`` for what is not all of it; what was saved before stays."""
    stem = out.name.removesuffix(".jsonl")
    more = (f"{stem}.ended-{n}.jsonl" for n in itertools.count(2))
    names = itertools.chain([f"{stem}.ended.jsonl"], more)
    return next(path for name in names if not (path := out.with_name(name)).exists())


def _evaluate_grid(path: Path, out: Path, overrides: list[str] | None, as_json: bool) -> None:
    from tqdm import tqdm

    from apr import api
    from apr.eval.cell import Cell

    planned = api.plan_grid(config.load(path, api.GridRecipe, overrides or []))
    changed = [word for override in overrides or [] for word in ("--set", override)]
    command = shlex.join(["apr", "eval", str(path), "--out", str(out), *changed])
    num_done = num_correct = 0
    total = sum(cell.count for cell, _, _ in planned)
    with tqdm(total=total, disable=not sys.stderr.isatty(), smoothing=0.05) as bar:

        def begin(cell: Cell) -> None:
            nonlocal num_done, num_correct
            num_done = num_correct = 0
            bar.set_description(f"{cell.model}, {cell.title}")

        def count(trace: Trace) -> None:
            nonlocal num_done, num_correct
            num_done, num_correct = num_done + 1, num_correct + trace.is_correct
            bar.set_postfix(accuracy=f"{num_correct / num_done:.1%}")
            bar.update()

        ran = api.run_grid(planned, out, command, begin, count)
    rows = [terminal.Row(r.cell.model, r.cell.title, r.context, r.summary) for r in ran]
    if as_json:
        typer.echo(json.dumps([row.to_json() for row in rows]))
    else:
        console = console_of()
        console.print(terminal.scores(rows))
        console.print(f"{len(rows)} cells in {out}: apr report {out} draws them", highlight=False)
    note((cell.model, frozenset(problems)) for cell, _, problems in planned)
