"""Hugging Face checkpoint directories in and out: config.json, model.safetensors, tokenizer.json.

The fused projections of our network are split on the way out and fused on the way in, so that any
Llama-family checkpoint loads here and ours load in transformers, SGLang and vLLM.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from apr.errors import CheckpointError
from apr.models.llama import Llama, LlamaConfig

TOKENIZER = "tokenizer.json"


def save_checkpoint(
    model: Llama,
    directory: Path,
    tokenizer_json: str | None = None,
    manifest: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a checkpoint; ``directory`` appears whole or not at all.

    Args:
        tokenizer_json: text of a Hugging Face ``tokenizers`` file.
        manifest: how the checkpoint came to be, written to ``apr.json``.
        dtype: store the weights in this type instead of their own.
    """
    tmp = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    weights = {
        name: w.detach().to("cpu", dtype or w.dtype).contiguous() for name, w in to_hf(model)
    }
    save_file(weights, tmp / "model.safetensors", metadata={"format": "pt"})
    stored = next(iter(weights.values())).dtype
    _write_json(tmp / "config.json", hf_config(model.config, stored))
    if tokenizer_json is not None:
        (tmp / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
        _write_json(tmp / "tokenizer_config.json", _tokenizer_config(model.config, tokenizer_json))
    if manifest is not None:
        _write_json(tmp / "apr.json", manifest)
    replace_directory(tmp, directory)


def load_checkpoint(
    directory: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Llama:
    """Load any Hugging Face Llama-family checkpoint directory.

    Args:
        dtype: type of the weights in memory; float32 on a CPU and bfloat16 on CUDA by default.

    Raises:
        CheckpointError: nothing there, another architecture, or weights that do not fit the config.
    """
    config = read_config(directory)
    if dtype is None:
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    model = Llama(config)
    weights = _read_weights(directory)
    if config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights.get("model.embed_tokens.weight", Tensor()))
    try:
        model.load_state_dict(from_hf(weights, config))
    except (KeyError, RuntimeError) as e:
        raise CheckpointError(f"weights in {directory} do not fit its config.json: {e}") from e
    return model.to(device=device, dtype=dtype).eval()


def read_config(directory: Path) -> LlamaConfig:
    """Read ``config.json``.

    Raises:
        CheckpointError: missing, not JSON, or of an architecture that is not Llama.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {directory}: name a folder with a config.json")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return _parse_config(raw, directory)
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} is not a Llama config: {type(e).__name__} {e}") from e


def _parse_config(raw: dict[str, Any], directory: Path) -> LlamaConfig:
    if raw.get("model_type") != "llama":
        raise CheckpointError(
            f"{directory} holds a {raw.get('model_type')!r} model, only 'llama' can be loaded"
        )
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or raw.get("rope_scaling"):
        raise CheckpointError(f"{directory} scales its rotary positions, which is not supported")
    known = {f.name for f in fields(LlamaConfig)}
    values = {k: v for k, v in raw.items() if k in known}
    values.setdefault("num_key_value_heads", raw["num_attention_heads"])
    if values.get("head_dim") is None:
        values["head_dim"] = raw["hidden_size"] // raw["num_attention_heads"]
    values["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    if isinstance(values.get("eos_token_id"), list):
        values["eos_token_id"] = values["eos_token_id"][0]
    return LlamaConfig(**values)


def hf_config(config: LlamaConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The ``config.json`` that transformers, SGLang and vLLM read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "pad_token_id": None,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "rope_scaling": None,
        **asdict(config),
    }


def to_hf(model: Llama) -> Iterator[tuple[str, Tensor]]:
    """Weights under Hugging Face's names, fused projections split."""
    c = model.config
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    for name, w in model.state_dict().items():
        if name == "lm_head.weight":
            if not c.tie_word_embeddings:
                yield name, w
        elif name.endswith("qkv_proj.weight"):
            yield from _split("model." + name, w, {"q_proj": q, "k_proj": kv, "v_proj": kv}, "qkv")
        elif name.endswith("gate_up_proj.weight"):
            half = w.shape[0] // 2
            yield from _split("model." + name, w, {"gate_proj": half, "up_proj": half}, "gate_up")
        else:
            yield "model." + name, w


def from_hf(weights: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """State dict of our network; raises KeyError for a weight that is not there."""
    out = {
        "lm_head.weight": weights["lm_head.weight"],
        "embed_tokens.weight": weights["model.embed_tokens.weight"],
        "norm.weight": weights["model.norm.weight"],
    }
    for i in range(config.num_hidden_layers):
        old, new = f"model.layers.{i}.", f"layers.{i}."
        for part in ("input_layernorm", "post_attention_layernorm"):
            out[f"{new}{part}.weight"] = weights[f"{old}{part}.weight"]
        qkv = [weights[f"{old}self_attn.{x}_proj.weight"] for x in "qkv"]
        out[f"{new}self_attn.qkv_proj.weight"] = torch.cat(qkv)
        out[f"{new}self_attn.o_proj.weight"] = weights[f"{old}self_attn.o_proj.weight"]
        gate_up = [weights[f"{old}mlp.{x}_proj.weight"] for x in ("gate", "up")]
        out[f"{new}mlp.gate_up_proj.weight"] = torch.cat(gate_up)
        out[f"{new}mlp.down_proj.weight"] = weights[f"{old}mlp.down_proj.weight"]
    return out


def replace_directory(tmp: Path, directory: Path) -> None:
    """Put ``tmp`` in the place of ``directory``, which survives if anything fails."""
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
    os.replace(tmp, directory)
    shutil.rmtree(old, ignore_errors=True)


def _split(name: str, w: Tensor, sizes: dict[str, int], fused: str) -> Iterator[tuple[str, Tensor]]:
    for part, piece in zip(sizes, torch.split(w, list(sizes.values())), strict=True):
        yield name.replace(f"{fused}_proj", part), piece


def _read_weights(directory: Path) -> dict[str, Tensor]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no .safetensors file in {directory}: name a whole checkpoint")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights.update(load_file(file))
        except (SafetensorError, OSError) as e:
            raise CheckpointError(f"{file} is damaged ({e}): copy or train it again") from e
    return weights


def _tokenizer_config(config: LlamaConfig, tokenizer_json: str) -> dict[str, Any]:
    added = {t["id"]: t["content"] for t in json.loads(tokenizer_json).get("added_tokens", [])}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": added.get(config.bos_token_id),
        "eos_token": added.get(config.eos_token_id),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
