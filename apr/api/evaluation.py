"""Grids of evaluation: which models, methods and budgets to run, spelled out into cells."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from apr import config
from apr.api.flags import OF_SEVERAL, flags_of
from apr.api.model import load, pose, read_model_manifest
from apr.api.recipe import Inference, MethodName, Recipe
from apr.countdown.problem import Problem, Split
from apr.errors import CheckpointError, ConfigError
from apr.eval.cell import Cell, Grid
from apr.eval.grid import run_cell, write_grid
from apr.eval.metrics import Summary, summarize
from apr.eval.paper import Setting
from apr.methods.best_of_n import Chooser
from apr.models.checkpoint import MANIFEST, TOKENIZER, weight_files
from apr.trace import Trace


@dataclass(frozen=True, slots=True)
class GridModel:
    """A model of a grid."""

    name: str
    """What reports call it."""
    checkpoint: str
    stands_for: Setting | None = None
    """Row of the paper's tables that it stands beside."""
    engine: str | None = None
    """Servers that run it, as ``apr eval --engine`` takes them; by default the embedded engine."""


@dataclass(frozen=True, slots=True)
class GridEntry:
    """Models and settings, of which every combination is a cell."""

    models: tuple[str, ...]
    how: Inference = field(default_factory=Inference)
    """What all of them share."""
    temperatures: tuple[float, ...] = ()
    """By default that of ``how``."""
    children: tuple[int, ...] = ()
    """Numbers of child threads to condition on."""
    windows: tuple[int, ...] = ()
    """Context windows to condition on."""
    contexts: tuple[int, ...] = ()
    """Most tokens of a call."""
    samples: tuple[int, ...] = ()
    concurrency: int | None = None
    """By default the grid's; at 1 a problem's wall clock is its own."""
    count: int | None = None
    """Problems; by default the grid's."""

    def __post_init__(self) -> None:
        if self.how.seed is not None:
            raise ConfigError("a grid seeds its cells: set seeds of the grid, not how.seed")
        if self.samples and self.how.method not in OF_SEVERAL:
            raise ConfigError(f"{self.how.method} takes no samples: leave samples out of the entry")


@dataclass(frozen=True, slots=True)
class GridRecipe:
    """A grid: model x method x budget x temperature x seed. All cells of a model are on the same
    problems; with a ``task``, those of all models."""

    models: tuple[GridModel, ...]
    entries: tuple[GridEntry, ...]
    count: int = 300
    """Problems of the test split."""
    problem_seed: int = 0
    task: str | None = None
    """TOML file of a training recipe, whose problems are posed to all models; by default each
    model is posed those of its own recipe."""
    seeds: tuple[int, ...] = (0,)
    """Of sampling; a greedy cell has none and is run once."""
    concurrency: int = 64
    """Problems at the same time."""

    def __post_init__(self) -> None:
        names = [m.name for m in self.models]
        if len(set(names)) < len(names):
            raise ConfigError("two models of the grid have one name: give each its own")
        for entry in self.entries:
            for name in entry.models:
                if name not in names:
                    raise ConfigError(f"no model {name!r} in the grid: it has {', '.join(names)}")
        counts = [self.count, self.concurrency]
        counts += [n for e in self.entries for n in (e.count, e.concurrency) if n is not None]
        if min(counts) < 1:
            raise ConfigError("count and concurrency of a grid are at least 1")
        if not self.seeds:
            raise ConfigError("seeds of a grid is empty: give at least one")


class Planned(NamedTuple):
    """A cell and what it takes to run it."""

    cell: Cell
    how: Inference
    problems: list[Problem]


class Ran(NamedTuple):
    """What came of a cell."""

    cell: Cell
    context: int  # most tokens of a call
    summary: Summary


def plan_grid(recipe: GridRecipe) -> list[Planned]:
    """Every cell once, those of a model together.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
        ConfigError: a setting that cannot be, or that no command line spells.
    """
    planned: dict[str, Planned] = {}
    for model in recipe.models:
        known = _Known(model, recipe)
        for entry in recipe.entries:
            if model.name in entry.models:
                for how in _spelled_out(entry, recipe.seeds):
                    cell = known.plan(entry, how)
                    planned.setdefault(cell.cell.key, cell)
    return list(planned.values())


def run_grid(
    planned: Sequence[Planned],
    folder: Path,
    command: str,
    on_cell: Callable[[Cell], None] | None = None,
    on_trace: Callable[[Trace], None] | None = None,
) -> list[Ran]:
    """Fill ``folder`` with what is missing of the cells.

    Args:
        command: what runs the grid again, for the report to say.
        on_cell: called with each cell before it is run.
        on_trace: called with each trace, with those kept from before, too.

    Raises:
        ConfigError: a method asks for what its model was not trained on; nothing was run.
        EngineError: every run of a cell failed.
        StorageError: the disk is full, or the folder may not be written.
    """
    ran: list[Ran] = []
    for source, of_one in groupby(planned, _source):
        model = load(*source)
        for _, how, _ in of_one:
            model.method(how)
    write_grid(folder, Grid([p.cell for p in planned], _machine(), command))
    for source, of_one in groupby(planned, _source):
        model = load(*source)
        for cell, how, problems in of_one:
            if on_cell is not None:
                on_cell(cell)
            traces = run_cell(folder, cell, model.method(how), model.task(how), problems, on_trace)
            context = min(model.engine.context, how.limits.context or model.engine.context)
            ran.append(Ran(cell, context, summarize(traces)))
    return ran


def _source(planned: Planned) -> tuple[Path, str | None]:
    """What the model of a cell is loaded from; cells of one model stand together."""
    return Path(planned.cell.checkpoint), planned.cell.engine


class _Known:
    """What the cells of one model share."""

    def __init__(self, model: GridModel, grid: GridRecipe) -> None:
        self.model, self.grid = model, grid
        folder = Path(model.checkpoint)
        self.recipe = read_model_manifest(folder).recipe
        self.fingerprint = _fingerprint(folder)
        if grid.task is not None:
            self.recipe = config.load(Path(grid.task), Recipe)

    def plan(self, entry: GridEntry, how: Inference) -> Planned:
        count = entry.count or self.grid.count
        concurrency = entry.concurrency or self.grid.concurrency
        problems = pose(self.recipe, Split.TEST, count, self.grid.problem_seed)
        cell = Cell(
            model=self.model.name,
            stands_for=self.model.stands_for or "",
            checkpoint=self.model.checkpoint,
            engine=self.model.engine,
            fingerprint=self.fingerprint,
            method=how.kind,
            besides=how.besides,
            inference=config.to_json(how),
            problems=_digest([[p.numbers, p.target] for p in problems]),
            count=count,
            concurrency=concurrency,
            command="",
        )
        command = self._command(how, count, concurrency, cell.name)
        draws = {}
        if how.method in (MethodName.BEST_OF_N, MethodName.SELF_CONSISTENCY):
            cons = replace(how, method=MethodName.SELF_CONSISTENCY, chooser=Chooser.FIRST)
            best = replace(how, method=MethodName.BEST_OF_N, chooser=Chooser.ORACLE)
            for name, each in (("cons", cons), ("pass", best)):
                line = self._command(each, count, concurrency, f"{cell.model}-{name}-{{n}}")
                draws[name] = line.replace(f"--samples {how.samples}", "--samples {n}")
        return Planned(replace(cell, command=command, draws=draws), how, problems)

    def _command(self, how: Inference, count: int, concurrency: int, name: str) -> str:
        words = ["apr", "eval", self.model.checkpoint, *flags_of(how)]
        if self.model.engine is not None:
            words += ["--engine", self.model.engine]
        if self.grid.task is not None:
            words += ["--task", self.grid.task]
        if self.grid.problem_seed:
            words += ["--problem-seed", str(self.grid.problem_seed)]
        words += ["--count", str(count), "--concurrency", str(concurrency)]
        words += ["--out", f"runs/eval/{name}.jsonl"]
        return shlex.join(words)


def _spelled_out(entry: GridEntry, seeds: Sequence[int]) -> Iterator[Inference]:
    how = entry.how
    for temperature, children, window, context, samples, seed in product(
        entry.temperatures or (how.temperature,),
        entry.children or (how.children,),
        entry.windows or (how.window,),
        entry.contexts or (how.limits.context,),
        entry.samples or (how.samples,),
        seeds,
    ):
        yield replace(
            how,
            temperature=temperature,
            children=children,
            window=window,
            samples=samples,
            limits=replace(how.limits, context=context),
            seed=seed if temperature else None,
        )


def _machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {os.cpu_count()} cores, {gpu}, torch {torch.__version__}"


def _fingerprint(checkpoint: Path) -> str:
    """Of the weights, and of what says how to read and prompt them, wherever they lie."""
    digest = hashlib.sha256()
    named = [checkpoint / name for name in ("config.json", TOKENIZER, MANIFEST)]
    for path in [*weight_files(checkpoint), *named]:
        if not path.is_file():
            raise CheckpointError(f"no {path.name} in {checkpoint}: copy the checkpoint again")
        with path.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
