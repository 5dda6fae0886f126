"""The processes that train together, as ``torchrun`` starts them. One alone needs nothing.

Every process holds all weights, takes its share of the work, and adds its gradients to the others'.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class World:
    """Who this process is among those that train."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """The first process alone writes files and draws bars."""
        return self.rank == 0

    def totals(self, values: Iterable[float]) -> list[float]:
        """Each value summed over the processes."""
        values = list(values)
        if self.size == 1:
            return values
        return self.add(torch.tensor(values, dtype=torch.float64)).tolist()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes, or leave none where none has any."""
        parameters = list(parameters)
        if self.size == 1 or self.totals([any(p.grad is not None for p in parameters)]) == [0]:
            return
        gradients = []
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients.append(p.grad)
        flat = self.add(torch.cat([g.flatten() for g in gradients]))
        totals = torch.split(flat, [g.numel() for g in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))

    def wait(self) -> None:
        """Go on when all have come here."""
        self.totals([0.0])

    def add(self, values: Tensor) -> Tensor:
        """``values``, replaced by their sum over the processes; on a GPU the host does not wait."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def join_world() -> Iterator[World]:
    """The world that ``torchrun`` made, or that of one process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # By gloo what is on the host, by NCCL what is on a GPU.
    dist.init_process_group()
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
