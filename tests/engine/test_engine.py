"""The embedded engine against plain forward passes, alone and in company."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apr.engine import EmbeddedEngine, EngineConfig
from apr.engine.attention import PagedKV
from apr.engine.scheduler import Chunk
from apr.engine.sequence import sequence_of
from apr.engine.steps import StepsInC, split
from apr.errors import ConfigError, ContextError, EngineError
from apr.models import native
from apr.models.llama import Llama
from apr.models.precision import Precision
from apr.testing import ByteCodec
from apr.train.attention import causal_reference
from apr.types import Completion, FinishReason, Sampling
from tests.tiny import tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("backend")


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Some short, some long, some that begin alike."""
    rng = random.Random(seed)
    shared = [rng.randrange(1, 61) for _ in range(40)]
    out = []
    for i in range(count):
        own = [rng.randrange(1, 61) for _ in range(rng.randrange(1, 30))]
        out.append(shared[: rng.randrange(40)] + own if i % 2 else own)
    return out


def tight(network: Llama, **settings: object) -> EmbeddedEngine:
    """An engine whose memory holds only a few of the sequences asked for."""
    each = 2 * 2 * 4 * 16 * 8
    return EmbeddedEngine(network, EngineConfig(page_size=4, kv_gib=40 * each / 2**30, **settings))


def complete(
    engine: EmbeddedEngine, asked: list[list[int]], sampling: Sampling
) -> list[Completion]:
    async def run() -> list[Completion]:
        return await asyncio.gather(*(engine.generate(p, sampling) for p in asked))

    done = asyncio.run(run())
    engine.scheduler.check()
    assert not engine.scheduler.running
    return done


def plain_logits(network: Llama, ids: list[int]) -> torch.Tensor:
    device = network.embed_tokens.weight.device
    at, places = (torch.tensor(x, device=device) for x in (ids, list(range(len(ids)))))
    with torch.no_grad():
        return network.logits(network(at, places, causal_reference)).cpu()


def mean_shift(network: Llama, asked: list[list[int]], got: list[Completion]) -> float:
    """How far logprobs are from those of plain forward passes."""
    shifts = []
    for prompt, completion in zip(asked, got, strict=True):
        plain = plain_logits(network, prompt + list(completion.ids)).log_softmax(-1)
        want = plain[len(prompt) - 1 : -1].gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        shifts.append((torch.tensor(completion.logprobs) - want).abs())
    return float(torch.cat(shifts).mean())


def in_float32(network: Llama) -> Llama:
    single = Llama(network.config)
    single.load_state_dict(network.state_dict())
    return single.eval()


def greedy(network: Llama, prompt: list[int], count: int) -> list[int]:
    """Token by token, the whole prefix computed afresh each time."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(plain_logits(network, ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_greedy_ids_are_those_of_plain_forward_passes(network: Llama) -> None:
    asked = prompts(6)
    for prompt, completion in zip(
        asked, complete(EmbeddedEngine(network), asked, Sampling(20)), strict=True
    ):
        assert list(completion.ids) == greedy(network, prompt, 20)


def test_greedy_ids_do_not_depend_on_company_memory_or_cache(network: Llama) -> None:
    asked = prompts(40)
    sampling = Sampling(40)
    single = EmbeddedEngine(network, EngineConfig(prefix_cache=False))
    alone = [complete(single, [p], sampling)[0] for p in asked]
    starved, small_steps = tight(network), tight(network, max_batch_tokens=7)
    # The last token of a prompt may be all that is left to a step, or that a step has room for.
    tiny_steps = [tight(network, max_batch=4, max_batch_tokens=n) for n in (1, 4)]
    uncached = tight(network, prefix_cache=False)
    warm = EmbeddedEngine(network, EngineConfig(page_size=4))
    complete(warm, asked, sampling)
    for engine in (EmbeddedEngine(network), starved, small_steps, *tiny_steps, uncached, warm):
        got = complete(engine, asked, sampling)
        assert [c.ids for c in got] == [c.ids for c in alone]
    assert starved.scheduler.num_preempted > 0
    assert uncached.scheduler.num_preempted > 0
    assert uncached.scheduler.num_reused == 0
    assert warm.scheduler.num_reused > 500


@pytest.mark.parametrize("products", Precision)
def test_in_c_not_one_bit_depends_on_company_memory_or_cache(
    network: Llama, backend: str, products: Precision
) -> None:
    if backend != "compiled":
        pytest.skip("torch sums in another order for other shapes")
    single = in_float32(network)
    asked = prompts(30)
    how = EngineConfig(page_size=4, products=products)
    engine = EmbeddedEngine(single, replace(how, prefix_cache=False))
    alone = [complete(engine, [p], Sampling(30))[0] for p in asked]
    for other in (
        EmbeddedEngine(single, how),
        tight(single, products=products),
        tight(single, products=products, max_batch_tokens=7),
    ):
        assert complete(other, asked, Sampling(30)) == alone


def test_logprobs_are_those_of_a_plain_forward_pass(network: Llama) -> None:
    asked = prompts(8)
    for model, tolerance in ((network, 1e-10), (in_float32(network), 1e-4)):
        got = complete(EmbeddedEngine(model), asked, Sampling(30, temperature=1.0, seed=3))
        for prompt, completion in zip(asked, got, strict=True):
            logits = plain_logits(model, prompt + list(completion.ids))
            plain = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            want = plain.gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
            assert list(completion.logprobs) == pytest.approx(want.tolist(), abs=tolerance)


@pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.INT8])
def test_narrow_keys_and_values_shift_logprobs_a_little_and_alike(
    network: Llama, precision: Precision
) -> None:
    asked = prompts(8)
    narrow = EngineConfig(kv_precision=precision)
    alone = [complete(EmbeddedEngine(network, narrow), [p], Sampling(30))[0] for p in asked]
    starved = tight(network, kv_precision=precision, max_batch_tokens=7)
    for engine in (EmbeddedEngine(network, narrow), starved):
        assert [c.ids for c in complete(engine, asked, Sampling(30))] == [c.ids for c in alone]
    assert starved.scheduler.num_reused > 0
    assert 1e-4 < mean_shift(network, asked, alone) < 0.02


@pytest.mark.parametrize("products", [Precision.BFLOAT16, Precision.INT8])
def test_rounded_products_shift_logprobs_a_little(
    network: Llama, backend: str, products: Precision
) -> None:
    how = EngineConfig(products=products)
    if backend != "compiled":
        with pytest.raises(ConfigError, match="and a C compiler: leave products out"):
            EmbeddedEngine(in_float32(network), how)
        return
    with pytest.raises(ConfigError, match="take a network of float32"):
        EmbeddedEngine(network, how)
    engine = EmbeddedEngine(in_float32(network), how)
    asked = prompts(8)
    for _ in range(2):
        got = complete(engine, asked, Sampling(30))
        assert 1e-4 < mean_shift(network, asked, got) < 0.05
        engine.weights_changed()


def test_a_network_of_bfloat16_is_near_its_exact_self(network: Llama, backend: str) -> None:
    """What a GPU serves by default, with prompts that come in beside sequences that go on."""
    if backend == "compiled":
        pytest.skip("a network of bfloat16 runs in torch")
    device = network.embed_tokens.weight.device
    half = Llama(network.config).to(device, torch.bfloat16).eval()
    half.load_state_dict(network.state_dict())
    exact = in_float32(half).to(device)
    engine = EmbeddedEngine(half, EngineConfig(page_size=4, max_batch=8, max_batch_tokens=16))
    asked = prompts(24)
    got = complete(engine, asked, Sampling(30, temperature=1.0, seed=3))
    assert 0 < mean_shift(exact, asked, got) < 0.05


def test_ten_thousand_requests_wait_their_turn(network: Llama) -> None:
    """Memory is that of the pages and of the requests themselves, however many there are."""
    engine = tight(network)
    before = engine.scheduler.pool.num_pages
    asked = [[1 + n % 60, 1 + n % 7] for n in range(10_000)]
    done = complete(engine, asked, Sampling(2))
    assert all(len(c.ids) == 2 for c in done)
    assert [c.ids for c in done[:420]] == [c.ids for c in done[420:840]]
    assert engine.scheduler.pool.num_pages == before
    assert engine.scheduler.num_preempted == 0
    engine.scheduler.cache.clear()
    assert engine.scheduler.pool.num_free == before


def test_a_seed_names_a_sample_whatever_else_runs(network: Llama) -> None:
    asked = prompts(20)
    sampling = Sampling(25, temperature=1.0, top_p=0.95, seed=11)
    alone = [complete(EmbeddedEngine(network), [p], sampling)[0].ids for p in asked]
    assert [c.ids for c in complete(tight(network), asked, sampling)] == alone
    other = complete(EmbeddedEngine(network), asked, Sampling(25, temperature=1.0, seed=12))
    assert [c.ids for c in other] != alone


HOW = [
    Sampling(30),
    Sampling(30, temperature=1.0, seed=5),
    Sampling(30, temperature=0.3, top_k=7, seed=6),
    Sampling(30, temperature=2.0, top_p=0.8, seed=7),
    Sampling(30, temperature=1.5, top_k=20, top_p=0.9, seed=8, stop_ids=(3, 51)),
    Sampling(30, temperature=1.0, top_k=1, seed=9),
]


async def complete_each(engine: EmbeddedEngine, asked: list[list[int]]) -> list[Completion]:
    """Every prompt in every one of those ways, all at the same time."""
    return await asyncio.gather(*(engine.generate(p, how) for p in asked for how in HOW))


def test_c_samples_what_torch_samples(
    network: Llama, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend != "compiled":
        pytest.skip("it is what C is held against")
    asked = prompts(8)
    in_c = asyncio.run(complete_each(EmbeddedEngine(network), asked))
    monkeypatch.setenv("APR_NATIVE", "0")
    plain = asyncio.run(complete_each(EmbeddedEngine(network), asked))
    assert len({c.ids for c in plain}) == 40  # Of 48: of one id there is nothing to choose.
    assert any(len(c.ids) < 30 for c in plain)
    for a, b in zip(in_c, plain, strict=True):
        assert (a.ids, a.finish_reason) == (b.ids, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-9)


def test_c_chooses_among_many_ids_as_torch_does(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each id has a twin with the same logit, which ranks behind it."""
    if backend != "compiled":
        pytest.skip("it is what C is held against")
    network = tiny_model(tiny_config(vocab_size=3_000)).double()
    with torch.no_grad():
        network.lm_head.weight[1_500:] = network.lm_head.weight[:1_500]
    kept = [
        (0, 0.95),
        (0, 0.3),
        (50, 1.0),
        (51, 1.0),
        (1, 1.0),
        (2_999, 1.0),
        (20, 0.5),
        (3_000, 0.999),
    ]
    hows = [
        Sampling(8, temperature=t, top_k=k, top_p=p, seed=i)
        for i, (k, p) in enumerate(kept)
        for t in (0.7, 3.0)
    ]

    async def drawn() -> list[Completion]:
        engine = EmbeddedEngine(network)
        return await asyncio.gather(*(engine.generate([3, 7, 9], how) for how in hows))

    in_c = asyncio.run(drawn())
    monkeypatch.setenv("APR_NATIVE", "0")
    assert [c.ids for c in in_c] == [c.ids for c in asyncio.run(drawn())]


def test_how_many_ids_come_in_a_row_changes_nothing(network: Llama, backend: str) -> None:
    """In C not one bit; torch has no bursts, and sums in another order in a tight pool."""
    asked = prompts(8)
    engines = {
        n: EmbeddedEngine(network, EngineConfig(page_size=4, burst=n)) for n in (1, 3, 8, 100)
    }
    engines[0] = tight(network)
    got = {n: asyncio.run(complete_each(engine, asked)) for n, engine in engines.items()}
    for engine in engines.values():
        engine.scheduler.check()
        assert not engine.scheduler.running
    assert engines[0].scheduler.num_preempted > 0
    for completions in got.values():
        assert [c.ids for c in completions] == [c.ids for c in got[1]]
        assert backend != "compiled" or completions == got[1]


def test_bursts_of_parts_are_those_of_all(network: Llama, backend: str) -> None:
    """Not by one bit do they differ."""
    if backend != "compiled":
        pytest.skip("parts are of bursts, and those of C")
    asked = prompts(24 * torch.get_num_threads() + 1)
    got = []
    for num_pages in (0, 10**6):
        engine = EmbeddedEngine(network, EngineConfig(page_size=4))
        assert isinstance(engine.steps, StepsInC)
        engine.steps.pages_at_hand = num_pages
        got.append(asyncio.run(complete_each(engine, asked)))
        engine.scheduler.check()
    assert got[0] == got[1]


def test_parts_grow_while_their_pages_fit_and_shared_ones_count_once() -> None:
    def chunk(*pages: int) -> Chunk:
        sequence = sequence_of([1], Sampling(1), None)
        sequence.pages.extend(pages)
        return Chunk(sequence, 0, 1)

    async def parts(num_pages: int) -> list[int]:
        chunks = [chunk(1, 2), chunk(1, 2, 3), chunk(1, 2, 4), chunk(5, 6), chunk(5, 7)]
        found = split(chunks, 2, num_pages)
        assert [c for part in found for c in part] == chunks
        return [len(part) for part in found]

    assert asyncio.run(parts(0)) == asyncio.run(parts(5)) == [2, 2, 1]
    assert asyncio.run(parts(6)) == [4, 1]
    assert asyncio.run(parts(7)) == [5]


def heard_at_a_time(engine: EmbeddedEngine, limits: list[int]) -> list[list[int]]:
    """How many ids each request has heard, whenever there are more of them."""
    lengths: list[list[int]] = []
    heard: list[list[int]] = [[] for _ in limits]

    async def run() -> None:
        tasks = [
            asyncio.create_task(engine.generate([5, n], Sampling(limit), heard[n].extend))
            for n, limit in enumerate(limits)
        ]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            now = [len(ids) for ids in heard]
            if not lengths or now != lengths[-1]:
                lengths.append(now)

    asyncio.run(run())
    return lengths


def test_a_burst_is_over_when_somebody_may_be_waited_for(network: Llama, backend: str) -> None:
    if backend != "compiled":
        pytest.skip("bursts are of C")
    engine = EmbeddedEngine(network, EngineConfig(burst=16))
    lengths = heard_at_a_time(engine, [6, 60])
    assert lengths == [[0, 0], [6, 6], [6, 22], [6, 38], [6, 54], [6, 60]]


@pytest.mark.parametrize(("num_parameters", "burst"), [(10**8, 12), (4 * 10**8, 3), (10**10, 1)])
def test_the_larger_the_network_the_sooner_a_burst_is_heard(
    network: Llama, backend: str, num_parameters: int, burst: int
) -> None:
    """One row waits for the weights as long as several do."""
    if backend != "compiled":
        pytest.skip("bursts are of C")
    engine = EmbeddedEngine(network)
    assert isinstance(engine.steps, StepsInC)
    engine.steps.num_parameters = num_parameters
    assert heard_at_a_time(engine, [30])[1:3] == [[burst], [2 * burst]]


def test_a_parent_that_goes_on_does_not_compute_its_prefix_again(network: Llama) -> None:
    engine = EmbeddedEngine(network, EngineConfig(page_size=4))
    prompt = prompts(1)[0]
    (first,) = complete(engine, [prompt], Sampling(30))
    before = engine.scheduler.num_reused
    resumed = prompt + list(first.ids) + [5, 6]
    complete(engine, [resumed], Sampling(1))
    reused = engine.scheduler.num_reused - before
    # All but the last id sampled, which never went through the network, in full pages.
    assert reused == (len(prompt) + 29) // 4 * 4


def test_stop_ids_and_stop_strings_end_a_completion_and_are_kept(network: Llama) -> None:
    prompt = prompts(1)[0]
    want = greedy(network, prompt, 12)
    engine = EmbeddedEngine(network, codec=ByteCodec(specials=[], eos=None))
    stop = want[5]
    cut = want[: want.index(stop) + 1]
    (by_id,) = complete(engine, [prompt], Sampling(12, stop_ids=(stop,)))
    assert list(by_id.ids) == cut
    assert by_id.finish_reason is FinishReason.STOP
    text = bytes(want[4:6]).decode()
    (by_text,) = complete(engine, [prompt], Sampling(12, stop_strings=(text,)))
    assert bytes(by_text.ids).decode().endswith(text)
    assert by_text.finish_reason is FinishReason.STOP
    (to_the_end,) = complete(engine, [prompt], Sampling(12))
    assert to_the_end.finish_reason is FinishReason.LENGTH
    assert list(to_the_end.ids) == want


def test_tokens_are_heard_as_they_are_sampled(network: Llama) -> None:
    heard: list[int] = []
    engine = EmbeddedEngine(network)
    done = asyncio.run(engine.generate([1, 2, 3], Sampling(9), heard.extend))
    assert tuple(heard) == done.ids


def test_cancelling_frees_pages_at_once_and_nobody_else_notices(network: Llama) -> None:
    asked = prompts(6)
    engine = EmbeddedEngine(network, EngineConfig(page_size=4, burst=2, prefix_cache=False))

    async def run() -> list[Completion]:
        tasks = [asyncio.create_task(engine.generate(p, Sampling(40))) for p in asked]
        for _ in range(10):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks[::2])
        engine.scheduler.check()
        assert len(engine.scheduler.running) == 3
        return await asyncio.gather(*tasks[1::2])

    got = asyncio.run(run())
    assert [list(c.ids) for c in got] == [greedy(network, p, 40) for p in asked[1::2]]
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_pages


def test_one_cancelled_in_the_step_that_would_end_it_harms_nobody(network: Llama) -> None:
    """A sibling's success cancels just like this: between one sampled id and the next."""
    engine = EmbeddedEngine(network)
    tasks: list[asyncio.Task[Completion]] = []
    heard: list[int] = []

    def cancel_the_other(ids: Sequence[int]) -> None:
        heard.extend(ids)
        if len(heard) == 3:
            tasks[1].cancel()

    async def run() -> list[object]:
        listeners = (cancel_the_other, None, None)
        tasks.extend(
            asyncio.create_task(engine.generate([1, 2, n], Sampling(3), listener))
            for n, listener in enumerate(listeners)
        )
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, cancelled, third = asyncio.run(run())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(first, Completion)
    assert isinstance(third, Completion)
    engine.scheduler.check()
    assert not engine.scheduler.running


# Each has a program of its own in C, and a packed copy of the weights.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_changed_weights_are_never_met_again(dtype: torch.dtype) -> None:
    def fresh(seed: int) -> Llama:
        model = Llama(config)
        model.init_weights(seed)
        model.lm_head.weight.data.mul_(50)
        return model.to(dtype).eval()

    config = _config()
    trained, prompt = fresh(1), prompts(1, seed=4)[0] * 2
    engine = EmbeddedEngine(trained, EngineConfig(page_size=4))
    complete(engine, [prompt], Sampling(10))
    trained.load_state_dict(fresh(2).state_dict())
    engine.weights_changed()
    (got,) = complete(engine, [prompt], Sampling(10))
    assert list(got.ids) == greedy(fresh(2), prompt, 10)


def test_what_cannot_be_done_is_refused_before_it_starts(network: Llama) -> None:
    engine = EmbeddedEngine(network)
    refused = [
        ([], Sampling(4), "empty"),
        ([1] * 100, Sampling(40), "do not fit a context of 128"),
        ([1], Sampling(0), "do not fit"),
        ([1, 61], Sampling(4), "vocabulary of 61"),
    ]
    for prompt, sampling, words in refused:
        with pytest.raises(ContextError, match=words):
            asyncio.run(engine.generate(prompt, sampling))
    for sampling in (Sampling(4, float("nan")), Sampling(4, 1.0, top_p=0.0), Sampling(4, top_k=-5)):
        with pytest.raises(ConfigError, match="temperature and top_k are 0 or more"):
            asyncio.run(engine.generate([1], sampling))
    with pytest.raises(ConfigError, match="codec"):
        asyncio.run(engine.generate([1], Sampling(4, stop_strings=("x",))))
    with pytest.raises(ConfigError, match="does not hold one page"):
        EmbeddedEngine(network, EngineConfig(kv_gib=1e-9))
    assert not engine.scheduler.waiting


def test_a_context_larger_than_memory_is_cut_to_it(network: Llama) -> None:
    engine = EmbeddedEngine(network, EngineConfig(page_size=4, kv_gib=10 * 2048 / 2**30))
    assert engine.context == 40
    (done,) = complete(engine, [[1] * 10], Sampling(30))
    assert len(done.ids) == 30


def test_a_failing_network_fails_every_request_and_the_engine_lives_on(
    network: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EmbeddedEngine(network)

    def broken(*args: object) -> None:
        raise RuntimeError("no more memory")

    async def run() -> list[object]:
        asked = [engine.generate(p, Sampling(5)) for p in prompts(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(network, "forward", broken)
        if network.compiled is not None:
            patch.setattr(network.compiled, "decode", broken)
        failed = asyncio.run(run())
    assert all(isinstance(e, EngineError) and "no more memory" in str(e) for e in failed)
    engine.scheduler.check()
    assert len(complete(engine, prompts(3), Sampling(5))) == 3


@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError, None])
@pytest.mark.parametrize("cancels", [False, True])
def test_a_listener_that_gives_up_ends_its_own_request_only(
    network: Llama, cancels: bool, error: type[BaseException] | None
) -> None:
    engine = EmbeddedEngine(network)
    tasks: list[asyncio.Task[Completion]] = []

    def listener(ids: Sequence[int]) -> None:
        if cancels:
            tasks[0].cancel()
        if error is not None:
            raise error("listener")

    async def run() -> list[object]:
        # All of its ids come in one row: it hears of the last, too.
        tasks.append(asyncio.create_task(engine.generate([1, 2], Sampling(5), listener)))
        tasks.append(asyncio.create_task(engine.generate([3, 4], Sampling(5))))
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

    given_up, good = asyncio.run(run())
    assert isinstance(given_up, asyncio.CancelledError if cancels else error or Completion)
    assert isinstance(good, Completion)
    engine.scheduler.check()
    assert not engine.scheduler.running


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_nobody_is_left_waiting_by_whoever_cancels_everything(network: Llama, steps: int) -> None:
    engine = EmbeddedEngine(network, EngineConfig(burst=1))

    async def run() -> Completion:
        asked = asyncio.create_task(engine.generate([1, 2], Sampling(60)))
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asked, asyncio.current_task()}:
            task.cancel()
        return await asyncio.wait_for(asked, 30)

    with pytest.raises(EngineError, match="CancelledError"):
        asyncio.run(run())
    assert len(complete(engine, prompts(2), Sampling(5))) == 2


def test_one_event_loop_at_a_time_is_served(network: Llama) -> None:
    engine = EmbeddedEngine(network, EngineConfig(burst=1))
    at_work, refused = threading.Event(), threading.Event()

    def listener(ids: Sequence[int]) -> None:
        at_work.set()
        assert refused.wait(30)

    def other() -> None:
        assert at_work.wait(30)
        with pytest.raises(EngineError, match="in another thread's event loop"):
            complete(engine, [[3, 4]], Sampling(5))
        refused.set()

    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(other)
        done = asyncio.run(engine.generate([1, 2], Sampling(5), listener))
        told.result()
    assert list(done.ids) == greedy(network, [1, 2], 5)
    assert not engine.scheduler.waiting
    assert len(complete(engine, [[3, 4]], Sampling(5))) == 1, "its turn has come"


def test_ids_may_be_integers_of_any_kind(network: Llama, backend: str) -> None:
    engine = EmbeddedEngine(network)
    prompt = prompts(1)[0]
    want = greedy(network, prompt, 6)
    for kind in (np.int16, np.uint8, np.int64):
        (done,) = complete(engine, [list(np.array(prompt, kind))], Sampling(6))
        assert list(done.ids) == want
    with pytest.raises(TypeError):
        complete(engine, [[float(id) for id in prompt]], Sampling(6))


def test_numbers_beyond_the_vocabulary_mean_all_of_it_or_nothing(
    network: Llama, backend: str
) -> None:
    engine = EmbeddedEngine(network)
    prompt = prompts(1)[0]
    sampling = Sampling(8, temperature=1.0, seed=3)
    beyond = replace(sampling, top_k=2**63, stop_ids=(2**63, 99))
    assert complete(engine, [prompt], beyond) == complete(engine, [prompt], sampling)


def test_a_network_is_packed_for_one_kind_of_products() -> None:
    model = Llama(_config())
    model.init_weights(1)
    exact, asked = EmbeddedEngine(model.eval()), prompts(1)
    before = complete(exact, asked, Sampling(8))
    for precision in (Precision.INT8, Precision.BFLOAT16):
        with pytest.raises(ConfigError, match=r"load it once more|and a C compiler"):
            EmbeddedEngine(model, EngineConfig(products=precision))
    assert complete(exact, asked, Sampling(8)) == before
    assert complete(EmbeddedEngine(model), asked, Sampling(8)) == before


@pytest.mark.parametrize("missing", ["native", "attention"])
def test_what_cannot_be_compiled_in_full_runs_in_torch(
    network: Llama, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    there = native.library

    def library(source: Path, *args: Any, **defines: int) -> object:
        return None if source.stem == missing else there(source, *args, **defines)

    monkeypatch.setattr(native, "library", library)
    engine = EmbeddedEngine(network)
    assert isinstance(engine.kv, PagedKV)
    (done,) = complete(engine, prompts(1), Sampling(6))
    assert list(done.ids) == greedy(network, prompts(1)[0], 6)


def _config():
    from apr.models.llama import LlamaConfig

    return LlamaConfig(61, 32, 64, 2, 4, 2, 8, 128, eos_token_id=0)
