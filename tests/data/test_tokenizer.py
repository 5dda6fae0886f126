"""Tokenizers of others as codecs: where a context begins and ends, tags that are no tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from apr import Runtime
from apr.data.shards import encode
from apr.data.tokenizer import EOS, PAD, HFCodec, build_tokenizer
from apr.dialects.tags import Tags
from apr.dialects.told import Told, demonstration
from apr.errors import CheckpointError
from apr.testing import ScriptedEngine
from apr.types import Sampling

BEGIN, END = "<|begin|>", "<|over|>"
TEXT = "<spawn><thread>2 + 3?</thread><thread>4 * 5?</thread></spawn><join>5 and 20</join> é"


def byte_level(begins: bool = True) -> Tokenizer:
    """As those of Llama 3: merged bytes, and a mark that it puts before each text by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 10, trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{BEGIN} $0", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
        )
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("end", [f'"{END}"', f'{{"content": "{END}", "lstrip": false}}'])
def test_a_foreign_tokenizer_says_where_a_context_begins_and_ends(folder: Path, end: str) -> None:
    (folder / "tokenizer_config.json").write_text(f'{{"eos_token": {end}}}')
    codec = HFCodec.load(folder)
    assert (codec.bos_id, codec.eos_id) == (codec.vocabulary[BEGIN], codec.vocabulary[END])
    assert codec.decode(codec.encode(TEXT)) == TEXT
    assert codec.bos_id not in codec.encode(TEXT)


def test_what_is_not_told_is_ours_or_nothing(folder: Path) -> None:
    assert HFCodec.load(folder).eos_id is None
    (folder / "tokenizer_config.json").write_text('{"eos_token": null}')
    assert HFCodec.load(folder).eos_id is None
    assert HFCodec(byte_level(begins=False)).bos_id is None
    ours = HFCodec(build_tokenizer([" 1"], [PAD, EOS], " ?[0-9]"))
    assert (ours.bos_id, ours.eos_id) == (None, ours.vocabulary[EOS])


@pytest.mark.parametrize(
    "damaged", ["", "[]", '{"eos_token": {}, "x": 1', '{"eos_token": {"a": 1}}']
)
def test_damaged_settings_are_named(folder: Path, damaged: str) -> None:
    (folder / "tokenizer_config.json").write_text(damaged)
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json is damaged"):
        HFCodec.load(folder)


def test_threads_over_tokens_that_reach_over_tags() -> None:
    """No tag is a token, and some tokens hold the end of one tag and the start of the next."""
    codec = HFCodec(byte_level(), END)
    assert any("><" in word for word in codec.vocabulary)
    script = {
        "2 + 3?": "<spawn><thread>2 + 3?</thread><thread>4 * 5?</thread></spawn>",
        "<thread>2 + 3?</thread>": "so <join>5</join>",
        "<thread>4 * 5?</thread>": "<join>20</join>",
    }
    runtime = Runtime(
        ScriptedEngine(lambda prompt: script.get(prompt, "<join>5 and 20</join>"), codec),
        codec,
        Tags(),
        Sampling(100),
    )
    trace = asyncio.run(runtime.run("2 + 3?"))
    assert [t.join for t in trace.threads] == ["5 and 20", "5", "20"]
    assert all(c.prompt_ids[0] == codec.bos_id for t in trace.threads for c in t.calls)


def test_demonstrations_begin_as_the_runtime_begins() -> None:
    codec = HFCodec(byte_level(), END)
    told = demonstration(Told("2 + 3?", [], "5"), codec)
    ((ids, loss),) = encode(told, codec)
    prompt_ids = (codec.bos_id, *codec.encode("<thread>2 + 3?</thread>"))
    written = codec.encode("<join>5</join>")
    assert ids == [*prompt_ids, *written]
    assert loss == [False] * len(prompt_ids) + [True] * len(written)
