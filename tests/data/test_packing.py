"""Rows of an epoch: every sequence once and whole, in an order of the epoch's own."""

from __future__ import annotations

import numpy as np
import torch

from apr.data.packing import PackedBatches
from apr.data.shards import Sequences

LENGTHS = np.random.default_rng(0).integers(2, 13, 600)
IDS = np.repeat(np.arange(600), LENGTHS).astype(np.int32)
DATA = Sequences(IDS, np.ones(len(IDS), np.bool_), np.cumsum([0, *LENGTHS]))


def batches(seed: int = 0) -> PackedBatches:
    return PackedBatches(DATA, rows=1, length=16, seed=seed, pad_id=0)


def test_an_epoch_holds_every_sequence_once_and_whole() -> None:
    packed = batches()
    held: list[int] = []
    for step in range(packed.per_epoch):
        batch = packed.batch(step)
        ids, positions, segments = batch.ids_BT[0], batch.positions_BT[0], batch.segments_BT[0]
        for n in range(int(segments.max()) + 1):
            (number,) = set(ids[segments == n].tolist())
            assert positions[segments == n].tolist() == list(range(LENGTHS[number]))
            held.append(number)
    assert sorted(held) == list(range(600))


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    packed = batches()
    first = packed.batch(0).ids_BT
    assert torch.equal(first, batches().batch(0).ids_BT)
    assert not torch.equal(first, packed.batch(packed.per_epoch).ids_BT)
    assert not torch.equal(first, batches(seed=1).batch(0).ids_BT)
