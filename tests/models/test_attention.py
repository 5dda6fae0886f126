from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apr.models.attention import causal_reference, packed_attention
from apr.models.llama import Llama
from tests.tiny import reference_logits, tiny_config, tiny_model

MODELS = {kv: tiny_model(tiny_config(num_kv_heads=kv)) for kv in (1, 2, 4)}
ROW = 12


@torch.no_grad()
def packed_logits(model: Llama, rows: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
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
    attend = packed_attention(segments)
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


@given(rows_of_sequences, st.sampled_from([1, 2, 4]))
def test_packed_sequences_have_the_logits_they_have_alone(
    rows: list[list[torch.Tensor]], num_kv_heads: int
) -> None:
    model = MODELS[num_kv_heads]
    for row, found in zip(rows, packed_logits(model, rows), strict=True):
        for sequence, logits in zip(row, found, strict=True):
            expected = reference_logits(model, sequence)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_neighbours_in_a_row_do_not_see_each_other() -> None:
    model = MODELS[2]
    first, second, other = (torch.tensor(x) for x in ([3, 4, 5], [6, 7, 8, 9], [30, 2, 30, 2]))
    [[first_beside_second, _]] = packed_logits(model, [[first, second]])
    [[first_beside_other, _]] = packed_logits(model, [[first, other]])
    assert torch.equal(first_beside_second, first_beside_other)
    [[_, second_beside_first]] = packed_logits(model, [[first, second]])
    [[_, second_beside_other]] = packed_logits(model, [[other[:3], second]])
    assert torch.equal(second_beside_first, second_beside_other)


def test_the_reference_is_softmax_of_scaled_scores_over_the_past() -> None:
    """Two heads share one key head of width 1; every number can be checked by hand."""
    q = torch.tensor([[[1.0], [0.0]], [[2.0], [0.0]]])
    k = torch.tensor([[[1.0]], [[3.0]]])
    v = torch.tensor([[[10.0]], [[20.0]]])
    out = causal_reference(0, q, k, v)
    late = torch.sigmoid(torch.tensor(2.0 * 3 - 2.0 * 1)).item()
    expected = [[10.0, 10.0], [10 + 10 * late, 15.0]]
    assert out[..., 0].tolist() == [pytest.approx(row, abs=1e-4) for row in expected]
