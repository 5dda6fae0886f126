from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import torch

from apr.dialects.tags import Tags
from apr.models.llama import Llama
from apr.runtime import Runtime
from apr.testing import ByteCodec, ScriptedEngine
from apr.trace import Trace
from apr.train.grpo import token_logprobs
from apr.train.reward import RewardConfig, Shape
from apr.train.rollouts import Sample, TokenBatch, rollouts_of, token_batches
from apr.types import Ids, Sampling
from tests.tiny import reference_logits, tiny_model
from tests.train.trees import FAILED, JOIN, NESTED, ROLLOUTS, SERIAL, SPAWN, judge

CPU = torch.device("cpu")
# Each trace is told apart by its weight, each thread by its advantage.
SAMPLES = [
    Sample(sequence, advantage=sequence.thread - 2.5, weight=1 / (3 + n))
    for n, trace in enumerate(ROLLOUTS)
    for sequence in trace.training_sequences()
]


def sampled_ids(batch: TokenBatch) -> list[int]:
    """Of each of the N tokens to train on."""
    return batch.ids_T[batch.before_U + 1][batch.place_N].tolist()


def sequences(batch: TokenBatch) -> list[Ids]:
    segments = batch.segments_T.tolist()
    return [
        tuple(batch.ids_T[batch.segments_T == segment].tolist())
        for segment in sorted(set(segments))
    ]


# --- rewards --------------------------------------------------------------------------------------


def test_traces_that_the_world_cut_short_are_left_out() -> None:
    rollouts = rollouts_of([FAILED, NESTED, FAILED, SERIAL], RewardConfig(), 0, judge)
    assert [r.trace for r in rollouts] == [NESTED, SERIAL]
    assert [r.reward for r in rollouts] == [1.0, 0.0]
    assert [r.own_H for r in rollouts] == [(0.0, 1.0, 0.0, 1.0), (None,)]


def test_rewards_are_those_of_the_step_and_without_a_judge_no_thread_has_its_own() -> None:
    config = RewardConfig(Shape.PARL, spawned=0.5, finished=0.0, anneal=10)
    rollouts = rollouts_of(ROLLOUTS, config, 5, None)
    assert [r.reward for r in rollouts] == pytest.approx([1.25, 0.25, 0.0])
    assert [r.own_H for r in rollouts] == [(None,) * len(t.threads) for t in ROLLOUTS]


# --- masks ----------------------------------------------------------------------------------------


def test_what_was_sampled_is_trained_on_with_the_engines_logprobs_and_nothing_else() -> None:
    (batch,) = token_batches(SAMPLES, 1000, CPU)
    columns = (batch.engine_N, batch.advantages_N, batch.weights_N)
    found = list(zip(sampled_ids(batch), *(c.tolist() for c in columns), strict=True))
    expected = [
        (id, logprob, thread.index - 2.5, 1 / (3 + n))
        for n, trace in enumerate(ROLLOUTS)
        for thread in trace.threads
        for call in thread.calls
        for id, logprob in zip(call.ids, call.logprobs, strict=False)
    ]
    assert len(found) == len(expected) == 14 + 10 + 4
    for one, other in zip(sorted(found), sorted(expected), strict=True):
        assert one == pytest.approx(other)
    # Ends of calls are trained on, what is below 10 was never sampled, and the engine gave no
    # log-probabilities of 23 and 24.
    trained = {id for id, *_ in found}
    assert trained >= {SPAWN, JOIN}
    assert not trained & {*range(10), 23, 24}


def run(script: dict[str, str], codec: ByteCodec) -> Trace:
    engine = ScriptedEngine(script, codec)
    return asyncio.run(Runtime(engine, codec, Tags(), Sampling(max_tokens=100)).run("go"))


def test_the_threads_of_a_real_run_are_trained_to_spawn_and_join_and_end_but_not_to_be_joined() -> (
    None
):
    codec = ByteCodec(bos="<|begin|>")
    spawn = "<spawn><thread>a</thread></spawn>"
    trace = run(
        {
            "go": spawn,
            "<thread>a</thread>": "<join>ü</join>",
            f"go{spawn}<joined><thread>ü</thread></joined>": "fine",
        },
        codec,
    )
    samples = [Sample(s, 1.0, 1.0) for s in trace.training_sequences()]
    (batch,) = token_batches(samples, 1000, CPU)
    ids = sampled_ids(batch)
    # The child's sequence is the shorter one.
    assert codec.decode(ids) == f"<join>ü</join>{spawn}fine<|end|>"
    assert batch.engine_N.tolist() == pytest.approx([ScriptedEngine.logprob(i) for i in ids])
    assert [codec.decode(s) for s in sequences(batch)] == [
        "<|begin|><thread>a</thread><join>ü</join>",
        f"<|begin|>go{spawn}<joined><thread>ü</thread></joined>fine<|end|>",
    ]


# --- batches --------------------------------------------------------------------------------------


def test_equal_sequences_go_through_the_network_once_and_count_each() -> None:
    """A child of NESTED and one of WIDE wrote the same, and are worth different things."""
    (batch,) = token_batches(SAMPLES, 1000, CPU)
    assert sequences(batch).count((5, 14, JOIN)) == 1
    worth = list(zip(sampled_ids(batch), batch.advantages_N.tolist(), strict=True))
    assert [a for id, a in worth if id == 14] == [-0.5, 0.5]
    assert len(sequences(batch)) == len(SAMPLES) - 1


def test_equal_ids_of_which_others_were_sampled_are_not_equal() -> None:
    """The same five ids from two calls and from one."""
    two = SAMPLES[1].sequence
    assert (two.ids_T, two.mask_T) == ((4, 13, SPAWN, 8, JOIN), (0, 1, 1, 0, 1))
    one = two._replace(mask_T=(0, 1, 1, 1, 1), logprobs_T=(0.0, -1.0, -1.0, -1.0, -1.0))
    (batch,) = token_batches([Sample(two, 1.0, 1.0), Sample(one, 2.0, 1.0)], 1000, CPU)
    assert sampled_ids(batch) == [13, SPAWN, JOIN, 13, SPAWN, 8, JOIN]
    assert batch.advantages_N.tolist() == [1.0] * 3 + [2.0] * 4


@pytest.mark.parametrize("most", [1, 3, 7, 8, 20, 1000])
def test_batches_hold_whole_sequences_up_to_the_limit(most: int) -> None:
    batches = list(token_batches(SAMPLES, most, CPU))
    cut = [sequences(batch) for batch in batches]
    for batch in cut:
        assert len(batch) == 1 or sum(map(len, batch)) <= most
    for batch, following in pairwise(cut):
        assert sum(map(len, batch)) + len(following[0]) > most
    lengths = [len(s) for batch in cut for s in batch]
    assert lengths == sorted(lengths)
    whole = {s.sequence.ids_T for s in SAMPLES}
    assert sorted(s for batch in cut for s in batch) == sorted(whole)


def test_no_samples_make_no_batch() -> None:
    assert list(token_batches([], 10, CPU)) == []


def gradients(model: Llama, most: int) -> list[torch.Tensor]:
    model.zero_grad()
    for batch in token_batches(SAMPLES, most, CPU):
        logprobs_N, _ = token_logprobs(model, batch)
        (logprobs_N * batch.advantages_N * batch.weights_N).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("most", [1, 8, 20])
def test_however_the_samples_are_cut_the_gradient_is_the_same(most: int) -> None:
    model = tiny_model().double()
    for found, expected in zip(gradients(model, most), gradients(model, 1000), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("most", [1, 1000])
def test_logprobs_and_entropies_are_those_of_each_call_by_itself(most: int) -> None:
    """Sampled logprobs depend on all that the call saw, and on nothing that is packed beside it."""
    model = tiny_model()
    expected = []
    for trace in ROLLOUTS:
        for call in (c for t in trace.threads for c in t.calls if c.logprobs):
            logits = reference_logits(model, torch.tensor(call.prompt_ids + call.ids))
            for i, id in enumerate(call.ids):
                logprobs = logits[len(call.prompt_ids) + i - 1].log_softmax(-1)
                entropy = -(logprobs.exp() * logprobs).sum()
                expected.append((id, logprobs[id].item(), entropy.item()))
    found = []
    for batch in token_batches(SAMPLES, most, CPU):
        with torch.no_grad():
            columns = token_logprobs(model, batch)
        found += zip(sampled_ids(batch), *(c.tolist() for c in columns), strict=True)
    assert len(found) == len(expected)
    for one, other in zip(sorted(found), sorted(expected), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_bfloat16_weights_give_logprobs_in_full_precision() -> None:
    batch = next(token_batches(SAMPLES, 1000, CPU))
    with torch.no_grad():
        logprobs_N, entropy_N = token_logprobs(tiny_model().to(torch.bfloat16), batch)
    assert logprobs_N.dtype == entropy_N.dtype == torch.float32
