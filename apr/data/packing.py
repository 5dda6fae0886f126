"""Token sequences to batches: many short sequences packed into each row, none split.

Batch ``step`` is a function of (sequences, seed, step) alone, so training resumes where it stopped.

Axis suffixes: ``_B`` row of a batch, ``_T`` token of a row.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apr.data.shards import Sequences
from apr.errors import DataError

IGNORE = -100
"""Target of a position that is not learnt; cross entropy leaves it out."""

_OPEN_ROWS = 64


class Place(IntEnum):
    """Where in its thread a token stands; of several that hold, the last."""

    SEARCH = 0
    SPAWN = 1
    """In what the thread writes until it has spawned children, for the first time."""
    JOIN = 2
    """In what it joins with."""
    HEARD = 3
    """Behind what it heard of its children."""


class Marks(NamedTuple):
    """Ids that say where a place begins, or ends."""

    spawned: int  # the end of a spawn
    join: int
    heard: int  # the end of what is heard


class Batch(NamedTuple):
    """B rows of T tokens."""

    ids_BT: Tensor
    targets_BT: Tensor  # the id that follows, IGNORE where nothing is to be learnt
    positions_BT: Tensor  # within the sequence
    segments_BT: Tensor  # number of the sequence in its row, -1 for padding
    places_BT: Tensor  # the Place of the target


class PackedBatches:
    """An endless series of batches, one shuffled epoch after another."""

    def __init__(
        self,
        sequences: Sequences,
        rows: int,
        length: int,
        seed: int,
        pad_id: int,
        marks: Marks | None = None,
    ):
        """Without ``marks`` the one place known is HEARD: behind all that a thread did not write
        itself, once it has written.
        """
        lengths = np.diff(sequences.offsets)
        if len(lengths) == 0:
            raise DataError("the data holds no sequence: loosen its filters")
        if lengths.max() > length:
            raise DataError(
                f"the data has a sequence of {lengths.max()} tokens and a row holds {length}: "
                "raise the row length, or make the data with a smaller context"
            )
        if not sequences.loss.any():
            raise DataError("the data holds no token to learn, only prompts: raise its context")
        self.sequences = sequences
        self.lengths = lengths
        self.rows = rows
        self.length = length
        self.seed = seed
        self.pad_id = pad_id
        self.marks = marks
        # Two epochs at most are alive, at their border.
        self._epoch = lru_cache(maxsize=2)(self._pack)
        self.per_epoch = max(1, len(self._epoch(0)) // rows)

    def batch(self, step: int) -> Batch:
        """The batch of ``step``, counted from 0; an epoch's last incomplete batch is left out."""
        epoch, within = divmod(step, self.per_epoch)
        packed = self._epoch(epoch)
        if within * self.rows >= len(packed):
            within = 0
        return self._fill(packed[within * self.rows : (within + 1) * self.rows])

    def _pack(self, epoch: int) -> list[list[int]]:
        """First fit over a shuffled order, with a bounded number of rows open."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.lengths))
        done: list[list[int]] = []
        rows: list[list[int]] = []
        room: list[int] = []
        for index in order.tolist():
            need = int(self.lengths[index])
            for r, free in enumerate(room):
                if free >= need:
                    rows[r].append(index)
                    room[r] -= need
                    break
            else:
                if len(rows) == _OPEN_ROWS:
                    fullest = room.index(min(room))
                    done.append(rows.pop(fullest))
                    room.pop(fullest)
                rows.append([index])
                room.append(self.length - need)
        return done + rows

    def _fill(self, rows: list[list[int]]) -> Batch:
        shape = (self.rows, self.length)
        ids, targets = np.full(shape, self.pad_id), np.full(shape, IGNORE)
        positions, segments = np.zeros(shape, np.int64), np.full(shape, -1)
        places = np.full(shape, int(Place.SEARCH))
        for r, row in enumerate(rows):
            start = 0
            for n, index in enumerate(row):
                sequence, loss = self._sequence(index)
                end = start + len(sequence)
                ids[r, start:end] = sequence
                targets[r, start : end - 1] = np.where(loss[1:], sequence[1:], IGNORE)
                places[r, start : end - 1] = self._places(sequence, loss)
                positions[r, start:end] = np.arange(len(sequence))
                segments[r, start:end] = n
                start = end
        columns = (ids, targets, positions, segments, places)
        return Batch(*(torch.from_numpy(x) for x in columns))

    def _places(self, ids: NDArray[np.int32], loss: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Of each token after the first, from the ids before it and who wrote which."""
        before, behind = ids[:-1], np.logical_or.accumulate
        places = np.full(len(before), int(Place.SEARCH))
        if self.marks is None:
            places[behind(loss[:-1] & ~loss[1:])] = Place.HEARD
            return places
        if self.marks.spawned in ids:
            places[~behind(before == self.marks.spawned)] = Place.SPAWN
        places[behind(before == self.marks.join)] = Place.JOIN
        places[behind(before == self.marks.heard)] = Place.HEARD
        return places

    def _sequence(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start, end = self.sequences.offsets[index : index + 2]
        return self.sequences.ids[start:end], self.sequences.loss[start:end]
