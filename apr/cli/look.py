"""Verbs that look at what has been run."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import apr
from apr import terminal
from apr.cli.flags import Json, output
from apr.cli.shown import answer_of, console_of, draw, model_of, no_trace, note, row_of
from apr.countdown.answer import read_answers
from apr.countdown.grade import grade as grade_answer
from apr.errors import CheckpointError, ConfigError, DataError
from apr.eval.posed import Problems
from apr.files import new_file
from apr.trace import Trace, read_traces

if TYPE_CHECKING:
    from apr.interfaces import Codec


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
        rows.append(row_of(file, traces))
        problems = (json.dumps(t.problem, sort_keys=True) for t in traces)
        posed.append((rows[-1].model, frozenset(problems)))
    console_of().print(terminal.scores(rows))
    note(posed)


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
    console = console_of()
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
        draw(console, stored, terminal.story(stored, codec) if codec else None)
        if codec is None:
            console.print(
                "  the tokenizer that reads its text is not here: see --model", style="dim"
            )
    if not found:
        if next(read_traces(file), None) is None:
            raise no_trace(file)
        raise DataError(f"{file} has no trace {index}: they are counted from 0")


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
        raise no_trace(file)
    found = api.explain(traces, model or model_of(traces[0]) or apr.DEMO)
    if as_json:
        typer.echo(json.dumps({kind: one.to_json() for kind, one in found.items()}))
        return
    console = console_of()
    console.print(terminal.columns({kind: one.shares() for kind, one in found.items()}))
    for cause, num in found["all"].causes.most_common():
        console.print(f"{num:5} not solved: {cause.meaning}", highlight=False)


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


def _save(out: Path, trace: Trace, codec: Codec | None) -> None:
    """Write ``trace`` as a page or a drawing."""
    from apr import viewer

    decode = codec.decode if codec else None
    drawn = (
        viewer.svg(trace) if out.suffix == ".svg" else viewer.page(trace, decode, answer_of(trace))
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
    for place in (model_of(trace) or apr.DEMO, apr.DEMO):
        if (place / "tokenizer.json").is_file():
            codec = HFCodec.load(place)
            if codec.fingerprint == wanted:
                return codec
    return None
