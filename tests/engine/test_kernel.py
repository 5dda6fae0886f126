"""Attention in C against attention in torch and against the formula written out."""

from __future__ import annotations

import random
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from apr.engine.attention import PagedKV, page_bytes
from apr.engine.kernel import CompiledKV, attention_library, compiled_page_bytes
from apr.engine.scheduler import Chunk
from apr.models.llama import Llama, LlamaConfig
from apr.models.precision import Precision
from apr.train.attention import causal_reference

PAGES = 64
LAYER = 1


def config(heads: int = 4, kv_heads: int = 2, head_dim: int = 8) -> LlamaConfig:
    return LlamaConfig(61, heads * head_dim, 64, 2, heads, kv_heads, head_dim, 512)


def compiled(
    shape: LlamaConfig, size: int, dtype: torch.dtype, precision: Precision = Precision.MODEL
) -> CompiledKV:
    library = attention_library(shape, size, dtype, precision)
    if library is None:
        pytest.skip("no C compiler here")
    return CompiledKV(library, shape, PAGES, dtype)


class Text:
    """Tokens of a sequence: their queries, keys and values, and the pages they live in."""

    def __init__(self, shape: LlamaConfig, length: int, pages: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
        self.qkv = torch.randn(length, heads, shape.head_dim, generator=generator)
        self.sequence = SimpleNamespace(pages=array("i", pages))

    def begins_like(self, other: Text, count: int) -> None:
        self.qkv[:count] = other.qkv[:count]


def family(shape: LlamaConfig, size: int) -> list[Text]:
    """Three siblings with three pages in common, two of those with a fourth, and two strangers."""
    pages = list(range(PAGES))
    random.Random(0).shuffle(pages)

    def own(count: int) -> list[int]:
        return [pages.pop() for _ in range(count)]

    shared, fourth = own(3), own(1)
    texts = [
        Text(shape, 3 * size + 2, shared + own(1), 1),
        Text(shape, 6 * size, shared + fourth + own(2), 2),
        Text(shape, 4 * size + 1, shared + fourth + own(1), 3),
        Text(shape, 1, own(1), 4),
        Text(shape, 5 * size - 1, own(5), 5),
    ]
    for text in texts[1:3]:
        text.begins_like(texts[0], 3 * size)
    texts[2].begins_like(texts[1], 4 * size)
    return texts


def attend(
    kv: CompiledKV | PagedKV, shape: LlamaConfig, chunks: list[tuple[Text, int, int]]
) -> list[Tensor]:
    """Outputs of each chunk (text, start, end), all in one step."""
    texts = {id(text.sequence): text for text, _, _ in chunks}
    order = kv.order([Chunk(text.sequence, start, end) for text, start, end in chunks])
    parts = [texts[id(c.sequence)].qkv[c.start : c.end] for c in order]
    dtype = torch.float64 if isinstance(kv, PagedKV) else kv.dtype
    h, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    q, k, v = torch.cat(parts).to(dtype).split([h, kv_heads, kv_heads], dim=1)
    out = kv.attend(order)(LAYER, q, k, v).split([c.end - c.start for c in order])
    found = {id(c.sequence): o for c, o in zip(order, out, strict=True)}
    return [found[id(text.sequence)] for text, _, _ in chunks]


def in_steps(texts: list[Text], seed: int) -> list[list[tuple[Text, int, int]]]:
    """All tokens of all texts in steps of chunks long and short; siblings wait for who is first."""
    rng = random.Random(seed)
    done = dict.fromkeys(range(len(texts)), 0)
    steps = []
    while any(done[i] < len(t.qkv) for i, t in enumerate(texts)):
        step = []
        for i, text in enumerate(texts):
            if done[i] < len(text.qkv) and rng.random() < 0.8:
                end = min(done[i] + rng.choice([1, 1, 5, 40]), len(text.qkv))
                step.append((text, done[i], end))
                done[i] = end
        if step:
            steps.append(step)
    return steps


def plain(shape: LlamaConfig, text: Text) -> Tensor:
    h, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    q, k, v = text.qkv.double().split([h, kv_heads, kv_heads], dim=1)
    return causal_reference(LAYER, q, k, v)


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize(
    "shape",
    [config(), config(4, 4, 12), config(6, 1, 32), config(2, 1, 80)],
    ids=["grouped", "odd", "one-kv", "ten-vectors"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-12)])
def test_it_is_the_formula_whatever_the_steps(
    shape: LlamaConfig, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    texts = family(shape, size)
    kv = compiled(shape, size, dtype)
    out: dict[int, list[Tensor]] = {id(t): [] for t in texts}
    for step in in_steps(texts, seed=size):
        for (text, _, _), part in zip(step, attend(kv, shape, step), strict=True):
            out[id(text)].append(part)
    for text in texts:
        got = torch.cat(out[id(text)]).double()
        torch.testing.assert_close(got, plain(shape, text), rtol=0, atol=tolerance)


# The second is what is read by other instructions: whole vectors of narrow numbers.
@pytest.mark.parametrize(
    ("shape", "size", "dtype", "tolerance"),
    [(config(), 4, torch.float64, 1e-10), (config(4, 2, 32), 16, torch.float32, 3e-6)],
    ids=["odd", "vectors"],
)
@pytest.mark.parametrize("precision", list(Precision))
def test_it_agrees_with_torch_at_every_precision(
    precision: Precision, shape: LlamaConfig, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    texts = family(shape, size)
    fast = compiled(shape, size, dtype, precision)
    slow = PagedKV(shape, PAGES, size, torch.device("cpu"), torch.float64, precision)
    error = 0.0
    for step in in_steps(texts, seed=1):
        for (text, start, end), a, b in zip(
            step, attend(fast, shape, step), attend(slow, shape, step), strict=True
        ):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance)
            error = max(error, float((a - plain(shape, text)[start:end]).abs().max()))
    bound = {Precision.MODEL: tolerance, Precision.BFLOAT16: 0.03, Precision.INT8: 0.05}[precision]
    assert error < bound
    assert precision is Precision.MODEL or error > 1e-4


def test_narrow_pages_take_less_memory() -> None:
    shape = config(head_dim=32)
    whole = page_bytes(shape, 16, torch.float32)
    for precision, share in zip(Precision, (1, 1 / 2, 1 / 4 + 1 / 32), strict=True):
        library = attention_library(shape, 16, torch.float32, precision)
        if library is None:
            pytest.skip("no C compiler here")
        assert compiled_page_bytes(library, shape) == whole * share


@pytest.mark.parametrize("size", [2, 3, 4, 6, 16])
@pytest.mark.parametrize("precision", list(Precision))
def test_who_else_is_there_changes_no_bit(precision: Precision, size: int) -> None:
    shape = config(4, 2, 32)
    texts = family(shape, size)
    kv = compiled(shape, size, torch.float32, precision)
    attend(kv, shape, [(t, 0, len(t.qkv)) for t in texts])
    last = [(t, len(t.qkv) - 1, len(t.qkv)) for t in texts]
    together = attend(kv, shape, last)
    for chunk, out in zip(last, together, strict=True):
        (alone,) = attend(kv, shape, [chunk])
        assert torch.equal(alone, out)


def test_shared_pages_are_read_once_for_all() -> None:
    shape, size = config(), 4
    texts = family(shape, size)
    kv = compiled(shape, size, torch.float32)
    chunks = kv.order([Chunk(t.sequence, len(t.qkv) - 1, len(t.qkv)) for t in texts])
    step = kv.attend(chunks)
    tiles = step.tiles[: step.plan.num_tiles + 1]
    shared = {
        frozenset(texts.index(t) for c in chunks[a:b] for t in texts if t.sequence is c.sequence): n
        for (a, n), (b, _) in zip(tiles[:-1].tolist(), tiles[1:].tolist(), strict=True)
    }
    # The two with four pages in common go through them together, rather than all three with three.
    assert shared[frozenset({1, 2})] == 4
    assert sorted(n for who, n in shared.items() if who != {1, 2}) == [0, 0, 0]


def test_a_prompt_goes_through_its_own_pages_in_tiles() -> None:
    shape, size = config(), 4
    text = Text(shape, 64, list(range(16)), 1)
    step = compiled(shape, size, torch.float32).attend([Chunk(text.sequence, 32, 64)])
    tiles = step.tiles[: step.plan.num_tiles + 1]
    assert len(tiles) <= 32 // 4
    assert np.all(tiles[:-1, 1] >= 8)


# The steeper, the more of SiLU's input lies where it is 0 or its input, to the last bit.
@pytest.mark.parametrize("steepness", [1.0, 100.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [config(), config(4, 4, 12), config(6, 1, 32), config(2, 1, 80)],
    ids=["grouped", "odd", "one-kv", "ten-vectors"],
)
def test_a_network_in_c_is_the_network(
    shape: LlamaConfig, dtype: torch.dtype, steepness: float
) -> None:
    model = Llama(shape).to(dtype)
    model.init_weights(1)
    with torch.no_grad():
        for block in model.layers:
            gate, _ = block.mlp.gate_up_proj.weight.chunk(2)  # type: ignore[union-attr]
            gate *= steepness
    kv = compiled(shape, 4, dtype)
    model.pack()
    texts = [Text(shape, 40, list(range(10)), 1), Text(shape, 3, [10], 2)]
    ids = [torch.arange(7, 7 + len(t.qkv)) for t in texts]
    with torch.inference_mode():
        plain = [model(x, torch.arange(len(x)), causal_reference) for x in ids]
    done = [0, 0]
    with torch.inference_mode():
        for ends in [(30, 0), (31, 2), (40, 3)]:  # A prompt, one of each, several of both.
            chunks = [
                Chunk(t.sequence, start, end)
                for t, start, end in zip(texts, done, ends, strict=True)
                if start < end
            ]
            rows = [(i, p) for i, end in enumerate(ends) for p in range(done[i], end)]
            got = model(
                torch.stack([ids[i][p] for i, p in rows]),
                torch.tensor([p for _, p in rows]),
                kv.attend(chunks),
            )
            want = torch.stack([plain[i][p] for i, p in rows])
            tolerance = 2e-5 if dtype is torch.float32 else 1e-12
            torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
            done = list(ends)
