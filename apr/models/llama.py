"""A Llama-family network over a flat list of tokens.

The network sees N tokens, their positions, and an ``attend`` that says how queries meet keys.
Training passes packed causal attention, the engine passes attention over its pages: one network,
no cache inside. Does not know what a sequence, a batch or a page is.

Axis suffixes: ``_N`` token, ``_D`` model width, ``_V`` vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apr.config import check_least
from apr.errors import ConfigError
from apr.models import native
from apr.models.precision import Precision


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Shape of the network; the names are those of Hugging Face's ``config.json``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    """Most tokens of one sequence: the context."""
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        check_least(
            1,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
        )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}: rotary positions take an even one")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads is {self.num_key_value_heads}: give a divisor of "
                f"num_attention_heads, which is {self.num_attention_heads}"
            )
        if not (self.rope_theta > 0 and self.rms_norm_eps > 0):
            raise ConfigError("rope_theta and rms_norm_eps are to be above 0")


class Attend(Protocol):
    """How queries meet keys; implemented by training and by the engine."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (N, H, d), k and v (N, KV, d), rotated -> (N, H, d)."""
        ...


class Linear(nn.Linear):
    """A projection without bias, which can keep a copy of its matrix that suits a CPU."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.packed: native.Packed | None = None

    def forward(self, x_ND: Tensor) -> Tensor:
        if self.packed is not None and torch.is_inference_mode_enabled():
            return self.packed(x_ND)
        return F.linear(x_ND, self.weight)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; projections fused into one matrix."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, width)
        self.o_proj = Linear(self.num_heads * self.head_dim, config.hidden_size)

    def forward(self, x_ND: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        h, kv = self.num_heads, self.num_kv_heads
        heads = self.qkv_proj(x_ND).view(-1, h + 2 * kv, self.head_dim)
        qk = rotate(heads[:, : h + kv], cos, sin)
        out = attend(self.layer, qk[:, :h], qk[:, h:], heads[:, h + kv :])
        return cast(Tensor, self.o_proj(out.reshape(-1, h * self.head_dim)))


class MLP(nn.Module):
    """SwiGLU; gate and up fused into one matrix."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_ND: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x_ND).chunk(2, dim=-1)
        return cast(Tensor, self.down_proj(F.silu(gate) * up))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_ND: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x_ND = x_ND + self.self_attn(self.input_layernorm(x_ND), cos, sin, attend)
        return cast(Tensor, x_ND + self.mlp(self.post_attention_layernorm(x_ND)))


class Llama(nn.Module):
    """Token ids to hidden states; ``logits`` takes them on to the vocabulary."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.compiled: native.CompiledLlama | None = None
        self.products: Precision | None = None  # what it is packed for

    def forward(self, ids_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        """Hidden states (N, D) after the final norm, for ids and positions (N,)."""
        x_ND = self.embed_tokens(ids_N)
        cos, sin = (t[positions_N].unsqueeze(1).to(x_ND.dtype) for t in (self.cos, self.sin))
        for block in self.layers:
            x_ND = block(x_ND, cos, sin, attend)
        return cast(Tensor, self.norm(x_ND))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        return cast(Tensor, self.lm_head(hidden_ND))

    def pack(self, products: Precision = Precision.MODEL) -> None:
        """Ready the weights for inference; to be called again whenever they have changed.

        Args:
            products: what they round both sides to, where that can be compiled.

        Raises:
            ConfigError: they cannot be, or somebody has packed them for others.
        """
        found = native.compiled(self.lm_head.weight, products)
        if products is not Precision.MODEL and found is None:
            raise ConfigError(
                f"products in {products} take a network of float32 on a CPU, and a C compiler: "
                "leave products out, or load the network in bfloat16"
            )
        if self.products not in (None, products):
            raise ConfigError(
                f"the network is packed for products in {self.products}, and another engine uses "
                f"it so: load it once more for products in {products}"
            )
        self.products = products
        self.compiled = None  # It holds all that was packed before, which goes matrix by matrix.
        for module in self.modules():
            if isinstance(module, Linear):
                module.packed = native.packed(module.weight, products)
        self.compiled = None if self.lm_head.packed is None else native.CompiledLlama(self)

    @property
    def num_parameters(self) -> int:
        """Number of weights, tied ones once."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal with std 1/sqrt(fan in); outputs of residual branches shrunk by depth (GPT-2)."""
        generator = torch.Generator().manual_seed(seed)
        shrink = 1 / math.sqrt(2 * self.config.num_hidden_layers)
        for name, p in sorted(self.named_parameters()):
            if p.dim() < 2:
                p.fill_(1.0)
                continue
            std = 0.02 if "embed" in name or "lm_head" in name else p.shape[1] ** -0.5
            std *= shrink if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            p.copy_(torch.randn(p.shape, generator=generator) * std)


def rotary_tables(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines (context, d), the half-split layout of Hugging Face's Llama."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.arange(config.max_position_embeddings)[:, None] / config.rope_theta**half
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., 2104.09864): x (N, H, d), cos and sin (N, 1, d)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin
