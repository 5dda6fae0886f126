"""How training uses a device: numbers, attention, compilation, and batches that are there in time.

Weights are float32 wherever they are trained. On CUDA matrix products and attention run in bfloat16
(``torch.autocast``), and everything between them, the residual stream and the optimiser in float32:
small steps are not lost, and gradients of an embedding, which add up over thousands of tokens, do
not round each of them away. Nothing here makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from apr.data.packing import IGNORE, Batch, PackedBatches
from apr.models.llama import Attend
from apr.train.attention import Kernel, kernel_of, packed_attention


class Autocast(StrEnum):
    """Numbers that matrix products are computed in; weights are float32 with all of them."""

    AUTO = "auto"
    """bfloat16 on a GPU, float32 on a CPU."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """On a CPU that multiplies in it (AVX512-BF16, AMX) almost twice as fast; one that does not
    would emulate it, and computes in float32 in its place."""

    @property
    def dtype(self) -> torch.dtype | None:
        """None where the device decides."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(self.value)


class Inputs(NamedTuple):
    """A batch where the network is, N tokens in row order."""

    ids_N: Tensor
    targets_N: Tensor
    positions_N: Tensor
    places_N: Tensor
    attend: Attend
    num_learnt: int


@dataclass(frozen=True, slots=True)
class Compute:
    """How a network is run to be trained."""

    device: torch.device
    dtype: torch.dtype | None = None
    """Of matrix products and attention; None for that of the weights."""
    kernel: Kernel = Kernel.C
    compiled: bool = False
    """Whether ``torch.compile`` makes one program of forward and backward pass."""
    settle_every: int = 1
    """Steps whose metrics are fetched together: with more than 1 the host runs ahead."""
    prefetch: bool = False
    """Whether a thread makes the next batch while the device computes."""

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def inputs(self, batch: Batch) -> Inputs:
        """``batch``, which is on the host, on the device."""
        return Inputs(
            ids_N=self._moved(batch.ids_BT),
            targets_N=self._moved(batch.targets_BT),
            positions_N=self._moved(batch.positions_BT),
            places_N=self._moved(batch.places_BT),
            attend=packed_attention(batch.segments_BT, self.device, self.kernel),
            num_learnt=int((batch.targets_BT != IGNORE).sum()),
        )

    def feed(self, batches: PackedBatches, start: int, step: int = 1) -> Generator[Inputs]:
        """Each ``step``-th of the batches from number ``start`` on, without end."""
        numbers = count(start, step)
        if not self.prefetch:
            yield from (self.inputs(batches.batch(n)) for n in numbers)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(lambda: self.inputs(batches.batch(next(numbers))))
            while True:
                ready = ahead.result()
                ahead = pool.submit(lambda: self.inputs(batches.batch(next(numbers))))
                yield ready

    def _moved(self, x_BT: Tensor) -> Tensor:
        x = x_BT.flatten()
        if self.device.type != "cuda":
            return x.to(self.device)
        return x.pin_memory().to(self.device, non_blocking=True)


def compute_on(device: torch.device, dtype: torch.dtype | None = None) -> Compute:
    """What has proved best on ``device``.

    Args:
        dtype: of matrix products and attention; bfloat16 on CUDA and float32 elsewhere by default,
            and on a CPU that would emulate it.
    """
    on_cuda = device.type == "cuda"
    dtype = dtype or (torch.bfloat16 if on_cuda else torch.float32)
    if device.type == "cpu" and not _has_bfloat16():
        dtype = torch.float32
    if dtype is torch.float32:  # Plain, to compare with.
        return Compute(device)
    return Compute(
        device,
        dtype,
        kernel_of(device),
        compiled=on_cuda,
        settle_every=10 if on_cuda else 1,
        prefetch=on_cuda,
    )


def _has_bfloat16() -> bool:
    """Whether the CPU multiplies in it: by AVX-512, by AMX, on ARM."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
