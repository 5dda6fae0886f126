"""Workers on one cache against a replay that keeps keys unrotated and turns them to each view."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from apr.engine import EmbeddedEngine, EngineConfig
from apr.engine.pages import PagePool
from apr.errors import ConfigError, ContextError, EngineError
from apr.hogwild import HogwildEngine
from apr.hogwild.group import Group
from apr.hogwild.views import shifts, view
from apr.interfaces import Codec, SharedEngine
from apr.models.llama import Llama
from apr.testing import ByteCodec
from apr.types import Completion, FinishReason, Sampling

PROMPT = [7, 3, 11, 52, 4]
OPENINGS = ([9, 8, 7], [], [30, 31])


@pytest.fixture(scope="module")
def exact(on_cpu: Llama) -> Llama:
    """The tables are made in float32, whose rounding a sum of two rotations shows."""
    model, config = copy.deepcopy(on_cpu), on_cpu.config
    theta = config.rope_theta ** (-torch.arange(0, config.head_dim, 2).double() / config.head_dim)
    angles = torch.arange(config.max_position_embeddings)[:, None] * theta
    angles = torch.cat([angles, angles], -1)
    model.cos, model.sin = angles.cos(), angles.sin()
    return model


def hot(max_tokens: int, count: int, **rest: object) -> list[Sampling]:
    return [Sampling(max_tokens, temperature=1.0, seed=i, **rest) for i in range(count)]


def engine_of(network: Llama, codec: Codec | None = None, **settings: Any) -> HogwildEngine:
    return HogwildEngine(EmbeddedEngine(network, EngineConfig(**settings), codec))


def together(
    engine: HogwildEngine,
    openings: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    **rest: object,
) -> list[Completion]:
    done = asyncio.run(engine.generate_together(PROMPT, openings, samplings, **rest))
    check_idle(engine)
    assert None not in done
    return [c for c in done if c is not None]


def check_idle(engine: HogwildEngine) -> None:
    engine.pool.check()
    assert engine.pool.num_free == engine.pool.num_pages
    assert not engine.running
    assert not engine.waiting


class Replay:
    """The literal version of one run, whose ids are given.

    Keys are kept as the network made them, without any rotation, by the block and the place they
    belong to. Every query meets every key of its view, both rotated to their positions in it.
    """

    def __init__(self, network: Llama, num_workers: int) -> None:
        self.network = network
        self.num_workers = num_workers
        layers = range(network.config.num_hidden_layers)
        # Of each layer and block: the prompt's under "prompt", a worker's under its number.
        self.k = [{b: [] for b in ["prompt", *range(num_workers)]} for _ in layers]
        self.v = copy.deepcopy(self.k)

    def logprobs(self, openings: Sequence[list[int]], ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each worker, the distributions from which its ids were drawn (T, V)."""
        rows: list[list[Tensor]] = [[] for _ in ids]
        fed = [("prompt", i) for i in PROMPT]
        fed += [(w, i) for w, opening in enumerate(openings) for i in opening]
        for step in range(max(map(len, ids))):
            logits = dict(zip([b for b, _ in fed], self.forward(fed), strict=True))
            for w, written in enumerate(ids):
                if step < len(written):
                    rows[w].append(logits[w] if w in logits else logits["prompt"])
            fed = [(w, written[step]) for w, written in enumerate(ids) if step < len(written)]
        return [torch.stack(row) for row in rows]

    @torch.no_grad()
    def forward(self, fed: Sequence[tuple[str | int, int]]) -> Tensor:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attend(layer, [b for b, _ in fed], q, k, v)

        # Position 0 is no rotation at all.
        places = torch.zeros(len(fed), dtype=torch.long)
        hidden = self.network(torch.tensor([i for _, i in fed]), places, attend)
        return self.network.logits(hidden).log_softmax(-1)

    def attend(
        self, layer: int, blocks: Sequence[str | int], q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        keys, values = self.k[layer], self.v[layer]
        places = []
        for block, key, value in zip(blocks, k, v, strict=True):
            places.append(len(keys[block]))
            keys[block].append(key)
            values[block].append(value)
        out = []
        for block, place, query in zip(blocks, places, q, strict=True):
            before = [] if block == "prompt" else ["prompt"]
            if block != "prompt":
                before += [w for w in range(self.num_workers) if w != block]
            seen_k = [x for b in before for x in keys[b]] + keys[block][: place + 1]
            seen_v = [x for b in before for x in values[b]] + values[block][: place + 1]
            out.append(self.meet(query, seen_k, seen_v))
        return torch.stack(out)

    def meet(self, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """One query (H, d), which stands where the last of its keys (KV, d) does."""
        turned = torch.stack([self.turn(key, p) for p, key in enumerate(keys)])
        query = self.turn(query, len(keys) - 1)
        repeat = query.shape[0] // turned.shape[1]
        heads = []
        for h, one in enumerate(query):
            weights = (turned[:, h // repeat] @ one / one.shape[0] ** 0.5).softmax(0)
            heads.append(weights @ torch.stack(values)[:, h // repeat])
        return torch.stack(heads)

    def turn(self, x: Tensor, position: int) -> Tensor:
        """Rotary position as a product of complex numbers."""
        half = x.shape[-1] // 2
        theta = self.network.config.rope_theta ** (-torch.arange(half).double() / half)
        circle = torch.polar(torch.ones(half).double(), position * theta)
        turned = torch.complex(x[..., :half], x[..., half:]) * circle
        return torch.cat([turned.real, turned.imag], -1)


def check_replay(
    network: Llama, openings: Sequence[list[int]], done: Sequence[Completion], tolerance: float
) -> None:
    replay = Replay(network, len(openings))
    ids = [c.ids for c in done]
    for completion, logprobs_TV in zip(done, replay.logprobs(openings, ids), strict=True):
        drawn = logprobs_TV.gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert list(completion.logprobs) == pytest.approx(drawn.tolist(), abs=tolerance)


@pytest.mark.parametrize("openings", [OPENINGS, ([], [], []), ([5], [6], [7], [8])])
def test_logprobs_are_those_of_keys_rotated_to_each_view(
    exact: Llama, openings: tuple[list[int], ...]
) -> None:
    done = together(engine_of(exact), openings, hot(15, len(openings)))
    assert {len(c.ids) for c in done} == {15}
    check_replay(exact, openings, done, 1e-10)


def test_who_has_ended_is_seen_by_those_who_go_on(exact: Llama) -> None:
    samplings = [Sampling(n, temperature=1.0, seed=n) for n in (3, 20, 9)]
    done = together(engine_of(exact), OPENINGS, samplings)
    assert [len(c.ids) for c in done] == [3, 20, 9]
    check_replay(exact, OPENINGS, done, 1e-10)


def test_greedy_ids_are_those_of_the_replay(exact: Llama) -> None:
    done = together(engine_of(exact), OPENINGS, [Sampling(12)] * 3)
    replay = Replay(exact, 3).logprobs(OPENINGS, [c.ids for c in done])
    assert [tuple(rows.argmax(-1).tolist()) for rows in replay] == [c.ids for c in done]


def test_float32_differs_by_rounding_only(network: Llama) -> None:
    float32 = Llama(network.config)
    float32.load_state_dict(network.state_dict())
    done = together(engine_of(float32.eval()), OPENINGS, hot(15, 3))
    check_replay(network, OPENINGS, done, 2e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_worker_is_the_ordinary_engine(exact: Llama, temperature: float) -> None:
    engine = engine_of(exact)
    sampling = Sampling(60, temperature=temperature, seed=5, stop_ids=(2,))
    alone = asyncio.run(engine.generate([*PROMPT, 9, 8], sampling))
    for opening in ([9, 8], []):
        prompt = PROMPT if opening else [*PROMPT, 9, 8]
        (done,) = asyncio.run(engine.generate_together(prompt, [opening], [sampling]))
        assert done is not None
        assert (done.ids, done.finish_reason) == (alone.ids, alone.finish_reason)
        assert done.logprobs == pytest.approx(alone.logprobs, abs=1e-10)


def test_what_another_writes_is_seen_at_the_next_token(exact: Llama) -> None:
    """Not at the token that is drawn at the same time."""

    def logprobs(seed: int) -> tuple[float, ...]:
        samplings = [Sampling(4), Sampling(4, temperature=3.0, seed=seed)]
        watched, other = together(engine_of(exact), ([5], [6]), samplings)
        others.append(other.ids[0])
        return watched.logprobs

    others: list[int] = []
    one, two = logprobs(1), logprobs(2)
    assert others[0] != others[1]
    assert one[0] == two[0]
    assert one[1] != two[1]


def test_nothing_is_computed_or_rotated_twice(
    exact: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every id goes through the network once, and what is in the cache is never written again."""
    engine = engine_of(exact)
    fed: list[int] = []
    written: list[Tensor] = []
    forward = exact.forward

    def watched(ids: Tensor, places: Tensor, attend: object) -> Tensor:
        before = engine.kv.k.clone(), engine.kv.v.clone()
        out = forward(ids, places, attend)  # type: ignore[arg-type]
        fed.extend(ids.tolist())
        for old, new in zip(before, (engine.kv.k, engine.kv.v), strict=True):
            kept = old.abs().sum(-1) > 0
            assert torch.equal(old[kept], new[kept])
        written.append((new.abs().sum(-1) > 0).sum())
        return out

    monkeypatch.setattr(exact, "forward", watched)
    done = together(engine, OPENINGS, hot(12, 3))
    assert len(fed) == len(PROMPT) + 5 + 3 * 11, "the last ids need not go through"
    assert sorted(fed) == sorted(
        [*PROMPT, *(i for o in OPENINGS for i in o), *(i for c in done for i in c.ids[:-1])]
    )
    assert int(written[-1]) == exact.config.num_hidden_layers * len(fed)


def test_a_view_is_the_prompt_the_others_and_oneself() -> None:
    assert [view(b, 4) for b in range(4)] == [[0], [0, 2, 3, 1], [0, 1, 3, 2], [0, 1, 2, 3]]
    lengths = [5, 1, 2, 4]
    assert shifts(0, lengths) == [0, 0, 0, 0]
    assert shifts(1, lengths) == [5 + 2 + 4, 0, 2 + 4, 4]
    assert shifts(2, lengths) == [5 + 1 + 4, 1 + 4, 0, 4]
    assert shifts(3, lengths) == [5 + 1 + 2, 1 + 2, 2, 0]


def requests(count: int) -> list[tuple[list[int], list[list[int]], list[Sampling]]]:
    """One to four workers each, of all lengths."""
    rng = random.Random(0)
    out = []
    for seed in range(count):
        prompt, *openings = (
            [rng.randrange(1, 61) for _ in range(rng.randrange(low, 12))]
            for low in (1, *[0] * rng.randrange(1, 5))
        )
        samplings = [
            Sampling(rng.randrange(1, 20), temperature=1.0, seed=seed + 100 * w)
            for w in range(len(openings))
        ]
        out.append((prompt, openings, samplings))
    return out


def test_a_seed_names_what_workers_write_whatever_else_runs(exact: Llama) -> None:
    asked = requests(20)
    alone = [asyncio.run(engine_of(exact).generate_together(*r)) for r in asked]
    page = 2 * 2 * 128 * 16 * 8
    crowded = (
        engine_of(exact),
        engine_of(exact, kv_gib=11 * page / 2**30),
        engine_of(exact, max_batch=5),
    )

    async def run(engine: HogwildEngine) -> list[list[Completion | None]]:
        beside = [engine.generate(prompt, Sampling(30)) for prompt, _, _ in asked]
        together = asyncio.gather(*(engine.generate_together(*r) for r in asked))
        await asyncio.gather(*beside)
        return await together

    for engine in crowded:
        for got, want in zip(asyncio.run(run(engine)), alone, strict=True):
            for one, other in zip(got, want, strict=True):
                assert one is not None
                assert other is not None
                assert one.ids == other.ids
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)
        check_idle(engine)
        engine.engine.scheduler.check()


def test_several_groups_share_each_step(exact: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, steps = engine_of(exact), 0
    forward, most = engine._forward, 0

    def counted(groups: list[Group]) -> None:
        nonlocal steps, most
        steps += 1
        most = max(most, sum(len(group.workers) for group in groups))
        forward(groups)

    monkeypatch.setattr(engine, "_forward", counted)

    async def run() -> None:
        asked = (engine.generate_together(PROMPT, [[], []], hot(40, 2)) for _ in range(10))
        await asyncio.gather(*asked)

    asyncio.run(run())
    # A newcomer's prompt for each of the ten; the rest is shared.
    assert steps <= 10 + 40 + 10
    assert most == 20
    engine, most = engine_of(exact, max_batch=7), 0
    forward = engine._forward
    monkeypatch.setattr(engine, "_forward", counted)
    asyncio.run(run())
    assert most == 6


def test_all_end_where_the_context_is_full(exact: Llama) -> None:
    engine = engine_of(exact)
    done = together(engine, OPENINGS, hot(40, 3), context=5 + 5 + 3 * 7 + 2)
    assert {(len(c.ids), c.finish_reason) for c in done} == {(7, FinishReason.LENGTH)}
    # The model's own context bounds them, too.
    done = together(engine, ([], [], [], []), hot(100, 4))
    assert [len(c.ids) for c in done] == [(128 - 5) // 4] * 4
    check_replay(exact, [[]] * 4, done, 1e-9)
    # One that has ended leaves room to the other.
    done = together(engine, ([], []), [Sampling(1), Sampling(100)], context=25)
    assert [len(c.ids) for c in done] == [1, 25 - 5 - 1]


def test_stop_ids_and_stop_strings_end_a_worker(exact: Llama) -> None:
    engine = engine_of(exact, codec=ByteCodec(specials=[], eos=None))
    first, second, third = together(engine, OPENINGS, hot(20, 3))
    text = bytes(second.ids[4:6]).decode()
    samplings = hot(20, 3)
    samplings[0] = Sampling(20, temperature=1.0, seed=0, stop_ids=(first.ids[2],))
    samplings[1] = Sampling(20, temperature=1.0, seed=1, stop_strings=(text,))
    by_id, by_text, _ = together(engine, OPENINGS, samplings)
    assert by_id.ids == first.ids[: first.ids.index(first.ids[2]) + 1]
    assert bytes(by_text.ids).decode().endswith(text)
    assert by_id.finish_reason is by_text.finish_reason is FinishReason.STOP
    assert len(third.ids) == 20


def test_tokens_and_ends_are_heard_in_order(exact: Llama) -> None:
    heard: list[tuple[int, int]] = []
    ended: list[int] = []

    def on_end(worker: int, completion: Completion) -> bool:
        assert [i for w, i in heard if w == worker] == list(completion.ids)
        ended.append(worker)
        return True

    samplings = [Sampling(n, temperature=1.0, seed=n) for n in (5, 2, 5)]
    done = together(
        engine_of(exact),
        OPENINGS,
        samplings,
        on_tokens=lambda worker, ids: heard.extend((worker, id) for id in ids),
        on_end=on_end,
    )
    assert [w for w, _ in heard] == [0, 1, 2, 0, 1, 2, 0, 2, 0, 2, 0, 2]
    assert ended == [1, 0, 2]
    assert [len(c.ids) for c in done] == [5, 2, 5]


def test_one_end_can_stop_all(exact: Llama) -> None:
    heard = [0, 0, 0, 0]

    def on_tokens(worker: int, ids: Sequence[int]) -> None:
        heard[worker] += len(ids)

    engine = engine_of(exact)
    samplings = [Sampling(n) for n in (9, 4, 2, 4)]
    done = asyncio.run(
        engine.generate_together(
            PROMPT, [[1], [2], [3], [4]], samplings, None, on_tokens, lambda worker, _: worker != 1
        )
    )
    # Who ended in the same step ended by itself.
    assert [c and len(c.ids) for c in done] == [None, 4, 2, 4]
    assert heard == [4, 4, 2, 4]
    check_idle(engine)


def test_cancelling_frees_blocks_at_once_and_nobody_else_notices(exact: Llama) -> None:
    engine = engine_of(exact)
    heard: list[int] = []
    heard_by_then: list[int] = []
    tasks: list[asyncio.Task[list[Completion | None]]] = []

    def cancel_the_other(worker: int, ids: Sequence[int]) -> None:
        if len(heard) > 6 and not heard_by_then:
            tasks[1].cancel()
            heard_by_then.extend(heard)

    async def run() -> list[Completion | None]:
        listeners = (cancel_the_other, lambda worker, ids: heard.extend(ids))
        tasks.extend(
            asyncio.create_task(
                engine.generate_together(PROMPT, OPENINGS, hot(15, 3), None, listener)
            )
            for listener in listeners
        )
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert len(engine.running) == 1
        assert engine.pool.num_pages - engine.pool.num_free == 4
        return await tasks[0]

    done = asyncio.run(run())
    alone = together(engine, OPENINGS, hot(15, 3))
    assert [c and c.ids for c in done] == [c.ids for c in alone]
    assert heard == heard_by_then, "nor does it hear the rest of that step"


@pytest.mark.parametrize("fails", ["on_tokens", "on_end"])
@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError, None])
def test_a_listener_that_gives_up_ends_its_own_request_only(
    exact: Llama, fails: str, error: type[BaseException] | None
) -> None:
    engine = engine_of(exact)
    tasks: list[asyncio.Task[Any]] = []

    def listener(worker: int, _: object) -> bool:
        if worker == 1:
            if error is None:
                tasks[0].cancel()
            else:
                raise error("listener")
        return True

    async def run() -> list[object]:
        asked = (
            engine.generate_together(PROMPT, OPENINGS, hot(4, 3), **{fails: listener}),
            engine.generate_together(PROMPT, OPENINGS, hot(4, 3)),
            engine.generate(PROMPT, Sampling(5)),
        )
        tasks.extend(map(asyncio.create_task, asked))
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

    bad, good, beside = asyncio.run(run())
    assert isinstance(bad, error or asyncio.CancelledError)
    assert isinstance(good, list)
    assert isinstance(beside, Completion)
    check_idle(engine)


def test_a_failing_network_fails_every_request_and_the_engine_lives_on(
    exact: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(exact)

    def broken(*args: object) -> None:
        raise RuntimeError("no more memory")

    async def run() -> list[object]:
        asked = [engine.generate_together(PROMPT, OPENINGS, hot(4, 3)) for _ in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(exact, "forward", broken)
        failed = asyncio.run(run())
    assert all(isinstance(e, EngineError) and "no more memory" in str(e) for e in failed)
    check_idle(engine)
    assert len(together(engine, OPENINGS, hot(4, 3))) == 3


def test_it_is_an_engine_whose_workers_share(exact: Llama) -> None:
    assert isinstance(engine_of(exact), SharedEngine)
    assert not isinstance(EmbeddedEngine(exact), SharedEngine)


def test_what_cannot_be_done_is_refused_before_it_starts(exact: Llama) -> None:
    engine = engine_of(exact)
    refused = [
        ([], [[1]], hot(4, 1), None, "prompt of at least one token"),
        ([1], [], [], None, "at least one worker"),
        ([1], [[1] * 100], hot(40, 1), None, "do not fit a context of 128"),
        ([1] * 50, [[1] * 40, [1] * 38], hot(1, 2), None, "128 tokens of prompt and openings"),
        (PROMPT, OPENINGS, hot(1, 3), 12, "in a context of 12"),
        ([1], [[61]], hot(4, 1), None, "vocabulary of 61"),
    ]
    for prompt, openings, samplings, context, words in refused:
        with pytest.raises(ContextError, match=words):
            asyncio.run(engine.generate_together(prompt, openings, samplings, context))
    with pytest.raises(ConfigError, match="codec"):
        asyncio.run(engine.generate_together([1], [[]], [Sampling(4, stop_strings=("x",))]))
    few = engine_of(exact, max_batch=2)
    with pytest.raises(ConfigError, match=r"3 workers .* which is 2"):
        asyncio.run(few.generate_together(PROMPT, OPENINGS, hot(4, 3)))
    none = engine_of(exact)
    none.pool = PagePool(0)
    with pytest.raises(ConfigError, match=r"1 workers .* which is 0"):
        asyncio.run(none.generate_together([1], [[]], hot(4, 1)))
    check_idle(engine)
