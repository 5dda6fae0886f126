"""The embedded engine against its peers and against the machine.

    python -m benchmarks.engine [WORK ...] [--rounds 3] [--threads 2] [--write FILE]

    reference   tokens per second on one static load, beside other engines that decode the same
                weights; the least time that the machine allows, part by part
    alone       one trace alone: its wall clock beside that of its critical path, token by token;
                of the checkpoint, and on a CPU replayed by the network of the reference work
    flight      many traces at the same time: tokens per second
    forks       parents with forked children, with the prefix cache and without
    overhead    what a token costs outside of network and sampler, with many threads in flight;
                on the CPU, which is where that is spent
    queue       many requests asked for at once: memory

Engines take turns, so that a noisy machine slows them all; figures are medians of the rounds. The
last line of the output is one JSON object: for each work its figures, and on what they were
measured. `--write` keeps it, beside what the file has of other works.

    python -m benchmarks.engine --soak 30        does memory grow? ends with 1 if so
    python -m benchmarks.engine --profile        where the time of the reference work goes
    python -m benchmarks.engine reference --peer vllm://host:8000
    python -m benchmarks.engine reference --before ../checkout-of-another-commit
    python -m benchmarks.engine --device cuda --dtype bfloat16 --size large

A server must serve what the work runs: the folder that `--export` writes for `reference`, and the
checkpoint of the package for the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import apr
from apr.engine import EmbeddedEngine
from apr.errors import InputError
from apr.files import new_file
from apr.interfaces import Engine
from apr.models.checkpoint import load_checkpoint, save_checkpoint
from apr.models.llama import Llama
from apr.remote import connect
from benchmarks import endurance, lone, work
from benchmarks.machine import ceilings, provenance
from benchmarks.overhead import overhead
from benchmarks.parts import where_time_goes
from benchmarks.peers import LIBRARIES, addresses, transformers
from benchmarks.race import race
from benchmarks.roofline import share
from benchmarks.setting import OURS, Setting, read_setting
from benchmarks.sizes import SIZES, Sizes

Figures = dict[str, Any]


def reference(setting: Setting) -> Figures:
    sizes = setting.sizes
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        checkpoint = Path(folder) / "reference"
        network = export(sizes, checkpoint)
        engines: dict[str, Engine] = {
            name: EmbeddedEngine(load_checkpoint(checkpoint, setting.device, setting.dtype), config)
            for name, config in setting.configs.items()
        }
        for name, address in addresses(setting.peers, checkpoint).items():
            engines[name] = connect(address)
        works = {name: work.reference(engine, sizes) for name, engine in engines.items()}
        works |= transformers(setting.peers, checkpoint, sizes, setting.device, setting.dtype)
        works |= setting.works_before("reference", checkpoint, stack)
        result = race(works, setting.rounds)
    seconds = sizes.requests * sizes.new / result.tokens_per_second[OURS]
    return {
        "parameters": network.num_parameters,
        **result.figures(),
        "roofline": share(network, sizes, setting.dtype.itemsize, setting.ceilings, seconds),
    }


def export(sizes: Sizes, folder: Path) -> Llama:
    """Write the network of the reference work as a Hugging Face folder."""
    network = work.reference_network(sizes)
    save_checkpoint(network, folder)
    return network


def alone(setting: Setting) -> Figures:
    sizes, model = setting.sizes, replace(setting.model, engine=setting.engine())
    runs = [lone.alone(model, sizes, n) for n in range(setting.rounds + 1)][1:]
    figures = _lone(runs, sizes.alone)
    if setting.device.type != "cpu":
        return figures
    shape = work.reference_shape(sizes)
    replayed = [lone.replayed(shape, setting.configs[OURS]) for _ in range(setting.rounds)]
    return {**figures, "reference network": _lone(replayed, 1)}


def _lone(runs: list[lone.Alone], num_traces: int) -> Figures:
    """Medians of rounds of so many traces."""

    def median(value: Callable[[lone.Alone], float], digits: int) -> float:
        return round(statistics.median(map(value, runs)), digits)

    return {
        "wall_over_critical_path": median(lambda run: run.ratio, 3),
        "trace_ms": median(lambda run: run.wall / num_traces * 1e3, 2),
        "token_ms": median(lambda run: run.token * 1e3, 3),
        "token_ms_beside_siblings": median(lambda run: run.token_in_company * 1e3, 3),
        "sequential_tokens": sum(run.sequential_tokens for run in runs),
    }


def flight(setting: Setting) -> Figures:
    model = setting.model
    engines: dict[str, Engine] = {
        name: setting.engine(config) for name, config in setting.configs.items()
    }
    for name, address in addresses(setting.peers, setting.checkpoint).items():
        engines[name] = connect(address, model.codec)
    works = {
        name: work.flight(replace(model, engine=engine), setting.sizes)
        for name, engine in engines.items()
    }
    with ExitStack() as stack:
        works |= setting.works_before("flight", setting.checkpoint, stack)
        return race(works, setting.rounds).figures()


def forks(setting: Setting) -> Figures:
    ours = setting.configs[OURS]
    configs = {"shared": ours, "not shared": replace(ours, prefix_cache=False)}
    works = {
        name: work.forks(setting.engine(config), setting.shape.vocab_size, setting.sizes)
        for name, config in configs.items()
    }
    return race(works, setting.rounds).figures()


def measure_overhead(setting: Setting) -> Figures:
    found = overhead(setting.shape, setting.sizes.threads, setting.rounds)
    return {
        "outside_us": round(found.outside, 2),
        "sampler_us": round(found.sampler, 2),
        "real_step_us": round(found.step, 2),
        "share": round(found.share, 4),
        "largest_batch": found.largest_batch,
        "num_tokens": found.num_tokens,
    }


def queue(setting: Setting) -> Figures:
    engine = setting.engine()
    found = endurance.queue(engine, setting.shape.vocab_size, setting.sizes.queued)
    return {
        "requests": setting.sizes.queued,
        "tokens_per_second": round(found.num_tokens / found.seconds, 1),
        "before_mib": round(found.before_mib),
        "peak_mib": round(found.peak_mib),
        "kv_gib": engine.config.kv_gib,
    }


WORKS: dict[str, Callable[[Setting], Figures]] = {
    "reference": reference,
    "alone": alone,
    "flight": flight,
    "forks": forks,
    "overhead": measure_overhead,
    "queue": queue,
}

_ON_CPU = ("overhead",)
"""Works that take the CPU whatever the others take."""


def profile(setting: Setting) -> None:
    network = work.reference_network(setting.sizes).to(setting.device, setting.dtype)
    engine = EmbeddedEngine(network, setting.configs[OURS])
    seconds = where_time_goes(engine, work.reference(engine, setting.sizes))
    for part, spent in seconds.items():
        print(f"{spent:7.3f} s {spent / sum(seconds.values()):6.1%}  {part}")


def soak(setting: Setting, minutes: float) -> bool:
    """Whether memory stayed where it was."""
    # So little that traces in flight drive each other, and what is cached, out.
    engine = setting.engine(replace(setting.configs[OURS], kv_gib=0.03))
    model = replace(setting.model, engine=engine)
    looks = endurance.soak(model, minutes, lambda look: print(look, flush=True))
    print(json.dumps({"growth": round(endurance.growth(looks), 4), **looks[-1]._asdict()}))
    return not endurance.grew(looks)


def main(argv: list[str] | None = None) -> int:
    args = _arguments().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        setting = read_setting(args)
        gc.set_threshold(50_000)  # As the command line does.
        if args.export is not None:
            export(setting.sizes, args.export)
        elif args.soak is not None:
            return 0 if soak(setting, args.soak) else 1
        elif args.profile:
            profile(setting)
        else:
            measure(setting, args.works or list(WORKS), args.write)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def measure(setting: Setting, names: list[str], file: Path | None) -> None:
    on = on_cpu = provenance(setting.device, setting.dtype, setting.ceilings)
    if setting.device.type != "cpu":
        cpu, dtype = torch.device("cpu"), torch.float32
        on_cpu = provenance(cpu, dtype, ceilings(cpu, dtype))
    results: dict[str, Figures] = {}
    for name in names:
        print(f"-- {name}")
        results[name] = {**WORKS[name](setting), "on": on_cpu if name in _ON_CPU else on}
    if file is not None:
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        with new_file(file) as tmp:
            tmp.write_text(json.dumps(kept | results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    # argparse looks for no work at all among the choices, too.
    add("works", nargs="*", metavar="WORK", choices=[*WORKS, []], help="all by default")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--size", choices=SIZES, default="reference")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change one size")
    add("--device", default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--checkpoint", type=Path, default=apr.DEMO, help="solves the problems")
    add("--peers", default=",".join(LIBRARIES), help="libraries, with commas between them; or ''")
    add("--peer", action="append", default=[], metavar="ADDRESS", help="a server")
    add("--engine", default="", metavar="KEY=VALUE,..", help="settings of the embedded engine")
    add("--variant", action="append", default=[], metavar="KEY=VALUE,..", help="others beside it")
    add("--before", type=Path, metavar="FOLDER", help="another checkout, measured beside this one")
    add("--write", type=Path, metavar="FILE", help="keep the figures")
    add("--export", type=Path, metavar="FOLDER", help="write the reference network, and end")
    add("--profile", action="store_true")
    add("--soak", type=float, metavar="MINUTES")
    return parser


if __name__ == "__main__":
    sys.exit(main())
