from __future__ import annotations

import pytest
import torch

from apr.train.compute import compute_on

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_computes_in_bfloat16_only_where_it_multiplies_in_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has, dtype in ((True, torch.bfloat16), (False, None)):
        told = {"avx2": True, name: has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told)
        assert compute_on(CPU, torch.bfloat16).dtype is dtype
        assert compute_on(CPU).dtype is None
