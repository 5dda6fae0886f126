"""Hugging Face checkpoint directories in and out: config.json, safetensors, tokenizer.json.

The fused projections of our network are split on the way out and fused on the way in, so that any
Llama-family checkpoint loads here and ours load in transformers, SGLang and vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apr.config import build
from apr.errors import CheckpointError
from apr.files import new_directory
from apr.models.llama import Llama, LlamaConfig

TOKENIZER = "tokenizer.json"
MANIFEST = "apr.json"
"""How a checkpoint came to be; other programs pass over it."""

INDEX = "model.safetensors.index.json"
"""Which file holds which weight, where there are several."""

FILE_BYTES = 15_000_000
"""Most bytes of weights in one file, so that a repository takes it."""

# What our network does, and no other way, under the names of ``config.json``.
_ONLY = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_HF_EPS = 1e-6
"""Of a ``config.json`` that names no ``rms_norm_eps``."""


def save_checkpoint(
    model: Llama,
    directory: Path,
    tokenizer_json: str | None = None,
    manifest: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a checkpoint; ``directory`` appears whole or not at all.

    Weights of more than ``FILE_BYTES`` are split into several files, as Hugging Face does.

    Args:
        tokenizer_json: text of a Hugging Face ``tokenizers`` file.
        manifest: how the checkpoint came to be, written to ``MANIFEST``.
        dtype: store the weights in this type instead of their own.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    weights = {
        name: w.detach().to("cpu", dtype or w.dtype).contiguous() for name, w in to_hf(model)
    }
    stored = next(iter(weights.values())).dtype
    with new_directory(directory) as tmp:
        _save_weights(weights, tmp)
        _write_json(tmp / "config.json", hf_config(model.config, stored))
        if tokenizer_json is not None:
            (tmp / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
            tokenizer_config = _tokenizer_config(model.config, tokenizer_json)
            _write_json(tmp / "tokenizer_config.json", tokenizer_config)
        if manifest is not None:
            _write_json(tmp / MANIFEST, manifest)


def default_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    try:
        model = Llama(config)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as e:
        raise CheckpointError(
            f"the network that {directory / 'config.json'} describes is too large to be made: "
            "check its numbers"
        ) from e
    weights = _read_weights(directory)
    if config.tie_word_embeddings:  # Whatever else is there under its name.
        weights["lm_head.weight"] = weights.get("model.embed_tokens.weight", Tensor())
    try:
        load_weights(model, from_hf(weights, config))
    except KeyError as e:
        raise CheckpointError(f"{directory} lacks the weight {e}: copy the whole of it") from e
    except (RuntimeError, ValueError) as e:
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
        unsupported = _unsupported(raw)
        if unsupported is None:
            return _parse_config(raw)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as e:
        raise CheckpointError(f"{path} is not a Llama config: {type(e).__name__} {e}") from e
    raise CheckpointError(f"{directory} has {unsupported} can be loaded")


def _unsupported(raw: dict[str, Any]) -> str | None:
    """What in a ``config.json`` our network cannot do, and what it can."""
    for key, only in _ONLY.items():
        value = raw.get(key, None if key == "model_type" else only)
        if value != only:
            return f"{key} {value!r}, and only {only!r}"
    for rope in (raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}):
        kind = rope.get("rope_type", rope.get("type", "default"))  # The second is the older name.
        if kind != "default" or "factor" in rope:
            return "scaled rotary positions, and only plain ones"
    return None


def _parse_config(raw: dict[str, Any]) -> LlamaConfig:
    rope = raw.get("rope_parameters") or {}
    known = {f.name for f in fields(LlamaConfig)}
    values = {k: v for k, v in raw.items() if k in known}
    values.setdefault("num_key_value_heads", raw["num_attention_heads"])
    if values.get("head_dim") is None:
        values["head_dim"] = raw["hidden_size"] // raw["num_attention_heads"]
    values.setdefault("rms_norm_eps", _HF_EPS)
    values["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    if isinstance(values.get("eos_token_id"), list):
        values["eos_token_id"] = next(iter(values["eos_token_id"]), None)
    return build(LlamaConfig, values)


def hf_config(config: LlamaConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The ``config.json`` that transformers, SGLang and vLLM read."""
    return {
        **_ONLY,
        "architectures": ["LlamaForCausalLM"],
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
    """State dict of our network.

    Raises:
        KeyError: a weight is not there.
        ValueError: there is a weight that the network has no place for, such as a bias.
    """
    # Old checkpoints store the rotary frequencies, which follow from the config.
    rest = {name: w for name, w in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    out = {
        "lm_head.weight": rest.pop("lm_head.weight"),
        "embed_tokens.weight": rest.pop("model.embed_tokens.weight"),
        "norm.weight": rest.pop("model.norm.weight"),
    }
    for i in range(config.num_hidden_layers):
        old, new = f"model.layers.{i}.", f"layers.{i}."
        for part in ("input_layernorm", "post_attention_layernorm"):
            out[f"{new}{part}.weight"] = rest.pop(f"{old}{part}.weight")
        qkv = [rest.pop(f"{old}self_attn.{x}_proj.weight") for x in "qkv"]
        out[f"{new}self_attn.qkv_proj.weight"] = torch.cat(qkv)
        out[f"{new}self_attn.o_proj.weight"] = rest.pop(f"{old}self_attn.o_proj.weight")
        gate_up = [rest.pop(f"{old}mlp.{x}_proj.weight") for x in ("gate", "up")]
        out[f"{new}mlp.gate_up_proj.weight"] = torch.cat(gate_up)
        out[f"{new}mlp.down_proj.weight"] = rest.pop(f"{old}mlp.down_proj.weight")
    if rest:
        raise ValueError(f"the network has no {min(rest)}")
    return out


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; raises OSError where the disk refuses it, as a plain write does."""
    path.touch()
    # Whoever may read a new file may read this one; safetensors writes what only its owner may.
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as e:
        raise OSError(str(e)) from e
    path.chmod(mode)


def _save_weights(weights: dict[str, Tensor], directory: Path) -> None:
    files: list[dict[str, Tensor]] = [{}]
    room = FILE_BYTES
    for name, weight in weights.items():
        if files[-1] and weight.nbytes > room:
            files.append({})
            room = FILE_BYTES
        files[-1][name] = weight
        room -= weight.nbytes
    if len(files) == 1:
        save_tensors(weights, directory / "model.safetensors")
        return
    places: dict[str, str] = {}
    for i, held in enumerate(files, start=1):
        file = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        save_tensors(held, directory / file)
        places |= dict.fromkeys(held, file)
    size = sum(weight.nbytes for weight in weights.values())
    _write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put ``weights`` into ``model``; raises ValueError that names the first that does not fit."""
    own = model.state_dict()
    for name in [*own, *weights]:
        if name not in weights:
            raise ValueError(f"{name} is missing")
        if name not in own:
            raise ValueError(f"the network has no {name}")
        if weights[name].shape != own[name].shape:
            have, want = tuple(weights[name].shape), tuple(own[name].shape)
            raise ValueError(f"{name} has shape {have} in place of {want}")
    model.load_state_dict(weights)


def _split(name: str, w: Tensor, sizes: dict[str, int], fused: str) -> Iterator[tuple[str, Tensor]]:
    for part, piece in zip(sizes, torch.split(w, list(sizes.values())), strict=True):
        yield name.replace(f"{fused}_proj", part), piece


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, in order.

    Raises:
        CheckpointError: one is missing, or the index of several is damaged.
    """
    index = directory / INDEX
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"no .safetensors file in {directory}: name a whole checkpoint")
        return files
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [directory / name for name in sorted(set(places.values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{index} is damaged ({e}): copy or train it again") from e
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"no {file.name} in {directory}: copy the whole checkpoint")
    return files


def _read_weights(directory: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in weight_files(directory):
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
