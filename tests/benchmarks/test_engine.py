"""The benchmark of the engine on work of a few seconds, and what its figures are made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import apr
from apr import api
from apr.countdown.problem import Split
from apr.engine import EmbeddedEngine, EngineConfig
from apr.engine.scheduler import Scheduler
from apr.models.checkpoint import read_config
from apr.trace import Trace
from apr.train.attention import causal_reference
from benchmarks import endurance, engine, lone, machine, overhead, parts, race, roofline, work
from benchmarks.sizes import SIZES, Sizes

SMALL = SIZES["small"]


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ceilings of little work; and the number of threads, which the benchmark sets, as before."""
    monkeypatch.setattr(machine, "_SIDE", 128)
    monkeypatch.setattr(machine, "_NUMBERS", 1 << 16)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def last_line(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_every_work_gives_figures_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "baseline.json"
    kept.write_text('{"other": {"tokens_per_second": 1}, "queue": 0}')
    flags = ["--size", "small", "--rounds", "1", "--threads", "1"]
    flags += ["--peers", "transformers,generate_batch"]
    assert engine.main([*flags, "--write", str(kept)]) == 0
    found = last_line(capsys.readouterr().out)
    peers = {"transformers", "generate_batch"} if find_spec("transformers") else set()
    assert found["reference"]["same_ids"] == dict.fromkeys({"apr"} | peers, 1.0)
    assert list(found) == list(engine.WORKS)
    assert json.loads(kept.read_text()) == {"other": {"tokens_per_second": 1}, **found}
    for name, figures in found.items():
        on = figures.pop("on")
        assert on["threads"] == 1
        assert on["matmul_gflops"] > 0
        assert "torch" in on["versions"]
        assert figures, name
        assert all(v > 0 for v in figures.values() if isinstance(v, (int, float))), name


def test_the_command_for_a_large_gpu_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--dtype", "bfloat16", "--size", "large", "--rounds", "1"]
    sizes = {**vars_of(SMALL), "num_kv_heads": 2}
    for key, value in sizes.items():
        flags += ["--set", f"{key}={value}"]
    flags += ["--peers", "", "--engine", "max_batch=64", "--variant", "page_size=32"]
    assert engine.main(["reference", "forks", *flags]) == 0
    found = last_line(capsys.readouterr().out)
    assert [figures["on"]["dtype"] for figures in found.values()] == ["bfloat16"] * 2
    assert found["reference"]["tokens_per_second"].keys() == {"apr", "apr page_size=32"}


def vars_of(sizes: Sizes) -> dict[str, int]:
    return {name: getattr(sizes, name) for name in sizes.__dataclass_fields__}


@pytest.mark.parametrize(
    "flags", [["--set", "request=3"], ["--engine", "max_bach=3"], ["--set", "requests=0"]]
)
def test_a_setting_that_is_none_is_one_sentence(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine.main(["reference", *flags]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


class Clock:
    """Stands still but for what is spent."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (race, parts):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_engines_take_turns_and_are_compared_with_the_first(clock: Clock) -> None:
    asked: list[tuple[str, int]] = []

    def make(name: str, last: int, seconds: float) -> work.Generate:
        def generate(n: int) -> list[list[int]]:
            asked.append((name, n))
            clock.spend(seconds * (100, 1, 3, 1)[n])
            return [[1, 2], [3, last]]

        return generate

    engines = {"a": make("a", 4, 1), "b": make("b", 5, 2), "c": make("c", 4, 4)}
    result = race.race(engines, rounds=3)
    assert asked == [(name, n) for n in range(4) for name in "abc"]
    assert result.same_ids == {"a": 1.0, "b": 0.5, "c": 1.0}
    assert result.tokens_per_second == {"a": 4.0, "b": 2.0, "c": 1.0}
    assert result.figures()["ratios"] == {"b": 2.0, "c": 4.0}


def test_a_trace_alone_is_beside_its_critical_path() -> None:
    assert lone.Alone(
        3.0, sequential_tokens=100, token=0.02, token_in_company=0.03
    ).ratio == pytest.approx(1.5)


def test_forks_find_their_parents_prefix_if_anything_is_shared() -> None:
    sizes = replace(SMALL, context=128)
    network = work.reference_network(sizes)
    answers = []
    for shares in (True, False):
        ours = EmbeddedEngine(network, EngineConfig(prefix_cache=shares, page_size=8))
        generate = work.forks(ours, sizes.vocabulary, sizes)
        answers.append(generate(0))
        assert generate(1) != generate(0)
        # Of what a parent saw, all is computed but the last that it sampled.
        least = 3 * sizes.parents * sizes.children * ((sizes.prefix - 1) // 8 * 8) * shares
        assert ours.scheduler.num_reused >= least
        assert shares or not ours.scheduler.num_reused
    assert answers[0] == answers[1]


def test_forks_are_run_with_the_prefix_cache_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def note(ours: EmbeddedEngine, *_: object) -> work.Generate:
        seen.append(ours.config.prefix_cache)
        return lambda n: [[1]]

    monkeypatch.setattr(work, "forks", note)
    assert engine.main(["forks", "--size", "small", "--rounds", "1"]) == 0
    assert seen == [True, False]


def test_another_checkout_is_measured_beside_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = Path(apr.__file__).parent
    shutil.copytree(package, tmp_path / "apr", ignore=shutil.ignore_patterns("checkpoints"))
    for name, this, that in [
        ("engine/sampler.py", "argmax", "argmin"),
        ("models/native.c", "logits[j] > logits[id]", "logits[j] < logits[id]"),
    ]:
        file = tmp_path / "apr" / name
        assert this in file.read_text()
        file.write_text(file.read_text().replace(this, that))
    flags = ["--size", "small", "--rounds", "1", "--peers", "", "--before", str(tmp_path)]
    assert engine.main(["reference", *flags]) == 0
    found = last_line(capsys.readouterr().out)["reference"]
    assert found["same_ids"] == {"apr": 1.0, "apr before": 0.0}
    assert found["tokens_per_second"]["apr before"] > 0


@pytest.mark.parametrize("num_kv_heads", [8, 2])
def test_the_least_number_of_operations_is_what_a_forward_pass_makes(num_kv_heads: int) -> None:
    sizes = replace(SMALL, requests=1, prompt=13, num_kv_heads=num_kv_heads)
    network = work.reference_network(sizes)
    ids = torch.arange(sizes.prompt)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden = network(ids, ids, causal_reference)
        network.logits(hidden[-1:])
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counted.items() if "bmm" not in str(op))
    attention = sum(n for op, n in counted.items() if "bmm" in str(op))
    least = roofline.parts(network, sizes, itemsize=4)
    assert least["prompts, matrix products"].gflop * 1e9 == pytest.approx(products)
    # The reference computes both halves of the scores; the least is one of them, with the middle.
    half = attention * (sizes.prompt + 1) / (2 * sizes.prompt)
    assert least["prompts, attention"].gflop * 1e9 == pytest.approx(half)
    once = least["decoding, matrix products"].gflop * 1e9 / (sizes.new - 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.logits(network(ids[:1], ids[:1], causal_reference))
    counted = counter.get_flop_counts()["Global"]
    assert once == pytest.approx(sum(n for op, n in counted.items() if "bmm" not in str(op)))


def test_a_part_takes_what_is_longer_of_computing_and_reading() -> None:
    limits = machine.Ceilings(matmul_gflops=100.0, memory_read_gbs=10.0)
    assert roofline.Part(gflop=50.0, gb=1.0).seconds(limits) == 0.5
    assert roofline.Part(gflop=50.0, gb=20.0).seconds(limits) == 2.0


def test_the_double_writes_what_the_trace_says_in_any_company() -> None:
    trees = overhead.Trees(num_threads=22)
    expected = trees.expected()
    assert len(expected.threads) == 1 + overhead.CHILDREN
    assert {len(c.ids) for t in expected.threads[1:] for c in t.calls} != {0}
    for real in (False, True):
        network = overhead.Replay(read_config(apr.DEMO), expected, real).eval()
        traces = trees.run(EmbeddedEngine(network, EngineConfig(page_size=8)))
        assert [ids_of(t) for t in traces] == [ids_of(expected)] * 2
        assert network.largest_batch == 22


def ids_of(trace: Trace) -> list[list[tuple[int, ...]]]:
    return [[c.ids for c in t.calls] for t in trace.threads]


def test_the_double_refuses_a_trace_that_it_could_not_write() -> None:
    expected = overhead.Trees(1).expected()
    call = expected.threads[1].calls[0]
    other = replace(call, ids=(call.ids[0] + 1, *call.ids[1:]))
    threads = (*expected.threads, replace(expected.threads[1], calls=(other,)))
    with pytest.raises(AssertionError, match="go on differently"):
        overhead.Replay(read_config(apr.DEMO), replace(expected, threads=threads), real=False)


def test_overhead_is_what_network_and_sampler_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    network = overhead.Replay(read_config(apr.DEMO), overhead.Trees(1).expected(), real=False)
    network.seconds = 1.0
    network.largest_batch = 1000
    seconds = {False: iter((5.0, 4.0, 30.0)), True: iter((100.0, 20.0, 40.0))}
    monkeypatch.setattr(overhead, "_run", lambda *_, real: (network, next(seconds[real]), 1000))
    monkeypatch.setattr(overhead, "_sampler_seconds", lambda _: 0.5)
    found = overhead.overhead(read_config(apr.DEMO), 1000, rounds=3)
    assert found == overhead.Overhead(3500.0, 500.0, 40000.0, 1000, 1000)
    assert found.share == pytest.approx(0.0875)


def test_a_part_stands_still_while_another_runs(clock: Clock) -> None:
    watch = parts.Clock("outside", lambda: None)
    inner = watch.timed("inner", clock.spend)

    def outer(before: float, within: float) -> None:
        clock.spend(before)
        inner(within)

    clock.spend(1)
    watch.timed("outer", outer)(2, within=4)
    clock.spend(8)
    watch.settle()
    assert watch.seconds == {"outside": 9, "outer": 2, "inner": 4}


def test_the_profile_misses_no_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine.main(["--profile", "--size", "small"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.partition("%  ")[2] for line in lines}
    rest = {"rest of the network", "scheduler, cache, asyncio"}
    assert found == {"matrix products", "attention", "sampler"} | rest
    assert all(float(line.split()[0]) >= 0 for line in lines)


def looks(*resident: float) -> list[endurance.Look]:
    return [endurance.Look(i, mib, 0, 0, 0, 0, 0) for i, mib in enumerate(resident)]


def test_memory_that_grows_is_told_from_memory_that_fills_up() -> None:
    assert not endurance.grew(looks(100, 400, 500, 500, 501, 499, 500, 502))
    assert endurance.grew(looks(100, 400, 500, 505, 510, 515, 520, 525))
    assert endurance.grew(looks(100, 110))


@pytest.mark.parametrize(("last", "code"), [(500, 0), (600, 1)])
def test_a_soak_that_grew_ends_with_1(
    last: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endurance, "soak", lambda *_: looks(500, 500, 500, last))
    assert engine.main(["--soak", "1"]) == code


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> api.Model:
    """With little memory and easy problems."""
    model = api.load()
    easy = [p for p in api.pose(model.recipe, Split.TEST, 50) if len(p.numbers) == 3]
    monkeypatch.setattr(endurance, "pose", lambda *_: easy)
    network = model.engine.model  # type: ignore[attr-defined]
    return replace(model, engine=EmbeddedEngine(network, EngineConfig(kv_gib=0.003), model.codec))


def test_a_soak_cancels_evicts_and_leaves_nothing_behind(
    small_model: api.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endurance, "_WAVE", 3)
    monkeypatch.setattr(endurance, "_LIVES", 40)
    seen: list[endurance.Look] = []
    found = endurance.soak(small_model, 1e-6, seen.append)  # One wave.
    assert found == seen
    assert found[-1].num_cancelled > 0
    assert found[-1].free_pages < found[-1].cached_pages / 4, "nothing had to go"
    assert found[-1].num_ended + found[-1].num_cancelled == 3
    assert abs(found[-1].resident_mib - machine.resident_mib()) < 200


def test_a_soak_finds_a_page_that_nobody_lets_go(
    small_model: api.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endurance, "_WAVE", 1)
    release = Scheduler._release

    def leak(self: Scheduler, sequence: object) -> None:
        self.pool.hold(sequence.pages[:1])  # type: ignore[attr-defined]
        release(self, sequence)  # type: ignore[arg-type]

    monkeypatch.setattr(Scheduler, "_release", leak)
    with pytest.raises(AssertionError):
        endurance.soak(small_model, 1e-6, lambda look: None)  # One wave: more would want pages.
