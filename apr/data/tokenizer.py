"""Hugging Face `tokenizers` files made for a task, and the codec that the runtime speaks to.

A task names its words; every word is one token, special words are special tokens, and whatever is
no word falls back to bytes, so that any text survives ``decode(encode(text))``. Knows no task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from apr.errors import CheckpointError
from apr.types import Ids

PAD, EOS = "<|pad|>", "<|end|>"


def build_tokenizer(words: Sequence[str], specials: Sequence[str], pattern: str) -> Tokenizer:
    """One token per word.

    Args:
        words: texts of the ordinary tokens.
        specials: texts of the special tokens; PAD and EOS must be among them.
        pattern: regular expression that cuts text into words.
    """
    texts = [*specials, *words, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    model = models.BPE(vocab=vocabulary, merges=[], ignore_merges=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return tokenizer


class HFCodec:
    """A `tokenizers` tokenizer as ``apr.interfaces.Codec``."""

    def __init__(self, tokenizer: Tokenizer, eos: str = EOS) -> None:
        """
        Args:
            eos: text of the token that ends a sequence, where the tokenizer has it.
        """
        self.tokenizer = tokenizer
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.specials = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
        self.bos_id = _bos_id(tokenizer)
        self.eos_id = self.vocabulary.get(eos)

    @staticmethod
    def load(directory: Path) -> HFCodec:
        """Read ``tokenizer.json`` of a checkpoint, and its end from ``tokenizer_config.json``.

        Raises:
            CheckpointError: missing or damaged.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"no tokenizer.json in {directory}: name a whole checkpoint")
        eos = _eos(directory / "tokenizer_config.json")
        try:
            return HFCodec(Tokenizer.from_file(str(path)), eos)
        # The library raises bare Exception for a file it cannot parse.
        except Exception as e:
            raise CheckpointError(f"{path} is no tokenizer file: {e}") from e

    def encode(self, text: str) -> Ids:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """As ``encode("".join(pieces))``, for pieces cut where the tokenizer cuts; much quicker."""
        known = self.vocabulary
        try:
            return [known[p] for p in pieces]
        except KeyError:
            return [i for p in pieces for i in ((known[p],) if p in known else self.encode(p))]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def token_id(self, text: str) -> int | None:
        return self.vocabulary.get(text) if text in self.specials else None

    @property
    def pad_id(self) -> int:
        return self.vocabulary[PAD]

    @property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def to_json(self) -> str:
        text: str = self.tokenizer.to_str(pretty=False)
        return text

    @property
    def fingerprint(self) -> str:
        """Hash of the vocabulary; data and checkpoints carry it so that they cannot be mixed up."""
        entries = sorted(self.vocabulary.items(), key=lambda e: e[1])
        return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


def _bos_id(tokenizer: Tokenizer) -> int | None:
    """What the tokenizer puts before a text by itself, if anything."""
    plain, marked = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    return None if marked[: len(plain)] == plain else int(marked[0])


def _eos(path: Path) -> str:
    """What the settings of a tokenizer say that a sequence ends with; ours where nothing does."""
    if not path.is_file():
        return EOS
    try:
        told = json.loads(path.read_text(encoding="utf-8")).get("eos_token") or EOS
        return str(told["content"] if isinstance(told, dict) else told)
    except (ValueError, KeyError, AttributeError) as e:
        raise CheckpointError(f"{path} is damaged ({e}): copy the checkpoint again") from e
