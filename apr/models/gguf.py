"""A checkpoint as llama.cpp reads it: one GGUF file, in float32.

llama.cpp's own converter knows the tokenizers of published models. Ours are made for a task, one
token a word, and are written here as what llama.cpp calls an SPM vocabulary, from which it spells
tokens as we do. It cuts text otherwise than we do, so send it ids. The format is version 3 of
``docs/gguf.md`` in ggml's repository.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apr.errors import CheckpointError
from apr.files import new_file
from apr.models.checkpoint import TOKENIZER, load_checkpoint, to_hf
from apr.models.llama import LlamaConfig

Array = npt.NDArray[np.float32]

_VERSION = 3
_ALIGNMENT = 32
_F32 = 0
_NORMAL, _CONTROL, _BYTE = 1, 3, 6
_SPACE = "▁"
_ARRAYS = {np.dtype(np.int32): 5, np.dtype(np.float32): 6}

# Hugging Face's names within a layer, and at the ends.
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


class Vocabulary(NamedTuple):
    """Tokens by id."""

    texts: list[str]
    kinds: npt.NDArray[np.int32]


def save_gguf(checkpoint: Path, path: Path) -> None:
    """Write the checkpoint in the folder ``checkpoint`` to the file ``path``.

    Raises:
        CheckpointError: it cannot be read, or its tokenizer is not one of ours.
        StorageError: the disk is full, or the file may not be written.
    """
    network = load_checkpoint(checkpoint)
    config = network.config
    vocabulary = read_vocabulary(checkpoint, config.vocab_size)
    tensors = {
        _name(name): _rearranged(name, w.detach().float().numpy(), config)
        for name, w in to_hf(network)
    }
    settings = _settings(config, vocabulary)
    head = struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(settings))
    head += b"".join(_string(key) + _value(value) for key, value in settings.items())
    head += b"".join(_places(tensors))
    with new_file(path) as tmp, tmp.open("wb") as f:
        f.write(_padded(head))
        for tensor in tensors.values():
            f.write(_padded(tensor.tobytes()))


def read_vocabulary(checkpoint: Path, size: int) -> Vocabulary:
    """The tokens of a tokenizer that ``apr.data.tokenizer`` made.

    Raises:
        CheckpointError: it is another kind of tokenizer, or damaged.
    """
    path = checkpoint / TOKENIZER
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model, added = raw["model"], raw["added_tokens"]
        ids: dict[str, int] = model["vocab"] | {token["content"]: token["id"] for token in added}
        ours = model["byte_fallback"] and not model["merges"]
        specials = {token["content"] for token in added if token["special"]}
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise CheckpointError(f"{path} is no tokenizer file: {type(e).__name__} {e}") from e
    if not ours or sorted(ids.values()) != list(range(size)):
        raise CheckpointError(
            f"{path} is not one of ours: convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    texts = sorted(ids, key=lambda text: ids[text])
    kinds = [
        _CONTROL
        if text in specials
        else _BYTE
        if re.fullmatch("<0x[0-9A-F]{2}>", text)
        else _NORMAL
        for text in texts
    ]
    return Vocabulary([t.replace(" ", _SPACE) for t in texts], np.array(kinds, np.int32))


def _settings(config: LlamaConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    settings = {
        "general.architecture": "llama",
        "general.file_type": _F32,
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_theta),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": vocabulary.texts,
        "tokenizer.ggml.scores": np.zeros(len(vocabulary.texts), np.float32),
        "tokenizer.ggml.token_type": vocabulary.kinds,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    for name, id in (("bos", config.bos_token_id), ("eos", config.eos_token_id)):
        if id is not None:
            settings[f"tokenizer.ggml.{name}_token_id"] = id
    return settings


def _name(name: str) -> str:
    found = _IN_LAYER.fullmatch(name)
    return f"blk.{found[1]}.{_PARTS[found[2]]}.weight" if found else _ENDS[name]


def _rearranged(name: str, weight: Array, config: LlamaConfig) -> Array:
    """Hugging Face rotates a head's first half with its second, llama.cpp neighbours."""
    num_heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(name.split(".")[-2])
    if num_heads is None:
        return weight
    halves = weight.reshape(num_heads, 2, config.head_dim // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _places(tensors: dict[str, Array]) -> Iterator[bytes]:
    """Where each tensor lies; its fastest axis is named first."""
    offset = 0
    for name, tensor in tensors.items():
        axes = tensor.shape[::-1]
        yield _string(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, _F32, offset)
        offset += len(_padded(tensor.tobytes()))


def _value(value: Any) -> bytes:
    """A setting with its type in front."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _string(value)
        case list():
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    kind = _ARRAYS[value.dtype]
    return struct.pack("<IIQ", 9, kind, len(value)) + bytes(value.tobytes())


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
