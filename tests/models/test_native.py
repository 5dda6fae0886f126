"""Products in C against the same in torch, and what happens where none can be compiled."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apr.models import native
from apr.models.llama import Llama, LlamaConfig
from apr.models.precision import Precision

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


def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def pack(weight: torch.Tensor, rounded: Precision = Precision.MODEL) -> native.Packed:
    packed = native.packed(weight, rounded)
    if packed is None:
        pytest.skip("no C compiler here")
    return packed


# Tiles of every size, last panels of every kind, one block of rows and several.
@pytest.mark.parametrize("num_out", [1, 11, 12, 31, 32, 33, 47, 48, 49, 200])
@DTYPES
def test_a_product_is_what_torch_makes_of_it(
    num_out: int, dtype: torch.dtype, tolerance: float
) -> None:
    weight = numbers(num_out, 37, dtype=dtype)
    packed = pack(weight)
    for rows in (*range(1, 20), 300, 700):
        x = numbers(rows, 37, dtype=dtype)
        torch.testing.assert_close(packed(x), x @ weight.T, rtol=0, atol=50 * tolerance)


ROUNDED = pytest.mark.parametrize("rounded", [Precision.BFLOAT16, Precision.INT8])


@pytest.mark.parametrize("rounded", list(Precision))
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(rounded: Precision, odd: float) -> None:
    """It would be a wrong one that looks like any other."""
    weight, x = numbers(40, 20, dtype=torch.float32), numbers(3, 20, dtype=torch.float32)
    x[1, 4] = odd
    out = pack(weight, rounded)(x)
    assert out[[0, 2]].isfinite().all()
    assert not out[1].isfinite().any()
    weight[7, 2] = odd
    assert pack(weight, rounded)(numbers(3, 20, dtype=torch.float32)).isfinite().all(0).sum() == 39


# Some numbers too many for a factor, and for a vector.
@pytest.mark.parametrize("num_in", [1, 2, 3, 16, 37, 512, 513, 1100])
@ROUNDED
def test_a_rounded_product_rounds_both_sides_and_sums_exactly(
    rounded: Precision, num_in: int
) -> None:
    weight = numbers(49, num_in, dtype=torch.float32)
    packed = pack(weight, rounded)
    for rows in (*range(1, 20), 300):
        x = numbers(rows, num_in, dtype=torch.float32)
        want = rounded.rounded(x).double() @ rounded.rounded(weight).double().T
        tolerance = 1e-6 * num_in**0.5 * float(want.abs().max())
        torch.testing.assert_close(packed(x).double(), want, rtol=0, atol=tolerance)


def test_rows_of_zeros_and_of_one_large_number_are_rounded_to_themselves() -> None:
    weight, x = torch.eye(40), torch.zeros(3, 40)
    x[1, 7], x[2, 39] = 1e6, -3e-6
    torch.testing.assert_close(pack(weight, Precision.INT8)(x), x)


@ROUNDED
def test_a_processor_that_does_not_multiply_so_rounds_the_same(
    rounded: Precision, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, x = (numbers(n, 70, dtype=torch.float32) for n in (50, 9))
    here = pack(weight, rounded)(x)
    native._library.cache_clear()
    monkeypatch.setenv("CC", "cc -U__AVX512BF16__ -U__AVX512VNNI__")
    torch.testing.assert_close(pack(weight, rounded)(x), here, rtol=0, atol=1e-4)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("num_in", [1, 37, 64, 200])
@ROUNDED
def test_tiles_of_sixteen_rows_are_the_same_products(
    rounded: Precision, num_in: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AMX there are none, and nothing is compared. Sums of int8 are exact."""
    weight, x = (numbers(n, num_in, dtype=torch.float32) for n in (50, 70))
    packed = pack(weight, rounded)
    native._library.cache_clear()
    monkeypatch.setenv("CC", "cc -DAMX=0")
    without = pack(weight, rounded)
    assert len(list(cache.iterdir())) == 2
    tolerance = 0 if rounded is Precision.INT8 else 1e-4
    for rows in (*range(1, 35), 48, 49, 63, 64, 65, 70):
        torch.testing.assert_close(packed(x[:rows]), without(x[:rows]), rtol=0, atol=tolerance)


@ROUNDED
def test_rounded_products_are_of_float32_alone(rounded: Precision) -> None:
    assert native.packed(numbers(3, 3, dtype=torch.float64), rounded) is None


@pytest.mark.parametrize(
    ("dtype", "rounded"),
    [(torch.float64, Precision.MODEL), *((torch.float32, rounded) for rounded in Precision)],
)
def test_a_row_is_the_same_in_any_company(dtype: torch.dtype, rounded: Precision) -> None:
    packed = pack(numbers(100, 64, dtype=dtype), rounded)
    x = numbers(500, 64, dtype=dtype)
    together = packed(x)
    for start, end in [(0, 1), (3, 5), (7, 20), (100, 400)]:
        assert torch.equal(packed(x[start:end]), together[start:end])


def test_columns_of_a_wider_matrix_are_taken_as_they_are() -> None:
    weight, wide = numbers(5, 8, dtype=torch.float64), numbers(9, 20, dtype=torch.float64)
    torch.testing.assert_close(pack(weight)(wide[:, 4:12]), wide[:, 4:12] @ weight.T)


def test_packed_matrices_are_used_for_inference_and_nothing_else() -> None:
    model = Llama(LlamaConfig(61, 32, 64, 2, 4, 2, 8, 128))
    model.init_weights(1)
    pack(model.lm_head.weight)
    model.pack()
    x = numbers(3, 32, dtype=torch.float32).requires_grad_()
    model.logits(x).sum().backward()
    assert x.grad is not None
    before = model.logits(x)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert not model.logits(x).any()
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(x), before)  # as the weights were
    model.pack()
    with torch.inference_mode():
        assert not model.logits(x).any()


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


def test_an_empty_name_of_a_compiler_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = native.library(SOURCE, torch.float32)
    native._library.cache_clear()
    monkeypatch.setenv("CC", "")
    assert (native.library(SOURCE, torch.float32) is None) == (found is None)


@pytest.mark.parametrize(
    ("compiler", "said"),
    [("sh -c 'echo no such flag >&2; exit 1'", "no such flag"), ("cc '", "quotation")],
)
def test_a_compiler_that_fails_is_told_of(
    cache: Path,
    compiler: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert native.library(SOURCE, torch.float32) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert said in record.getMessage()


def test_nothing_is_loaded_from_where_others_may_write(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if native.library(SOURCE, torch.float32) is None:
        pytest.skip("no C compiler here")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    native._library.cache_clear()
    cache.chmod(0o777)
    assert native.library(SOURCE, torch.float32) is None
    assert f"others may write to {cache}" in caplog.text


def test_without_a_home_torch_does_it_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert native.library(SOURCE, torch.float32) is None


def test_it_can_be_turned_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_NATIVE", "0")
    assert native.library(SOURCE, torch.float32) is None
    assert not cache.exists()


def test_types_it_does_not_know_are_left_to_torch() -> None:
    assert native.library(SOURCE, torch.bfloat16) is None
