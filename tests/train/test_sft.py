from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apr.data.packing import Marks, PackedBatches, Place
from apr.data.shards import Sequences
from apr.errors import CheckpointError, OutOfTime
from apr.models.llama import Llama
from apr.train import sft
from apr.train.attention import Kernel
from apr.train.compute import Autocast, Compute
from apr.train.log import read_metrics
from apr.train.optim import Kind, OptimConfig
from apr.train.sft import Losses, SFTConfig, evaluate, token_losses, train_sft
from tests.tiny import reference_logits, tiny_config, tiny_model
from tests.train import flash_on_cpu

ROW = 16
CONFIG = SFTConfig(
    steps=8,
    rows=2,
    row_length=ROW,
    optim=OptimConfig(lr=0.01, matrix_lr=0.02, warmup=2),
    eval_every=1,
    eval_batches=2,
    save_every=3,
)
WATCHED = {"even": range(0, 40, 2), "odd": range(1, 40, 2)}


def sequences(ids: list[list[int]], loss: list[list[bool]]) -> Sequences:
    return Sequences(
        ids=np.concatenate(ids).astype(np.int32),
        loss=np.concatenate(loss).astype(np.bool_),
        offsets=np.cumsum([0, *map(len, ids)]),
    )


def counting(num_sequences: int, seed: int) -> Sequences:
    """From a number that is given on to the next ones, which are to be learnt."""
    rng = np.random.default_rng(seed)
    ids = [
        [2 + (start + i) % 10 for i in range(length)]
        for start, length in zip(
            rng.integers(0, 10, num_sequences), rng.integers(3, 9, num_sequences), strict=True
        )
    ]
    return sequences(ids, [[False, *[True] * (len(s) - 1)] for s in ids])


MARKS = Marks(spawned=18, join=19, heard=16)


def batches(data: Sequences, rows: int = 2, marks: Marks | None = MARKS) -> PackedBatches:
    return PackedBatches(data, rows, ROW, seed=0, pad_id=0, marks=marks)


def train(run: Path, config: SFTConfig = CONFIG, **options: Any) -> tuple[Llama, Losses]:
    model = Llama(tiny_config())
    model.init_weights(0)
    data, held_out = batches(counting(60, seed=1), config.rows), batches(counting(20, seed=2))
    losses = train_sft(model, data, held_out, config, run, WATCHED, progress=False, **options)
    return model, losses


@pytest.mark.parametrize("kind", list(Kind))
def test_training_learns(tmp_path: Path, kind: Kind) -> None:
    config = replace(CONFIG, steps=40, eval_every=20, optim=replace(CONFIG.optim, kind=kind))
    _, losses = train(tmp_path, config)
    metrics = read_metrics(tmp_path)
    assert [m["step"] for m in metrics] == list(range(1, 41))
    assert metrics[0]["loss"] > 3.5
    assert metrics[-1]["loss"] < 0.8
    assert [m["step"] for m in metrics if "held_out_loss" in m] == [20, 40]
    assert metrics[-1]["held_out_loss"] == losses.mean < 0.8
    assert metrics[-1]["tokens"] == sum(_num_learnt(step) for step in range(40))


def _num_learnt(step: int) -> int:
    return int((batches(counting(60, seed=1)).batch(step).targets_BT >= 0).sum())


def test_the_loss_of_a_token_is_its_cross_entropy_where_it_is_demonstrated() -> None:
    model, data = tiny_model(), counting(6, seed=3)
    batch = batches(data, rows=4).batch(0)
    losses = token_losses(model, batch).view(4, ROW)
    assert (losses[batch.targets_BT < 0] == 0).all()
    expected = 0.0
    for start, end in pairwise(data.offsets.tolist()):
        ids = torch.from_numpy(data.ids[start:end]).long()
        logprobs = reference_logits(model, ids).log_softmax(-1)
        # The first number is given; each of the others is predicted from those before it.
        expected -= logprobs[torch.arange(len(ids) - 1), ids[1:]].sum().item()
    assert losses.sum().item() == pytest.approx(expected, rel=1e-4)
    assert token_losses(model, batch).sum().item() == pytest.approx(expected, rel=1e-4)


def test_each_place_of_a_thread_is_known() -> None:
    # A prompt; a spawn, after an id; three heard; another spawn, a join.
    parent = [1, 2, 17, 3, 18, 4, 5, 16, 17, 7, 18, 19, 8]
    written = [False] + [True] * 4 + [False] * 3 + [True] * 5
    child, wrote = [9, 10, 17, 11, 18, 12, 19, 13, 14], [False, *[True] * 8]
    alone, said = [15, 2, 19, 3], [False, *[True] * 3]
    data = sequences([parent, child, alone], [written, wrote, said])
    search, spawn, join, heard = Place
    expected = {
        1: [spawn] * 4 + [search] * 3 + [heard] * 5,  # what it hears is not learnt
        9: [spawn] * 4 + [search] * 2 + [join] * 2,
        15: [search] * 2 + [join],
    }
    batch = batches(data, rows=2).batch(0)
    found = {}
    for ids, places, segments in zip(batch.ids_BT, batch.places_BT, batch.segments_BT, strict=True):
        for segment in range(int(segments.max()) + 1):
            within = segments == segment
            found[int(ids[within][0])] = places[within][:-1].tolist()
    assert {first: found.get(first) for first in expected} == expected
    unmarked = batches(data, rows=2, marks=None).batch(0).places_BT
    assert (unmarked == heard).sum() == 8
    assert (unmarked == search).sum() == 2 * ROW - 8


WHERE = {"spawn_weight": Place.SPAWN, "message_weight": Place.JOIN, "heard_weight": Place.HEARD}


@pytest.mark.parametrize("name", WHERE)
def test_what_becomes_of_the_work_can_weigh_more(tmp_path: Path, name: str) -> None:
    opens = {
        "spawn_weight": MARKS.spawned,
        "message_weight": MARKS.join,
        "heard_weight": MARKS.heard,
    }[name]
    ids = [[2 + i % 10, 3 + i % 7, opens, 5 + i % 9] for i in range(40)]
    heard = name == "heard_weight"
    data = batches(sequences(ids, [[False, True, not heard, True]] * 40))

    def losses(weight: float) -> float:
        """Of the ids in that place, after some steps."""
        model = Llama(tiny_config())
        model.init_weights(0)
        optim = replace(CONFIG.optim, clip=1e9)
        config = replace(CONFIG, steps=30, optim=optim, **{name: weight})
        train_sft(model, data, data, config, tmp_path / f"{weight}", WATCHED, progress=False)
        batch = data.batch(0)
        marked = batch.places_BT.flatten() == WHERE[name]
        return float(token_losses(model, batch)[marked].sum().detach())

    assert losses(4.0) < losses(1.0) < losses(0.0)


@pytest.mark.parametrize(("demonstrated", "counts"), [(False, False), (True, True)])
def test_what_is_not_demonstrated_is_not_learnt(demonstrated: bool, counts: bool) -> None:
    """The last id of a sequence is a target and no input, so only the loss can depend on it."""

    def loss(last: int) -> float:
        data = sequences([[5, 6, 7, last]], [[False, True, True, demonstrated]])
        return token_losses(tiny_model(), batches(data).batch(0)).sum().item()

    assert (loss(last=8) != loss(last=9)) == counts


def test_accumulation_makes_the_same_updates_as_one_larger_batch(tmp_path: Path) -> None:
    plain = replace(CONFIG, optim=replace(CONFIG.optim, kind=Kind.ADAMW))
    whole, _ = train(tmp_path / "whole", replace(plain, rows=4))
    parts, _ = train(tmp_path / "parts", replace(plain, rows=1, accumulate=4))
    pairs = zip(read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts"), strict=True)
    for one, other in list(pairs)[:5]:
        assert other == pytest.approx(one, rel=1e-4)
    torch.testing.assert_close(
        list(parts.parameters()), list(whole.parameters()), atol=1e-3, rtol=1e-3
    )


def test_a_weight_of_zero_leaves_a_token_unlearnt(tmp_path: Path) -> None:
    plain = replace(CONFIG, steps=40, eval_every=40)
    _, even = train(tmp_path / "even", plain)
    _, weighted = train(tmp_path / "weighted", plain, weights=dict.fromkeys(WATCHED["even"], 0.0))
    assert even.by_class["even"] < 1
    assert weighted.by_class["even"] > 3 * even.by_class["even"]


@pytest.mark.parametrize("held_back", [{"warmup": 10**6}, {"clip": 1e-12}])
def test_the_schedule_and_the_clip_reach_the_update(tmp_path: Path, held_back: Any) -> None:
    free = OptimConfig(kind=Kind.ADAMW, lr=0.01, warmup=1, weight_decay=0.0)
    start = Llama(tiny_config())
    start.init_weights(0)

    def moved(name: str, optim: OptimConfig) -> float:
        model, _ = train(tmp_path / name, replace(CONFIG, steps=1, optim=optim))
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        return max((after - before).abs().max().item() for after, before in pairs)

    assert moved("free", free) == pytest.approx(0.01, rel=0.1)
    assert moved("held back", replace(free, **held_back)) < 1e-5


def test_held_out_losses_are_told_by_class_of_token() -> None:
    model, held_out = tiny_model(), batches(counting(20, seed=2))
    losses = evaluate(model, held_out, 2, WATCHED)
    batch_of = [held_out.batch(i) for i in range(2)]
    every = torch.cat([token_losses(model, b) for b in batch_of])
    targets = torch.cat([b.targets_BT.flatten() for b in batch_of])
    even = (targets >= 0) & (targets % 2 == 0)
    assert losses.mean == pytest.approx(every.sum().item() / int((targets >= 0).sum()))
    assert losses.by_class["even"] == pytest.approx(every[even].mean().item())
    assert losses.shares["even"] == pytest.approx((every[even].sum() / every.sum()).item())
    assert sum(losses.shares.values()) == pytest.approx(1.0)


# --- as on a GPU ----------------------------------------------------------------------------------

CPU = torch.device("cpu")
AS_ON_CUDA = Compute(
    CPU, torch.bfloat16, Kernel.VARLEN, compiled=True, settle_every=3, prefetch=True
)


@pytest.fixture
def whole_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile as on a GPU, but for making the code of kernels; what cannot be traced fails."""
    flash_on_cpu.install()
    trace = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", trace)
    # The network asks on a CPU only, and the tracer cannot answer.
    monkeypatch.setattr(torch, "is_inference_mode_enabled", lambda: False)
    sft._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.usefixtures("whole_graphs")
def test_training_as_on_a_gpu_learns_the_same_but_for_rounding(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=40, eval_every=20)
    _, plain = train(tmp_path / "plain", config)
    torch._dynamo.utils.counters.clear()
    _, losses = train(tmp_path / "cuda", config, compute=AS_ON_CUDA)
    assert losses.mean == pytest.approx(plain.mean, abs=0.02)
    pairs = list(
        zip(read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "cuda"), strict=True)
    )
    for one, other in pairs:
        assert other.keys() == one.keys()
        assert other == pytest.approx(one, rel=0.2, abs=0.05)
    (first, as_on_cuda), *_ = pairs
    assert abs(as_on_cuda["loss"] - first["loss"]) > 2e-5, "more than rounding in float32"
    # With gradients and without; sequences are more or fewer than a power of two. A program for
    # each batch would cost a minute in the middle of a run, again and again.
    assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_half_precision_on_a_cpu_learns_the_same_but_for_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A network this small may be emulated.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    config = replace(CONFIG, steps=40, eval_every=20)
    plain, losses = train(tmp_path / "plain", config)
    half, rounded = train(tmp_path / "half", replace(config, precision=Autocast.BFLOAT16))
    assert rounded.mean == pytest.approx(losses.mean, abs=0.02)
    assert rounded.mean != losses.mean
    for one, other in zip(plain.parameters(), half.parameters(), strict=True):
        assert other.dtype is one.dtype is torch.float32


@pytest.mark.usefixtures("whole_graphs")
def test_a_compiled_network_takes_a_block_mask() -> None:
    """Without gradients, which FlexAttention has on a GPU alone."""
    held_out = batches(counting(20, seed=2))
    plain = evaluate(tiny_model(), held_out, 3, WATCHED)
    torch._dynamo.utils.counters.clear()
    flex = Compute(CPU, kernel=Kernel.FLEX, compiled=True)
    assert evaluate(tiny_model(), held_out, 3, WATCHED, flex).mean == pytest.approx(plain.mean)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_metrics_fetched_late_and_batches_made_early_change_nothing(tmp_path: Path) -> None:
    train(tmp_path / "plain")
    late = Compute(CPU, settle_every=5, prefetch=True)
    train(tmp_path / "late", compute=late)
    curves = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("plain", "late")]
    assert curves[0] == curves[1]


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", list(Kernel))
def test_training_on_a_gpu_learns(tmp_path: Path, kernel: Kernel) -> None:
    device = torch.device("cuda")
    model = Llama(replace(tiny_config(), head_dim=16))
    model.init_weights(0)
    data, held_out = batches(counting(60, seed=1)), batches(counting(20, seed=2))
    compiled = kernel in (Kernel.VARLEN, Kernel.FLEX)
    compute = Compute(device, torch.bfloat16, kernel, compiled, settle_every=10, prefetch=True)
    config = replace(CONFIG, steps=60, eval_every=30)
    losses = train_sft(
        model.to(device), data, held_out, config, tmp_path, WATCHED, False, compute=compute
    )
    assert losses.mean < 0.8
    assert [m["step"] for m in read_metrics(tmp_path)] == list(range(1, 61))


# --- time limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", [None, Compute(CPU, settle_every=5, prefetch=True)])
def test_a_run_in_pieces_is_the_run_in_one(tmp_path: Path, compute: Compute | None) -> None:
    model, losses = train(tmp_path / "straight")
    # A deadline that is over lets one step be made.
    for step in range(1, CONFIG.steps):
        with pytest.raises(OutOfTime, match=f"^out of time after step {step} of 8: "):
            train(tmp_path / "pieces", compute=compute, deadline=0.0)
        assert len(read_metrics(tmp_path / "pieces")) == step
    same_model, same_losses = train(tmp_path / "pieces", compute=compute, deadline=0.0)
    curves = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("straight", "pieces")]
    assert curves[0] == curves[1]
    assert same_losses == losses
    assert all(map(torch.equal, same_model.parameters(), model.parameters()))


# --- exact resume ---------------------------------------------------------------------------------


def _killed_in_an_evaluation(run: Path) -> None:
    """Two steps after the last state: their line is to be dropped and made again."""

    def after_eval(step: int) -> dict[str, float]:
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"further": step}

    train(run, after_eval=after_eval)


def _killed_in_a_save(run: Path) -> None:
    """Between the two moves that put the second state in the place of the first."""
    move = os.replace

    def move_or_die(source: Path, target: Path) -> None:
        if source.name == ".state.apr-new" and (run / ".state.apr-old").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        move(source, target)

    os.replace = move_or_die
    train(run, after_eval=lambda step: {"further": step})


@pytest.mark.parametrize(
    ("killed", "num_lines"), [(_killed_in_an_evaluation, 4), (_killed_in_a_save, 6)]
)
def test_a_killed_run_goes_on_to_the_same_curve_and_weights(
    tmp_path: Path, killed: Any, num_lines: int
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    model, losses = train(straight, after_eval=lambda step: {"further": step})

    process = multiprocessing.get_context("spawn").Process(target=killed, args=(resumed,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(read_metrics(resumed)) == num_lines
    same_model, same_losses = train(resumed, after_eval=lambda step: {"further": step})

    curves = [(run / "metrics.jsonl").read_bytes() for run in (straight, resumed)]
    assert curves[0] == curves[1]
    assert same_losses == losses
    assert all(map(torch.equal, same_model.parameters(), model.parameters()))


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    model, losses = train(tmp_path)
    curve = (tmp_path / "metrics.jsonl").read_bytes()
    again, same_losses = train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == curve
    assert same_losses == losses
    assert all(map(torch.equal, again.parameters(), model.parameters()))


def test_a_run_is_a_function_of_its_seed(tmp_path: Path) -> None:
    train(tmp_path / "a")
    train(tmp_path / "b")
    assert read_metrics(tmp_path / "a") == read_metrics(tmp_path / "b")


def test_a_folder_with_a_damaged_state_is_refused(tmp_path: Path) -> None:
    train(tmp_path, replace(CONFIG, steps=1))
    (tmp_path / "state" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged or of another model"):
        train(tmp_path)
