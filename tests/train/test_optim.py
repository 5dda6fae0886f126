from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from apr.train.optim import Kind, OptimConfig, StackedMuon, make_optimizers, rate, set_rate
from tests.tiny import tiny_config, tiny_model


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_exactly_one_optimizer(kind: Kind, tied: bool) -> None:
    model = tiny_model(tiny_config(tied))
    optimizers = make_optimizers(model, OptimConfig(kind=kind))
    groups = [group for o in optimizers for group in o.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert [type(o) for o in optimizers] == [AdamW, StackedMuon][: 1 + (kind is Kind.MUON)]


def test_muon_gets_the_hidden_matrices_and_norms_do_not_decay() -> None:
    model = tiny_model()
    names = {id(p): name for name, p in model.named_parameters()}
    adamw, muon = make_optimizers(model, OptimConfig(lr=0.1, matrix_lr=0.2, weight_decay=0.3))
    groups = [*adamw.param_groups, *muon.param_groups]
    decayed, norms, hidden = ({names[id(p)] for p in group["params"]} for group in groups)
    assert decayed == {"embed_tokens.weight", "lm_head.weight"}
    assert all("norm" in name for name in norms)
    assert len(norms) == 5
    assert {name.split(".")[-2] for name in hidden} == {
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj"
    }  # fmt: skip
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.3), (0.1, 0.0), (0.2, 0.3)]


def test_the_rate_rises_stays_and_falls_as_a_cosine() -> None:
    config = OptimConfig(warmup=4, decay=0.5, final=0.1)
    rates = [rate(step, 20, config) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:11] == [1.0] * 7
    assert rates[15] == pytest.approx(0.55)
    assert rates[12] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + 0.8090169943749475))
    assert rates[20] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (OptimConfig(warmup=0), [1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),
        (OptimConfig(warmup=0, decay=0.0), [1.0] * 4),
        (OptimConfig(warmup=8), [0.125, 0.25, 0.375, 0.5]),
    ],
)
def test_schedules_at_the_edge(config: OptimConfig, rates: list[float]) -> None:
    assert [rate(step, 4, config) for step in range(4)] == pytest.approx(rates)


def test_a_rate_is_a_share_of_the_peak_however_often_it_is_set() -> None:
    optimizers = make_optimizers(tiny_model(), OptimConfig(lr=0.1, matrix_lr=0.2))
    for share in (0.5, 0.25):
        set_rate(optimizers, share)
    assert [g["lr"] for o in optimizers for g in o.param_groups] == [0.025, 0.025, 0.05]


def matrices() -> list[nn.Parameter]:
    """Wide, tall and square ones, several of a shape, and one that gets no gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 24), (24, 8), (8, 24), (12, 12), (24, 8), (8, 24)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_matrices_in_a_stack_are_updated_as_one_by_one() -> None:
    alone, stacked = matrices(), matrices()
    options = {"lr": 0.1, "weight_decay": 0.2}
    reference, stack = Muon(alone, **options), StackedMuon(stacked, **options)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        if step == 2:  # Each goes on from the state of the other.
            states = reference.state_dict(), stack.state_dict()
            reference.load_state_dict(states[1])
            stack.load_state_dict(states[0])
        for one, other in zip(alone[:-1], stacked[:-1], strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        before = [p.detach().clone() for p in stacked]
        reference.step()
        stack.step()
        for one, other, old in zip(alone, stacked, before, strict=True):
            # Updates, not weights: bfloat16 leaves two digits of them.
            torch.testing.assert_close(other - old, one - old, atol=0.004, rtol=0.02)
        for one, other in zip(alone, stacked, strict=True):
            other.data.copy_(one)
    assert torch.equal(stacked[-1], matrices()[-1])


def test_on_a_cpu_nothing_of_it_is_rounded_to_bfloat16() -> None:
    updates = []
    for dtype in (torch.float32, torch.float64):
        moved = [nn.Parameter(p.detach().to(dtype)) for p in matrices()]
        before = [p.detach().clone() for p in moved]
        generator = torch.Generator().manual_seed(1)
        for p in moved:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        StackedMuon(moved, lr=0.1).step()
        updates.append([(p - old).double() for p, old in zip(moved, before, strict=True)])
    for one, other in zip(*updates, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


@pytest.mark.gpu
def test_on_a_gpu_adamw_is_fused() -> None:
    adamw, _ = make_optimizers(tiny_model().cuda(), OptimConfig())
    assert all(group["fused"] for group in adamw.param_groups)
