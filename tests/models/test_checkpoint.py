from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from apr.data.tokenizer import EOS, PAD, HFCodec, build_tokenizer
from apr.errors import CheckpointError, StorageError
from apr.models import checkpoint as checkpoints
from apr.models.checkpoint import load_checkpoint, read_config, save_checkpoint, weight_files
from tests.conftest import DiskLimit
from tests.tiny import reference_logits, tiny_config, tiny_model

IDS = torch.tensor([5, 3, 17, 17, 2, 30, 8])
SHAPES = pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
TIED = pytest.mark.parametrize("tied", [False, True])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tiny_model(), tmp_path / "model")
    return tmp_path / "model"


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


@TIED
@SHAPES
def test_weights_and_config_come_back_bit_for_bit(
    tmp_path: Path, tied: bool, num_kv_heads: int
) -> None:
    model = tiny_model(tiny_config(tied, num_kv_heads))
    save_checkpoint(model, tmp_path / "model")
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == tied
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_whoever_may_read_a_new_file_may_read_the_weights(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    save_checkpoint(tiny_model(), tmp_path / "model")
    expected = (tmp_path / "new").stat().st_mode
    assert {f.stat().st_mode for f in (tmp_path / "model").iterdir()} == {expected}


def test_weights_can_be_stored_and_loaded_in_half_the_bits(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(model, tmp_path / "model", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    as_stored = load_checkpoint(tmp_path / "model", dtype=torch.bfloat16).state_dict()
    in_memory = load_checkpoint(tmp_path / "model").state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(as_stored[name], weight.bfloat16())
        assert torch.equal(in_memory[name], weight.bfloat16().float())


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> int:
    """Files for the network to be split into; its largest weight has 3,840 bytes."""
    monkeypatch.setattr(checkpoints, "FILE_BYTES", 10_000)
    return 10_000


def test_weights_are_split_into_files_that_come_back_as_one(
    tmp_path: Path, small_files: int
) -> None:
    model = tiny_model()
    save_checkpoint(model, tmp_path / "model")
    files = weight_files(tmp_path / "model")
    assert [f.name for f in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    held = [load_file(f) for f in files]
    sizes = [sum(w.nbytes for w in part.values()) for part in held]
    assert max(sizes) <= small_files
    assert all(a + b > small_files for a, b in pairwise(sizes)), "none is begun without need"
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes) == 4 * model.num_parameters
    assert index["weight_map"] == {
        n: f.name for f, part in zip(files, held, strict=True) for n in part
    }
    loaded = load_checkpoint(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], w) for name, w in model.state_dict().items())


def test_a_weight_larger_than_a_file_has_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "FILE_BYTES", 1)
    model = tiny_model()
    save_checkpoint(model, tmp_path)
    assert len(weight_files(tmp_path)) == len(list(checkpoints.to_hf(model)))
    loaded = load_checkpoint(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], w) for name, w in model.state_dict().items())


@pytest.mark.usefixtures("small_files")
def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    save_checkpoint(tiny_model(), tmp_path / "model")
    second = weight_files(tmp_path / "model")[1]
    second.unlink()
    refused(tmp_path / "model", f"no {second.name} in")
    for damaged in ("", "[]", "{}", '{"weight_map": [1]}'):
        (tmp_path / "model" / "model.safetensors.index.json").write_text(damaged)
        refused(tmp_path / "model", "model.safetensors.index.json is damaged")


@TIED
@SHAPES
@pytest.mark.parametrize("file_bytes", [10_000, 15_000_000])
def test_transformers_computes_the_same_from_our_files(
    tmp_path: Path, tied: bool, num_kv_heads: int, file_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(checkpoints, "FILE_BYTES", file_bytes)
    model = tiny_model(tiny_config(tied, num_kv_heads))
    save_checkpoint(model, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        expected = theirs(IDS[None]).logits[0]
    torch.testing.assert_close(reference_logits(model, IDS), expected, atol=1e-4, rtol=1e-4)


@TIED
@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_a_checkpoint_that_transformers_made_loads_here(
    tmp_path: Path, tied: bool, max_shard_size: str
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, rms_norm_eps=1e-4,
        tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
    with torch.no_grad():
        expected = theirs(IDS[None]).logits[0]
    logits = reference_logits(load_checkpoint(tmp_path), IDS)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_older_configs_mean_the_same(checkpoint: Path) -> None:
    config = read_config(checkpoint)
    edit_config(checkpoint, rope_scaling="absent", attention_bias="absent", eos_token_id=[1, 7])
    assert read_config(checkpoint) == config
    edit_config(checkpoint, rope_theta="absent", rope_parameters={"rope_theta": 500.0})
    assert read_config(checkpoint) == config
    edit_config(checkpoint, rope_scaling={"type": "default"})
    assert read_config(checkpoint) == config
    edit_config(checkpoint, rms_norm_eps="absent")
    assert read_config(checkpoint) == replace(config, rms_norm_eps=1e-6)
    edit_config(checkpoint, head_dim=None, num_key_value_heads="absent")
    assert (read_config(checkpoint).head_dim, read_config(checkpoint).num_key_value_heads) == (6, 4)


def test_tied_weights_are_those_of_the_embedding_whatever_else_is_there(checkpoint: Path) -> None:
    edit_config(checkpoint, tie_word_embeddings=True)
    stored = load_file(checkpoint / "model.safetensors")
    assert not torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    model = load_checkpoint(checkpoint)
    assert torch.equal(model.embed_tokens.weight, stored["model.embed_tokens.weight"])
    assert model.lm_head.weight is model.embed_tokens.weight


def test_a_checkpoint_carries_its_tokenizer_and_how_it_came_to_be(tmp_path: Path) -> None:
    codec = HFCodec(build_tokenizer([" 1", " 2"], [PAD, EOS], r" ?[0-9]"))
    save_checkpoint(tiny_model(), tmp_path / "model", codec.to_json(), manifest={"steps": 3})
    assert HFCodec.load(tmp_path / "model").fingerprint == codec.fingerprint
    assert json.loads((tmp_path / "model" / "apr.json").read_text()) == {"steps": 3}
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (theirs.eos_token, theirs.model_max_length) == (EOS, 64)
    assert tuple(theirs(" 1 2<|end|>")["input_ids"]) == codec.encode(" 1 2<|end|>")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "has model_type 'gpt2', and only 'llama' can be loaded"),
        ({"model_type": "absent"}, "has model_type None, and only 'llama' can be loaded"),
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu', and only 'silu' can be loaded"),
        ({"attention_bias": True}, "has attention_bias True, and only False can be loaded"),
        ({"rope_scaling": {"type": "linear"}}, "scaled rotary positions, and only plain ones"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "scaled rotary positions"),
        ({"rope_parameters": {"type": "linear", "factor": 4.0}}, "scaled rotary positions"),
        ({"rope_scaling": {"factor": 4.0}}, "scaled rotary positions"),
        ({"vocab_size": 10**13}, "is too large to be made: check its numbers"),
        ({"vocab_size": 10**20}, "is too large to be made: check its numbers"),
        ({"vocab_size": "absent"}, "config.json is not a Llama config"),
        ({"hidden_size": "24"}, "'hidden_size' takes int, not '24'"),
        ({"hidden_size": 0}, "hidden_size is 0: give 1 or more"),
        ({"vocab_size": -3}, "vocab_size is -3"),
        ({"num_attention_heads": 0}, "config.json is not a Llama config"),
        ({"num_key_value_heads": 3}, "give a divisor of num_attention_heads"),
        ({"head_dim": 7}, "head_dim is 7: rotary positions take an even one"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps are to be above 0"),
        ({"vocab_size": 41}, "embed_tokens.weight has shape (40, 24) in place of (41, 24)"),
        ({"num_hidden_layers": 1}, "the network has no model.layers.1."),
        ({"num_hidden_layers": 3}, "lacks the weight 'model.layers.2.input_layernorm.weight'"),
        ({"head_dim": 4}, "qkv_proj.weight has shape (64, 24) in place of (32, 24)"),
    ],
)
def test_a_config_that_does_not_fit_is_told_in_a_sentence(
    checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(checkpoint, **changes)
    refused(checkpoint, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\0"])
def test_a_config_that_is_none_is_told_in_a_sentence(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    refused(checkpoint, "config.json is not a Llama config")


def test_weights_that_are_missing_foreign_or_damaged_are_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    norm = "model.layers.1.input_layernorm.weight"
    edit_weights(checkpoint, lambda weights: weights.pop(norm))
    refused(checkpoint, f"lacks the weight '{norm}'")
    path.write_bytes(whole)
    bias = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(checkpoint, lambda weights: weights.update({bias: torch.zeros(32)}))
    refused(checkpoint, f"the network has no {bias}")
    for damaged in (whole[:-1], whole[:100], b"", b"\xff" * 100):
        path.write_bytes(damaged)
        refused(checkpoint, "model.safetensors is damaged")
    path.unlink()
    refused(checkpoint, "no .safetensors file in")
    refused(checkpoint.parent / "absent", "no checkpoint at")


def refused(directory: Path, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(directory)
    assert message in str(caught.value)
    assert str(directory) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_leaves_the_checkpoint_of_before(
    checkpoint: Path, disk_limit: DiskLimit
) -> None:
    before = load_checkpoint(checkpoint).state_dict()
    with disk_limit(10_000), pytest.raises(StorageError, match=r"cannot write .*/model \("):
        save_checkpoint(tiny_model(seed=1), checkpoint)
    after = load_checkpoint(checkpoint).state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert [p.name for p in checkpoint.parent.iterdir()] == ["model"]
