"""A network so small that a test can afford it, with weights large enough to tell apart."""

from __future__ import annotations

import torch
from torch import Tensor

from apr.models.llama import Llama, LlamaConfig
from apr.train.attention import causal_reference


def tiny_config(tied: bool = False, num_kv_heads: int = 2, vocab_size: int = 40) -> LlamaConfig:
    """Its heads are not as wide together as the model, and its rotary base is not the default."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=num_kv_heads,
        head_dim=8,
        max_position_embeddings=64,
        rope_theta=500.0,
        rms_norm_eps=1e-4,
        tie_word_embeddings=tied,
        eos_token_id=1,
    )


@torch.no_grad()
def tiny_model(config: LlamaConfig | None = None, seed: int = 0) -> Llama:
    """Every weight is random, the norms' too, so that none can stand in for another."""
    model = Llama(config or tiny_config())
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (p.dim() < 2))
    return model.eval()


@torch.no_grad()
def reference_logits(model: Llama, ids: Tensor) -> Tensor:
    """Logits of one sequence, the slow and literal way."""
    return model.logits(model(ids, torch.arange(len(ids)), causal_reference))
