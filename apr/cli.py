"""The command line: thin verbs over ``apr.api``.

What is heavy is imported inside the verbs that need it: help, grading and drawing are quick.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.live import Live
from rich.tree import Tree

import apr
from apr import config, terminal
from apr.countdown.answer import read_answers, spell
from apr.countdown.grade import grade as grade_answer
from apr.countdown.problem import Problem, Split, read_problems, solvable
from apr.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    ProblemError,
    StorageError,
)
from apr.eval.metrics import summarize
from apr.eval.posed import Problems, note_of
from apr.files import check_writable, new_file
from apr.flags import (
    Engine,
    Json,
    Minutes,
    Overrides,
    RunFlags,
    Verbs,
    Workers,
    deadline,
    output,
    run_flags,
)
from apr.trace import Trace, read_traces, write_traces

if TYPE_CHECKING:
    from apr.api import Inference, Model, Recipe
    from apr.interfaces import Codec

T = TypeVar("T")

_MODEL = "Checkpoint; the packaged demo by default."

app = typer.Typer(
    name="apr",
    cls=Verbs,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


@app.command(rich_help_panel="Reason", context_settings={"ignore_unknown_options": True})
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
    console = _console()
    solved = _watch(ready, posed, inference, None if as_json else console)
    if trace is not None:
        write_traces(trace, [solved])
    trained_on = ready.recipe.demonstrations.problems
    if not trained_on.covers(posed):
        typer.echo(f"note: this model was trained on {trained_on}", err=True)
    if as_json:
        typer.echo(json.dumps(api.facts(solved, ready.codec)))
    else:
        _draw(console, solved)
    if solved.error is not None:
        raise EngineError(solved.error)


@app.command(name="eval", rich_help_panel="Reason")
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
    if overrides:
        raise ConfigError("--set changes a grid, and this is none: give the flags themselves")
    checkpoint = model or apr.DEMO
    out = out or Path("runs", "eval", f"{_name(checkpoint)}-{how.method}.jsonl")
    if out.is_dir():
        raise StorageError(f"{out} is a folder: name a file in it by --out")
    if out.exists() and not force:
        raise StorageError(f"{out} is there: name another --out, or replace it with --force")
    check_writable(out)
    if problems is not None and task is not None:
        raise ConfigError("--problems and --task both say what to solve: give one of them")
    posed = read_problems(problems)[:count] if problems is not None else []
    if problems is not None and not posed:
        raise DataError(f"{problems} holds no problem: put one on each line")
    from apr import api

    inference = how.inference()
    recipe = _recipe(task) if task is not None else None
    ready = _ready(checkpoint, engine)
    if problems is None:
        posed = api.pose(recipe or ready.recipe, split, count or 500, problem_seed)
    trained_on = ready.recipe.demonstrations.problems
    num_foreign = sum(not trained_on.covers(p) for p in posed)
    if num_foreign:
        which = f"{num_foreign} of {len(posed)} problems are of another kind"
        typer.echo(f"note: {which}: this model was trained on {trained_on}", err=True)
    start = time.perf_counter()
    traces = _evaluate(ready, posed, inference, concurrency, out)
    seconds_all = time.perf_counter() - start
    write_traces(out, traces)
    rate = sum(t.total_tokens for t in traces) / seconds_all
    row = _row(out, traces)
    if as_json:
        facts = {"wall_clock": seconds_all, "tokens_per_second": rate, "out": str(out)}
        typer.echo(json.dumps({**row.to_json(), **facts}))
        return
    console = _console()
    console.print(terminal.scores([row]))
    console.print(f"{seconds_all:.1f} s, {rate:,.0f} tokens/s; traces in {out}", highlight=False)
    if problems is not None:
        missed = [p for p, t in zip(posed, traces, strict=True) if not _solved(t)]
        num_hopeless = sum(not solvable(p) for p in missed)
        if num_hopeless:
            console.print(f"without any solution: {num_hopeless} of them", highlight=False)


@app.command(rich_help_panel="Look")
def report(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Folder that apr eval GRID.toml filled.")
    ],
    out: Annotated[
        Path | None, output(metavar="DIR", help="By default the folder report in RESULTS.")
    ] = None,
) -> None:
    """Draw a grid's results: one page of figures and tables, beside those of the paper.

    apr report runs/eval/grid
    """
    from apr.eval.report import write_report

    page = write_report(results, out or results / "report")
    typer.echo(f"report in {page}")


@app.command(rich_help_panel="Look")
def table(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Traces of apr eval.")],
) -> None:
    """Set stored evaluations side by side, one row for each file of traces.

    apr table runs/eval/mini-apr.jsonl runs/eval/one-serial.jsonl
    """
    rows: list[terminal.Row] = []
    posed: list[tuple[str, Problems]] = []
    for file in files:
        traces = list(read_traces(file))
        rows.append(_row(file, traces))
        problems = (json.dumps(t.problem, sort_keys=True) for t in traces)
        posed.append((rows[-1].model, frozenset(problems)))
    _console().print(terminal.scores(rows))
    _note(posed)


@app.command(rich_help_panel="Look")
def trace(
    file: Annotated[Path, typer.Argument(help="Traces of apr eval, or of apr solve --trace.")],
    index: Annotated[int, typer.Option(min=0, help="Which of them, from 0.")] = 0,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Checkpoint whose tokenizer reads the tokens."),
    ] = None,
    out: Annotated[
        Path | None,
        output(metavar="FILE", help="A page (.html) or its timeline (.svg), in place of the text."),
    ] = None,
) -> None:
    """Draw stored traces: every thread, what it wrote, what it returned.

    The text is read with the tokenizer of the model that wrote it, where that is still there.

    apr solve 22 26 31 53 --target 27 --trace tree.jsonl && apr trace tree.jsonl --out tree.html
    """
    console = _console()
    if out is not None and every:
        raise ConfigError("--out draws one trace: leave out --all, and name it by --index")
    if out is not None and out.suffix not in (".html", ".svg"):
        raise ConfigError(f"{out} says not how to draw: end its name in .html or in .svg")
    chosen = read_traces(file) if every else islice(read_traces(file), index, index + 1)
    found = False
    for stored in chosen:
        found = True
        codec = _codec(stored, model)
        if out is not None:
            _save(out, stored, codec)
            continue
        _draw(console, stored, terminal.story(stored, codec) if codec else None)
        if codec is None:
            console.print(
                "  the tokenizer that reads its text is not here: see --model", style="dim"
            )
    if not found:
        if next(read_traces(file), None) is None:
            raise _empty(file)
        raise DataError(f"{file} has no trace {index}: they are counted from 0")


@app.command(rich_help_panel="Look")
def explain(
    file: Annotated[Path, typer.Argument(help="Traces of apr eval.")],
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Their checkpoint, if it has been moved.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why problems were not solved: wrong arithmetic, wrong verdicts, trees gone wrong.

    apr explain runs/eval/demo-apr.jsonl
    """
    from apr import api

    traces = list(read_traces(file))
    if not traces:
        raise _empty(file)
    found = api.explain(traces, model or Path(traces[0].meta.get("model", apr.DEMO)))
    if as_json:
        typer.echo(json.dumps({kind: one.to_json() for kind, one in found.items()}))
        return
    console = _console()
    console.print(terminal.columns({kind: one.shares() for kind, one in found.items()}))
    for cause, num in found["all"].causes.most_common():
        console.print(f"{num:5} not solved: {cause.meaning}", highlight=False)


@app.command(rich_help_panel="Look")
def grade(
    file: Annotated[Path, typer.Argument(help="JSON lines; - for standard input.")],
) -> None:
    """Check answers exactly, without a model.

    Reads lines {"numbers": [3, 5, 8], "target": 64, "answer": "(3 + 5) * 8"}, where the answer is
    an expression or a solution path, and prints {"correct": true, "reason": "correct"} for each.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read answers from {file}: {e}") from e
    # All are read before the first is graded, so that bad input prints nothing.
    for posed, answer in list(read_answers(text.split("\n"), str(file))):
        typer.echo(json.dumps(grade_answer(posed, answer)._asdict()))


@app.command(rich_help_panel="Train")
def data(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or a name such as mini.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="By default data/RECIPE.")] = None,
    workers: Workers = None,
    overrides: Overrides = None,
) -> None:
    """Let the solver write demonstrations to train on; goes on where it was cut off."""
    loaded = _recipe(recipe, overrides)
    _make_data(loaded, out or Path("data", Path(recipe).stem), workers)


@app.command(rich_help_panel="Train")
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
    loaded = _recipe(recipe, overrides)
    stem = Path(recipe).stem
    run, folder = out or Path("runs", stem), data or Path("data", stem)
    if _is_first():
        _make_data(loaded, folder, workers)
    from apr import api

    losses = api.train(loaded, run, folder, sys.stderr.isatty(), until)
    if not _is_first():
        return
    typer.echo(f"held-out loss {losses.mean:.4f} nats per token")
    for name, loss in losses.by_class.items():
        typer.echo(f"  {name} {loss:.4f}, {losses.shares[name]:.1%} of the whole")
    typer.echo(f"checkpoint in {run / 'checkpoint'}")


@app.command(rich_help_panel="Train")
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

    loaded = _load(recipe, api.RLRecipe, overrides)
    run = out or Path("runs", Path(recipe).stem)
    api.reinforce(loaded, run, sys.stderr.isatty(), until)
    if _is_first():
        typer.echo(f"checkpoint in {run / 'checkpoint'}")


@app.command(rich_help_panel="Train")
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


servers = typer.Typer(cls=Verbs, help="Real servers that run a checkpoint.")
app.add_typer(servers, name="engine", rich_help_panel="Reason")


@servers.command()
def launch(
    server: Annotated[str, typer.Argument(metavar="sglang|vllm", help="What to start.")],
    model: Annotated[Path, typer.Argument(help="Checkpoint.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    python: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Interpreter of the environment that has the server."),
    ] = None,
    log: Annotated[Path, output(metavar="FILE", help="What the server prints.")] = Path(
        "runs", "engine.log"
    ),
    flags: Annotated[
        list[str] | None, typer.Argument(help="Flags of the server's own, after --.")
    ] = None,
) -> None:
    """Start SGLang or vLLM with the flags that trees of threads want; Ctrl-C stops it.

    apr engine launch vllm runs/mini/checkpoint --python ~/vllm/bin/python
    """
    from apr.remote import Launch, Server, serve

    try:
        kind = Server(server)
    except ValueError:
        raise ConfigError(f"no server {server!r}: apr starts sglang and vllm") from None
    interpreter = python or Path(sys.executable)
    start = Launch(kind, model, interpreter, host=host, port=port, flags=tuple(flags or ()))
    serve(
        start,
        log,
        on_ready=lambda address: typer.echo(f"ready: --engine {address}"),
        on_start=lambda: typer.echo(f"starting {kind}; what it prints is in {log}", err=True),
    )


@servers.command()
def gguf(
    model: Annotated[Path, typer.Argument(help="Checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="For instance mini.gguf.")],
) -> None:
    """Write a checkpoint as llama.cpp reads it, in float32 (extra `llamacpp`).

    apr engine gguf runs/mini/checkpoint mini.gguf
    """
    from apr.models.gguf import save_gguf

    save_gguf(model, out)
    typer.echo(
        f"serve it with: llama-server --model {out}, then --engine llamacpp://127.0.0.1:8080"
    )


def main() -> None:
    """Entry point of the program ``apr``."""
    # What a terminal cannot show must not end a run; who chose another way to deal with it has it.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    app(prog_name="apr")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        what = "option" if text.startswith("-") else "whole number"
        raise ProblemError(f"{text!r} is no {what} here: see apr solve --help") from None


def _recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    from apr.api import Recipe

    return _load(name, Recipe, overrides)


def _ready(model: Path, engine: str | None) -> Model:
    """A model, loaded."""
    from apr import api

    ready = api.load(model, engine)
    # Decoding makes many objects and no cycles: looking for cycles as often as by default takes a
    # fifth of the time that it takes outside of the network.
    gc.set_threshold(50_000)
    return ready


def _load(name: str, kind: type[T], overrides: list[str] | None) -> T:
    """The recipe in a file, or that of a name, here or beside the package."""
    places = [Path("recipes"), Path(apr.__file__).parents[1] / "recipes"]
    named = [path for place in places if (path := place / f"{name}.toml").is_file()]
    path = Path(name) if Path(name).is_file() or not named else named[0]
    return config.load(path, kind, overrides or [])


def _name(checkpoint: Path) -> str:
    """What a checkpoint is called: its folder, or that of its run."""
    checkpoint = checkpoint.resolve()
    return checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name


def _console() -> Console:
    """Standard output; where it is no terminal, lines are as long as they need to be."""
    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def _watch(model: Model, posed: Problem, how: Inference, console: Console | None) -> Trace:
    from apr import api

    if console is None or not console.is_terminal:
        return api.solve(model, posed, how)
    watch = terminal.Watch(model.codec)
    with Live(watch, console=console, refresh_per_second=10, transient=True):
        return api.solve(model, posed, how, watch)


def _evaluate(
    model: Model, posed: list[Problem], how: Inference, concurrency: int, out: Path
) -> list[Trace]:
    """All traces; where the rest is cut off, those that had ended stand beside ``out``."""
    from tqdm import tqdm

    from apr import api

    done: list[Trace] = []
    num_correct = 0
    with tqdm(total=len(posed), desc="eval", disable=not sys.stderr.isatty()) as bar:

        def count(trace: Trace) -> None:
            nonlocal num_correct
            done.append(trace)
            num_correct += _solved(trace)
            bar.set_postfix(accuracy=f"{num_correct / len(done):.1%}")
            bar.update()

        try:
            traces = api.evaluate(model, posed, how, concurrency, count)
        except BaseException:
            if done:
                ended = out.with_suffix(".ended.jsonl")
                write_traces(ended, done)
                typer.echo(f"{len(done)} traces that had ended are in {ended}", err=True)
            raise
    if traces and all(t.error is not None for t in traces):
        raise EngineError(f"every run failed: {traces[0].error}")
    return traces


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
            num_done, num_correct = num_done + 1, num_correct + _solved(trace)
            bar.set_postfix(accuracy=f"{num_correct / num_done:.1%}")
            bar.update()

        ran = api.run_grid(planned, out, command, begin, count)
    rows = [terminal.Row(r.cell.model, r.cell.title, r.context, r.summary) for r in ran]
    if as_json:
        typer.echo(json.dumps([row.to_json() for row in rows]))
    else:
        console = _console()
        console.print(terminal.scores(rows))
        console.print(f"{len(rows)} cells in {out}: apr report {out} draws them", highlight=False)
    _note((cell.model, frozenset(problems)) for cell, _, problems in planned)


def _note(posed: Iterable[tuple[str, Problems]]) -> None:
    """Say so where rows side by side were posed different problems."""
    if note := note_of(posed):
        typer.echo(f"note: {note}", err=True)


def _solved(trace: Trace) -> bool:
    return trace.grade is not None and trace.grade.correct


def _empty(file: Path) -> DataError:
    return DataError(f"{file} holds no trace: name one that apr eval wrote")


def _row(file: Path, traces: list[Trace]) -> terminal.Row:
    if not traces:
        raise _empty(file)
    meta = traces[0].meta
    model = _name(Path(meta["model"])) if "model" in meta else file.stem
    return terminal.Row(model, traces[0].method, meta.get("context"), summarize(traces))


def _draw(console: Console, trace: Trace, drawn: Tree | None = None) -> None:
    fold = console.is_terminal and len(trace.threads) > console.height
    console.print(drawn or terminal.tree(trace, fold))
    console.print(terminal.verdict(trace, _answer(trace)))


def _answer(trace: Trace) -> str | None:
    """What ``trace`` claims, as people write it."""
    target = trace.problem.get("target")
    if trace.answer is None or target is None or (expression := spell(trace.answer)) is None:
        return trace.answer
    return f"{expression} = {target}" if _solved(trace) else expression


def _save(out: Path, trace: Trace, codec: Codec | None) -> None:
    """Write ``trace`` as a page or a drawing."""
    from apr import viewer

    decode = codec.decode if codec else None
    drawn = (
        viewer.svg(trace) if out.suffix == ".svg" else viewer.page(trace, decode, _answer(trace))
    )
    with new_file(out) as tmp:
        tmp.write_text(drawn, encoding="utf-8", errors="replace")
    typer.echo(f"{out}: {len(trace.threads)} threads")


def _codec(trace: Trace, model: Path | None) -> Codec | None:
    """The tokenizer that ``trace`` was written with, if it can be found."""
    from apr.data.tokenizer import HFCodec

    wanted = trace.meta.get("tokenizer")
    if model is not None:
        codec = HFCodec.load(model)
        if wanted not in (None, codec.fingerprint):
            raise CheckpointError(
                f"the trace was not written with the tokenizer in {model}: name its own model"
            )
        return codec
    for place in (Path(trace.meta.get("model", apr.DEMO)), apr.DEMO):
        if (place / "tokenizer.json").is_file():
            codec = HFCodec.load(place)
            if codec.fingerprint == wanted:
                return codec
    return None


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
