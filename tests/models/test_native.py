"""Parts of a step in C against the same in torch, and what happens where none can be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from apr.models import native
from apr.models.attention import causal_reference
from apr.models.llama import Llama, LlamaConfig, rotate

SOURCE = Path(native.__file__).with_name("native.c")
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)]
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where compiled files go, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    yield tmp_path / "apr" / "native"
    native._library.cache_clear()


def kernels(dtype: torch.dtype) -> native.Kernels:
    with torch.inference_mode():
        found = native.kernels(torch.zeros(1, dtype=dtype))
    if found is None:
        pytest.skip("no C compiler here")
    return found


def numbers(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


# One that is done by one thread, one that is shared out.
@pytest.mark.parametrize("n", [3, 900])
@DTYPES
def test_each_part_is_what_torch_makes_of_it(n: int, dtype: torch.dtype, tolerance: float) -> None:
    compiled = kernels(dtype)
    x, weight = numbers(n, 37, dtype=dtype), numbers(37, dtype=dtype)
    want = F.rms_norm(x, (37,), weight, 1e-5)
    got = compiled.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)

    gate_up = numbers(n, 2 * 37, dtype=dtype, scale=30)
    want = F.silu(gate_up[:, :37]) * gate_up[:, 37:]
    torch.testing.assert_close(
        compiled.silu_mul(gate_up), want, rtol=tolerance, atol=30 * tolerance
    )

    heads = numbers(n, 7, 12, dtype=dtype)[:, :5]
    cos, sin = numbers(n, 1, 12, dtype=dtype), numbers(n, 1, 12, dtype=dtype)
    got = compiled.rotate(heads, cos, sin)
    torch.testing.assert_close(got, rotate(heads, cos, sin), rtol=tolerance, atol=4 * tolerance)


def test_silu_is_right_at_its_ends() -> None:
    ends = torch.tensor([[-1e30, -300.0, -88.0, 0.0, 88.0, 300.0, 1e30, *[1.0] * 7]])
    got = kernels(torch.float32).silu_mul(ends)
    torch.testing.assert_close(got, F.silu(ends[:, :7]), rtol=1e-6, atol=2e-8)


def test_a_network_says_the_same_with_them_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Llama(LlamaConfig(61, 32, 64, 2, 4, 2, 8, 128)).double().eval()
    model.init_weights(1)
    ids, places = torch.arange(50) % 61, torch.arange(50)
    kernels(torch.float64)
    with torch.inference_mode():
        fast = model(ids, places, causal_reference)
    with torch.no_grad():
        slow = model(ids, places, causal_reference)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    assert not torch.equal(fast, slow), "both went the same way"


def test_nothing_in_c_where_something_is_learnt() -> None:
    assert native.kernels(torch.zeros(1)) is None


def test_what_is_compiled_once_is_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library(SOURCE, torch.float32) is None:
        pytest.skip("no C compiler here")
    (made,) = cache.iterdir()
    native._library.cache_clear()
    native.library(SOURCE, torch.float32)
    native.library(SOURCE, torch.float64)
    assert len(list(cache.iterdir())) == 2, "one for each type"
    # Other flags, another file: here a compiler that cannot be there.
    native._library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.library(SOURCE, torch.float32) is None
    assert made.exists()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true"])
def test_without_a_compiler_torch_does_it_all(
    cache: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert native.library(SOURCE, torch.float32) is None
    assert not cache.exists() or not list(cache.iterdir()), "nothing half-made is left"


def test_it_can_be_turned_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_NATIVE", "0")
    assert native.library(SOURCE, torch.float32) is None
    assert not cache.exists()


def test_types_it_does_not_know_are_left_to_torch() -> None:
    assert native.library(SOURCE, torch.bfloat16) is None
