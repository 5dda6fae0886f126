from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apr.models.llama import Llama
from apr.train.attention import Kernel, causal_reference, kernel_of, packed_attention
from apr.train.causal import causal, causal_library
from tests.tiny import reference_logits, tiny_config, tiny_model
from tests.train import flash_on_cpu

MODELS = {kv: tiny_model(tiny_config(num_kv_heads=kv)) for kv in (1, 2, 4)}
ROW = 12
EVERYWHERE = [Kernel.PADDED, Kernel.C, Kernel.VARLEN]
flash_on_cpu.install()


@torch.no_grad()
def packed_logits(
    model: Llama, rows: list[list[torch.Tensor]], kernel: Kernel | None = None
) -> list[list[torch.Tensor]]:
    """Logits of each sequence, packed into rows of ROW tokens, the rest of a row padded."""
    ids, positions = torch.zeros(2, len(rows), ROW, dtype=torch.int64)
    segments = torch.full((len(rows), ROW), -1)
    for r, row in enumerate(rows):
        start = 0
        for n, sequence in enumerate(row):
            here = slice(start, start + len(sequence))
            ids[r, here], positions[r, here] = sequence, torch.arange(len(sequence))
            segments[r, here] = n
            start = here.stop
    attend = packed_attention(segments, kernel=kernel)
    logits = model.logits(model(ids.flatten(), positions.flatten(), attend))
    assert logits.isfinite().all()
    by_row = logits.view(len(rows), ROW, -1)
    return [[by_row[r][segments[r] == n] for n in range(len(row))] for r, row in enumerate(rows)]


sequences = st.lists(st.integers(0, 39), min_size=1, max_size=ROW).map(torch.tensor)
rows_of_sequences = st.lists(
    st.lists(sequences, max_size=4).filter(lambda row: sum(map(len, row)) <= ROW),
    min_size=1,
    max_size=3,
)


@given(rows_of_sequences, st.sampled_from([1, 2, 4]), st.sampled_from(EVERYWHERE))
def test_packed_sequences_have_the_logits_they_have_alone(
    rows: list[list[torch.Tensor]], num_kv_heads: int, kernel: Kernel
) -> None:
    model = MODELS[num_kv_heads]
    for row, found in zip(rows, packed_logits(model, rows, kernel), strict=True):
        for sequence, logits in zip(row, found, strict=True):
            expected = reference_logits(model, sequence)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_the_block_mask_hides_what_is_to_be_hidden(num_kv_heads: int) -> None:
    """One shape of rows only: whatever runs FlexAttention compiles for each anew."""
    model, rows = MODELS[num_kv_heads], [[torch.arange(5), torch.arange(7)], [torch.arange(9)]]
    for row, found in zip(rows, packed_logits(model, rows, Kernel.FLEX), strict=True):
        for sequence, logits in zip(row, found, strict=True):
            expected = reference_logits(model, sequence)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, -1, -1], [0, 1, 1, 2, 2, 2, 2, 2, 2, -1]])


def gradients(segments: torch.Tensor, kernel: Kernel, device: str, dtype: torch.dtype) -> list[Any]:
    """Output of the real tokens, and what a loss over them leaves on queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    heads = [
        torch.randn(segments.numel(), num, 16, generator=generator).to(device, dtype)
        for num in (4, 2, 2, 4)
    ]
    q, k, v = (x.requires_grad_() for x in heads[:3])
    real = (segments.flatten() >= 0).to(device)
    attend = packed_attention(segments, torch.device(device), kernel)
    run = torch.compile(attend.__call__) if kernel is Kernel.FLEX else attend
    out = run(0, q, k, v)
    assert out.isfinite().all()
    (out * heads[3])[real].sum().backward()
    return [out[real], *(x.grad for x in (q, k, v))]


def test_laid_end_to_end_sequences_learn_what_padded_ones_do() -> None:
    ends = gradients(SEGMENTS, Kernel.VARLEN, "cpu", torch.float32)
    padded = gradients(SEGMENTS, Kernel.PADDED, "cpu", torch.float32)
    torch.testing.assert_close(ends, padded, atol=1e-5, rtol=1e-5)


def library(width: int, dtype: torch.dtype) -> ctypes.CDLL:
    found = causal_library(width, dtype)
    if found is None:
        pytest.skip("no C compiler here")
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("num_kv_heads", "width"), [(4, 32), (2, 6), (1, 48)])
def test_in_c_the_gradient_is_that_of_the_reference(
    num_kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    """Over sequences shorter and longer than what it takes at a time, with a gap between two."""
    generator = torch.Generator().manual_seed(0)
    bounds = torch.tensor([[0, 1], [1, 8], [10, 43], [43, 150]], dtype=torch.int32)
    q, k, v, grad = (
        torch.randn(151, num, width, generator=generator, dtype=dtype)
        for num in (4, num_kv_heads, num_kv_heads, 4)
    )
    compiled = library(width, dtype)
    for x in (q, k, v):
        x.requires_grad_()
    sequences = [slice(*pair) for pair in bounds.tolist()]
    expected = torch.zeros_like(grad)
    for s in sequences:
        expected[s] = causal_reference(0, q[s], k[s], v[s])
    found = causal(compiled, q, k, v, bounds)
    exactly = {"atol": 1e-12, "rtol": 1e-12} if dtype is torch.float64 else {}
    torch.testing.assert_close(found, expected, **exactly)
    slopes = [torch.autograd.grad(out, (q, k, v), grad) for out in (found, expected)]
    torch.testing.assert_close(*slopes, **exactly or {"atol": 1e-5, "rtol": 1e-5})


def test_in_c_a_head_may_be_a_view_of_more() -> None:
    """As the queries and values of a fused projection are; heads that lie apart are copied."""
    compiled = library(16, torch.float32)
    heads = torch.randn(9, 6, 16, generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([[0, 9]], dtype=torch.int32)
    views = heads[:, :2], heads[:, 2:4], heads[:, 4:]
    apart = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in views]
    found = causal(compiled, *views, bounds)
    torch.testing.assert_close(found, causal_reference(0, *views))
    assert torch.equal(found, causal(compiled, *apart, bounds))


def test_without_a_compiler_sequences_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_NATIVE", "0")
    without = gradients(SEGMENTS, Kernel.C, "cpu", torch.float32)
    for one, other in zip(
        without, gradients(SEGMENTS, Kernel.PADDED, "cpu", torch.float32), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("lost", [1, 3])
def test_batches_of_a_kind_have_one_shape(lost: int) -> None:
    """So that a network that was compiled for one fits the other."""
    longer, shorter = SEGMENTS, SEGMENTS.clone()
    shorter[1, -lost:] = -1
    ends = [packed_attention(s, kernel=Kernel.VARLEN) for s in (longer, shorter)]
    assert len({(a.longest, a.bounds_S.shape) for a in ends}) == 1  # type: ignore[attr-defined]


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", list(Kernel))
def test_on_a_gpu_every_kernel_learns_what_the_reference_does(kernel: Kernel) -> None:
    segments = torch.arange(64).repeat(4, 8).div(50, rounding_mode="floor").sort().values
    segments[:, -20:] = -1
    found = gradients(segments, kernel, "cuda", torch.bfloat16)
    expected = gradients(segments, Kernel.PADDED, "cpu", torch.float32)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu().float(), other, atol=0.05, rtol=0.05)


def test_each_device_has_its_kernel() -> None:
    assert kernel_of(torch.device("cuda")) is Kernel.VARLEN
    assert kernel_of(torch.device("cpu")) is Kernel.C


def test_the_reference_is_softmax_of_scaled_scores_over_the_past() -> None:
    """Two heads share one key head of width 1; every number can be checked by hand."""
    q = torch.tensor([[[1.0], [0.0]], [[2.0], [0.0]]])
    k = torch.tensor([[[1.0]], [[3.0]]])
    v = torch.tensor([[[10.0]], [[20.0]]])
    out = causal_reference(0, q, k, v)
    late = torch.sigmoid(torch.tensor(2.0 * 3 - 2.0 * 1)).item()
    expected = [[10.0, 10.0], [10 + 10 * late, 15.0]]
    assert out[..., 0].tolist() == [pytest.approx(row, abs=1e-4) for row in expected]
