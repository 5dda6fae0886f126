"""A checkpoint as llama.cpp reads it: one GGUF file, in float32 (extra ``llamacpp``).

llama.cpp's own converter knows the tokenizers of published models. Ours are made for a task, one
token a word, and are written here as what llama.cpp calls an SPM vocabulary, from which it spells
tokens as we do. It cuts text otherwise than we do, so send it ids.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from apr.errors import CheckpointError, ConfigError
from apr.files import new_file
from apr.models.checkpoint import TOKENIZER, load_checkpoint, to_hf
from apr.models.llama import LlamaConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter

Array = npt.NDArray[np.float32]

_NORMAL, _CONTROL, _BYTE = 1, 3, 6
_SPACE = "▁"


class Vocabulary(NamedTuple):
    """Tokens by id."""

    texts: list[str]
    kinds: list[int]


def save_gguf(checkpoint: Path, path: Path) -> None:
    """Write the checkpoint in the folder ``checkpoint`` to the file ``path``.

    Raises:
        CheckpointError: it cannot be read, or its tokenizer is not one of ours.
        ConfigError: the extra is not installed.
        StorageError: the disk is full, or the file may not be written.
    """
    try:
        from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
    except ImportError as e:
        raise ConfigError(
            f"GGUF files cannot be written ({e}): install it with pip install 'apr[llamacpp]'"
        ) from e
    network = load_checkpoint(checkpoint)
    config = network.config
    vocabulary = read_vocabulary(checkpoint, config.vocab_size)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with new_file(path) as tmp:
        writer = GGUFWriter(tmp, "llama")
        _add_settings(writer, config, vocabulary)
        for name, weight in to_hf(network):
            told = names.get_name(name, try_suffixes=(".weight",))
            assert told is not None, f"{name} has no name in GGUF"
            writer.add_tensor(told, _rearranged(name, weight.detach().float().numpy(), config))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


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
    return Vocabulary([t.replace(" ", _SPACE) for t in texts], kinds)


def _add_settings(writer: GGUFWriter, config: LlamaConfig, vocabulary: Vocabulary) -> None:
    writer.add_file_type(0)  # all in float32
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary.texts)
    writer.add_token_scores([0.0] * len(vocabulary.texts))
    writer.add_token_types(vocabulary.kinds)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    if config.eos_token_id is not None:
        writer.add_eos_token_id(config.eos_token_id)


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
