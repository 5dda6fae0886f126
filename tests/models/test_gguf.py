"""GGUF files, read back by what its specification says."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pytest
import torch

import apr
from apr.data.tokenizer import EOS, PAD, build_tokenizer
from apr.errors import CheckpointError, ConfigError
from apr.models.checkpoint import load_checkpoint, read_config, save_checkpoint, to_hf
from apr.models.gguf import save_gguf
from apr.models.llama import Llama, LlamaConfig
from tests.conftest import Run

NUMBERS = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}
CONFIG = LlamaConfig(
    vocab_size=261,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    rope_theta=5000.0,
    eos_token_id=1,
)


class Read(NamedTuple):
    settings: dict[str, Any]
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def read_gguf(path: Path) -> Read:
    with path.open("rb") as f:
        magic, version, num_tensors, num_settings = struct.unpack("<4sIQQ", f.read(24))
        assert (magic, version) == (b"GGUF", 3)
        settings = {read_string(f): read_value(f, take(f, "<I")) for _ in range(num_settings)}
        places = [read_place(f) for _ in range(num_tensors)]
        start = math.ceil(f.tell() / 32) * 32
    data = path.read_bytes()
    tensors = {}
    for name, shape, offset in places:
        assert offset % 32 == 0
        flat = np.frombuffer(data, "<f4", math.prod(shape), start + offset)
        tensors[name] = flat.reshape(shape)
    assert len(data) % 32 == 0
    return Read(settings, tensors)


def take(f: BinaryIO, form: str) -> Any:
    return struct.unpack(form, f.read(struct.calcsize(form)))[0]


def read_string(f: BinaryIO) -> str:
    return f.read(take(f, "<Q")).decode()


def read_value(f: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return read_string(f)
    if kind == 9:
        of = take(f, "<I")
        return [read_value(f, of) for _ in range(take(f, "<Q"))]
    return take(f, NUMBERS[kind])


def read_place(f: BinaryIO) -> tuple[str, tuple[int, ...], int]:
    name = read_string(f)
    axes = [take(f, "<Q") for _ in range(take(f, "<I"))]
    assert take(f, "<I") == 0, "all are float32"
    return name, tuple(reversed(axes)), take(f, "<Q")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer([" 12", " ", "é"], [PAD, EOS], " ?[0-9]+|.")
    save_checkpoint(Llama(CONFIG), tmp_path / "c", tokenizer.to_str(), dtype=torch.bfloat16)
    return tmp_path / "c"


def test_all_of_a_checkpoint_is_in_it(checkpoint: Path, tmp_path: Path) -> None:
    save_gguf(checkpoint, tmp_path / "c.gguf")
    settings, tensors = read_gguf(tmp_path / "c.gguf")
    assert settings["general.architecture"] == "llama"
    assert settings["llama.context_length"] == 64
    assert settings["llama.attention.head_count_kv"] == 2
    assert settings["llama.attention.key_length"] == 16
    assert settings["llama.rope.freq_base"] == 5000.0
    assert settings["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert settings["tokenizer.ggml.eos_token_id"] == 1
    assert settings["tokenizer.ggml.add_bos_token"] is False
    weights = {n: w.detach().numpy() for n, w in to_hf(load_checkpoint(checkpoint))}
    assert len(tensors) == len(weights)
    same = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
        "model.layers.1.self_attn.o_proj.weight": "blk.1.attn_output.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }
    for theirs, ours in same.items():
        np.testing.assert_array_equal(tensors[ours], weights[theirs])


def test_tokens_are_spelled_as_llama_cpp_spells_them(checkpoint: Path, tmp_path: Path) -> None:
    save_gguf(checkpoint, tmp_path / "c.gguf")
    settings = read_gguf(tmp_path / "c.gguf").settings
    texts, kinds = settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.token_type"]
    assert list(zip(texts, kinds, strict=True))[:6] == [
        (PAD, 3),
        (EOS, 3),
        ("▁12", 1),
        ("▁", 1),
        ("é", 1),
        ("<0x00>", 6),
    ]
    assert len(texts) == len(settings["tokenizer.ggml.scores"]) == 261
    assert kinds.count(6) == 256


def rotated(x: torch.Tensor, position: int, neighbours: bool) -> torch.Tensor:
    """A head's vector at a position: each dimension turned with its neighbour, or with the one
    half a head away."""
    size = len(x)
    angles = position * 5000.0 ** (-torch.arange(0, size, 2) / size)
    pairs = x.reshape(-1, 2) if neighbours else x.reshape(2, -1).T
    a, b = pairs[:, 0], pairs[:, 1]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten()


def test_attention_is_the_same_where_neighbours_are_rotated(
    checkpoint: Path, tmp_path: Path
) -> None:
    save_gguf(checkpoint, tmp_path / "c.gguf")
    tensors = read_gguf(tmp_path / "c.gguf").tensors
    weights = dict(to_hf(load_checkpoint(checkpoint)))
    x, y = torch.randn(2, 32)

    def score(q: torch.Tensor, k: torch.Tensor, neighbours: bool) -> Iterator[float]:
        for head in range(4):
            query = (q @ x).reshape(4, 16)[head]
            key = (k @ y).reshape(2, 16)[head // 2]
            turned = rotated(query, 9, neighbours) @ rotated(key, 4, neighbours)
            yield float(turned)

    hf = [weights[f"model.layers.1.self_attn.{p}_proj.weight"].detach() for p in "qk"]
    gguf = [torch.tensor(tensors[f"blk.1.attn_{p}.weight"]) for p in "qk"]
    want = list(score(*hf, False))
    assert list(score(*gguf, True)) == pytest.approx(want, rel=1e-4)
    assert list(score(*hf, True)) != pytest.approx(want, rel=1e-4)


def test_a_tokenizer_of_others_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["byte_fallback"] = False
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"not one of ours.*convert_hf_to_gguf"):
        save_gguf(checkpoint, tmp_path / "c.gguf")
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="is no tokenizer file"):
        save_gguf(checkpoint, tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()


def test_the_command_line_writes_it(tmp_path: Path, run: Run) -> None:
    ran = run("engine", "gguf", apr.DEMO, tmp_path / "demo.gguf")
    assert (ran.code, ran.err) == (0, "")
    assert f"llama-server --model {tmp_path / 'demo.gguf'}" in ran.out
    settings = read_gguf(tmp_path / "demo.gguf").settings
    assert settings["llama.block_count"] == read_config(apr.DEMO).num_hidden_layers
    ran = run("engine", "gguf", tmp_path / "nothing", tmp_path / "other.gguf")
    assert (ran.code, ran.out) == (2, "")
    assert "no checkpoint at" in ran.err
    assert not (tmp_path / "other.gguf").exists()


def test_what_writes_it_is_an_extra(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'apr\[llamacpp\]'"):
        save_gguf(checkpoint, tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()
