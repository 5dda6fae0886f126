"""A network small enough to run thousands of steps, in double precision."""

from __future__ import annotations

import pytest
import torch

from apr.engine import EmbeddedEngine
from apr.engine.attention import PagedKV
from apr.engine.graphs import DecodeGraphs
from apr.engine.steps import StepsInTorch
from apr.models import native
from apr.models.llama import Llama, LlamaConfig

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["compiled", "torch", "graphs", GPU])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything that is tested with it runs in C, in torch alone, as what would be graphs on a
    GPU, and on a GPU."""
    if request.param in ("torch", "graphs"):
        monkeypatch.setenv("APR_NATIVE", "0")
    if request.param == "graphs":
        monkeypatch.setattr(EmbeddedEngine, "_steps", _as_graphs)
    if request.param == "compiled" and native.packed(torch.zeros(1, 1)) is None:
        pytest.skip("no C compiler here")
    return str(request.param)


def _as_graphs(engine: EmbeddedEngine) -> StepsInTorch:
    assert isinstance(engine.kv, PagedKV)
    return StepsInTorch(engine.model, engine.kv, DecodeGraphs(engine.model, engine.kv))


@pytest.fixture
def network(on_cpu: Llama, request: pytest.FixtureRequest) -> Llama:
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "cuda":
        there = Llama(on_cpu.config).double()
        there.load_state_dict(on_cpu.state_dict())
        return there.cuda().eval()
    return on_cpu


@pytest.fixture(scope="session")
def on_cpu() -> Llama:
    # float64 leaves no near ties, so greedy ids can be compared exactly across batch shapes.
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        eos_token_id=0,
    )
    model = Llama(config)
    model.init_weights(seed=1)
    # A head of unit scale: logits as far apart as those of a trained network.
    model.lm_head.weight.data.mul_(50)
    return model.double().eval()
