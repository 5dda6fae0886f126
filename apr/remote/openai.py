"""vLLM, and any other endpoint that speaks OpenAI's ``/v1/completions``.

vLLM (checked against 0.32.0) takes ids and tells ids (``return_token_ids``). Its logprobs are those
at temperature 1 whatever the temperature, as long as it runs with its default ``--logprobs-mode
raw_logprobs``. Prefixes are cached by the server in blocks.

Other endpoints are tried when they are connected: whether they take ids or text as the prompt, and
whether they tell ids. Where they tell text only, the ids are what the codec makes of the text,
which need not be the ids that were sampled; logprobs are kept where the two agree token by token,
and left out where they do not. An endpoint that is asked in text (``?text=true``) never meets the
codec's ids, so any codec will do, which then counts tokens in its own way. Which stop ended a
completion is no part of that protocol either, so stops are looked for in the text here. Three
things follow: the endpoint must spell special tokens out if they are to be stops, logprobs are at
temperature 1 only if the endpoint sees to it, and nothing is heard until a completion ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from apr.errors import ConfigError, EngineError, InputError
from apr.interfaces import Codec
from apr.remote.engine import Counted, Exchange, Piece
from apr.remote.http import Http, Json
from apr.types import FinishReason, Ids, Sampling

VLLM_PORT = 8000
_EXTENSIONS: Json = {"return_token_ids": True, "skip_special_tokens": False}


class Abilities(NamedTuple):
    """What an endpoint can do beyond completing text."""

    tells_ids: bool  # in its replies
    takes_ids: bool  # as a prompt
    extensions: bool  # fields beyond the protocol, such as top_k, are not refused
    logprobs: bool


VLLM = Abilities(tells_ids=True, takes_ids=True, extensions=True, logprobs=True)


@dataclass(frozen=True, slots=True)
class Completions:
    """What an endpoint for completions is asked, and how it replies."""

    model: str
    context: int
    path: str
    can: Abilities = VLLM
    codec: Codec | None = None
    """Needed where the endpoint does not tell ids."""

    def exchange(self, prompt_ids: Ids, sampling: Sampling, stream: bool) -> Exchange:
        body: Json = {
            "model": self.model,
            "prompt": list(prompt_ids),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": stream,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if self.can.tells_ids:
            body |= _extended(sampling) | {"logprobs": 0}
            return _IdsExchange(body, sampling.max_tokens)
        return self._text_exchange(body, prompt_ids, sampling)

    def _text_exchange(self, body: Json, prompt_ids: Ids, sampling: Sampling) -> Exchange:
        assert self.codec is not None, "connect asks for one"
        if self.can.extensions:
            # Told a stop, the endpoint would leave it out of the text and not say which it was.
            body |= _extended(sampling) | {"stop_token_ids": [], "stop": [], "ignore_eos": False}
        elif sampling.top_k:
            raise ConfigError("this endpoint takes no top_k: leave it out")
        if self.can.logprobs:
            body["logprobs"] = 1
        if not self.can.takes_ids:
            # The endpoint itself puts the beginning of sequence before a text.
            begun = prompt_ids[0] == self.codec.bos_id
            body["prompt"] = self.codec.decode(prompt_ids[1:] if begun else prompt_ids)
        # Streamed in any case: whoever finds the stop must be able to hang up.
        return _TextExchange(body | {"stream": True}, sampling, self.codec)


class _IdsExchange(Counted):
    hint = "its context is smaller than it says"

    def read(self, reply: Json) -> Piece:
        if not reply["choices"]:
            return Piece((), ())
        choice = reply["choices"][0]
        ids = choice.get("token_ids") or ()
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or ()
        reason = _finish_reason(choice)
        if reason is not None and not self.num_read + len(ids):
            raise LookupError("no token_ids")
        return self.piece(ids, logprobs, reason)


class _TextExchange:
    def __init__(self, body: Json, sampling: Sampling, codec: Codec) -> None:
        self.body = body
        self.codec = codec
        self.text = ""
        self.tokens: list[str] = []
        self.logprobs: list[float] = []
        self.stops = [*sampling.stop_strings, *(codec.decode([i]) for i in sampling.stop_ids)]
        eos = codec.eos_id
        self.end: Ids = (eos,) if eos is not None and eos in sampling.stop_ids else ()

    def read(self, reply: Json) -> Piece:
        if not reply["choices"]:
            return Piece((), ())
        choice = reply["choices"][0]
        self.text += choice.get("text") or ""
        told = choice.get("logprobs") or {}
        self.tokens += told.get("tokens") or ()
        self.logprobs += told.get("token_logprobs") or ()
        reason = _finish_reason(choice)
        cut = first_end(self.text, self.stops)
        if cut is not None:
            return self._whole(self.text[:cut], FinishReason.STOP, hang_up=reason is None)
        if reason is FinishReason.STOP:
            return self._whole(self.text, reason, self.end)
        return self._whole(self.text, reason) if reason else Piece((), ())

    def _whole(
        self, text: str, reason: FinishReason, end: Ids = (), hang_up: bool = False
    ) -> Piece:
        ids = self.codec.encode(text)
        sampled = list(zip(self.tokens, self.logprobs, strict=False))[: len(ids)]
        agree = [t for t, _ in sampled] == [self.codec.decode([i]) for i in ids] and not end
        agree = agree and all(logprob is not None for _, logprob in sampled)
        logprobs = tuple(logprob for _, logprob in sampled) if agree else ()
        return Piece(ids + end, logprobs, reason, hang_up)


def first_end(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop in ``text`` to be complete ends."""
    ends = [text.index(s) + len(s) for s in stops if s in text]
    return min(ends, default=None)


def read_vllm(http: Http, model: str | None) -> tuple[Completions, dict[str, Any]]:
    """What the server says of itself.

    Raises:
        EngineError: it does not answer, or not as vLLM does.
        ConfigError: it does not serve ``model``.
    """
    served = _served(http, "/v1/models", model)
    try:
        context, version = int(served["max_model_len"]), str(http.ask("/version")["version"])
    except (LookupError, TypeError, ValueError) as e:
        raise http.misread(f"/v1/models or /version has no {e}") from e
    about = {"model": served["id"], "server": f"vllm {version}"}
    return Completions(served["id"], context, "/v1/completions"), about


def read_endpoint(
    http: Http,
    model: str | None,
    context: int | None,
    codec: Codec | None,
    in_text: bool = False,
) -> tuple[Completions, dict[str, Any]]:
    """What the endpoint says of itself, and what it can do.

    Args:
        in_text: ask and hear in text, whatever else it can do.

    Raises:
        EngineError: it does not answer, or not as such an endpoint does.
        ConfigError: it does not serve ``model``, or does not say what must be known.
    """
    served = _served(http, "/models", model)
    context = served.get("max_model_len") or context
    if not isinstance(context, int):
        raise ConfigError(f"{http.name} does not tell its context: add ?context=N to its address")
    can = _try(http, served["id"], codec, in_text)
    if not can.tells_ids and codec is None:
        raise ConfigError(f"{http.name} tells text and no ids: give the engine a codec")
    about = {"model": served["id"], "server": "openai", "tells_ids": can.tells_ids}
    return Completions(served["id"], context, "/completions", can, codec), about


def _served(http: Http, path: str, model: str | None) -> Json:
    """The entry of ``model``, or of the first there is, in the list of models."""
    try:
        models = {str(entry["id"]): entry for entry in http.ask(path)["data"]}
    except (LookupError, TypeError) as e:
        raise http.misread(f"{path} has no {e}") from e
    if not models:
        raise EngineError(f"{http.name} serves no model: start it with one")
    if model is not None and model not in models:
        raise ConfigError(
            f"{http.name} serves {', '.join(models)} and no {model!r}: name one of those"
        )
    entry: Json = models[model or next(iter(models))]
    return entry


def _try(http: Http, model: str, codec: Codec | None, in_text: bool) -> Abilities:
    """Sample one token in ways that ask for less and less, until one is not refused."""
    text = "1"
    ids = text if in_text else list(codec.encode(text)) if codec else [1]
    plain: Json = {"model": model, "max_tokens": 1, "temperature": 0.0}
    ways: list[Json] = [
        plain | {"prompt": ids, "logprobs": 1} | _EXTENSIONS,
        plain | {"prompt": ids, "logprobs": 1},
        plain | {"prompt": text, "logprobs": 1},
        plain | {"prompt": text},
    ]
    refusals: list[InputError] = []
    for body in ways:
        try:
            (choice,) = http.ask("/completions", body, http.config.seconds)["choices"]
            return Abilities(
                tells_ids=not in_text and bool(choice.get("token_ids")),
                takes_ids=isinstance(body["prompt"], list),
                extensions="return_token_ids" in body,
                logprobs="logprobs" in body and bool(choice.get("logprobs")),
            )
        except InputError as e:
            refusals.append(e)
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            raise http.misread(f"/completions has no {e}") from e
    raise refusals[-1]


def _extended(sampling: Sampling) -> Json:
    return {
        **_EXTENSIONS,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop": list(sampling.stop_strings),
        "stop_token_ids": list(sampling.stop_ids),
        # The end of sequence is a stop where it is among the stops.
        "ignore_eos": bool(sampling.stop_ids),
        "spaces_between_special_tokens": False,
    }


def _finish_reason(choice: Json) -> FinishReason | None:
    told = choice.get("finish_reason")
    if told in (None, ""):
        return None
    if told not in ("stop", "length"):
        raise EngineError(f"the server ended the request: {told}")
    return FinishReason(told)
