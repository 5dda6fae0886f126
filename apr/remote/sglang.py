"""SGLang over its native ``/generate``: ids in, ids out.

Checked against SGLang 0.5.23. The logprobs it returns are those of the distribution divided by the
temperature, before top_p and top_k, unless the server runs with SGLANG_RETURN_ORIGINAL_LOGPROB=1
(``launch`` sees to it). Without that they are left out at temperatures other than 0 and 1. A seed
has an effect on servers that run with --enable-deterministic-inference only. The model's own end of
sequence always ends a completion. Prefixes are cached by the server, token by token. It does not
look at the ids it is given: one outside of the model's vocabulary ends the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.errors import EngineError
from apr.remote.engine import Counted, Exchange, Piece
from apr.remote.http import Http, Json
from apr.types import FinishReason, Ids, Sampling

PORT = 30000
_UNCHANGED = {"min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class SGLang:
    """What SGLang is asked, and how it replies."""

    context: int
    original_logprobs: bool
    """Whether its logprobs are those at temperature 1 whatever the temperature."""
    path: str = "/generate"

    def exchange(self, prompt_ids: Ids, sampling: Sampling, stream: bool) -> Exchange:
        exact = self.original_logprobs or sampling.temperature in (0.0, 1.0)
        body = {
            "input_ids": list(prompt_ids),
            "sampling_params": _sampling_params(sampling),
            "return_logprob": exact,
            "stream": stream,
        }
        return _Exchange(body, sampling.max_tokens)


class _Exchange(Counted):
    server = "SGLang"
    hint = "its memory for keys and values is smaller than its context"

    def read(self, reply: Json) -> Piece:
        ids, meta = reply["output_ids"], reply["meta_info"]
        logprobs = [entry[0] for entry in meta.get("output_token_logprobs") or ()]
        # Streamed pieces repeat all that came before, unless the server was told otherwise.
        if len(ids) == meta["completion_tokens"]:
            ids, logprobs = ids[self.num_read :], logprobs[self.num_read :]
        return self.piece(ids, logprobs, _finish_reason(meta.get("finish_reason")))


def read_server(http: Http) -> tuple[SGLang, dict[str, Any]]:
    """What the server says of itself, and what it can do.

    Raises:
        EngineError: it does not answer, or not as SGLang does.
    """
    info = http.ask("/server_info")
    try:
        # Prompts must be shorter than this; of the model's context, six are the server's own.
        context = int(info["max_req_input_len"])
        about = {"model": str(info["served_model_name"]), "server": f"sglang {info['version']}"}
    except (LookupError, TypeError, ValueError) as e:
        raise http.misread(f"/server_info has no {e}") from e
    return SGLang(context, _tells_original_logprobs(http)), about


def update_weights(http: Http, checkpoint: Path) -> None:
    """Have the server take its weights from ``checkpoint``, a folder that it can read.

    Call it between requests: those under way would go on with the new weights. What the server
    cached of the old ones is forgotten.

    Raises:
        InputError: the server refuses, for instance weights of another shape.
        EngineError: it failed.
    """
    body = {"model_path": str(checkpoint.resolve()), "flush_cache": True}
    reply = http.ask("/update_weights_from_disk", body, http.config.seconds)
    if not (isinstance(reply, dict) and reply.get("success") is True):
        raise EngineError(f"{http.name} did not take the weights of {checkpoint}: {reply}")


def _sampling_params(sampling: Sampling) -> Json:
    params: Json = {
        **_UNCHANGED,
        "max_new_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "stop_token_ids": list(sampling.stop_ids),
        "stop": list(sampling.stop_strings),
        # It would ignore the stop ids, too.
        "ignore_eos": False,
        # A stop string that spells a special token could not be found in a text without them.
        "skip_special_tokens": False,
    }
    if sampling.seed is not None:
        params["sampling_seed"] = sampling.seed
    return params


def _finish_reason(told: Any) -> FinishReason | None:
    if told is None:
        return None
    if told["type"] == "abort":
        raise EngineError(f"SGLang aborted the request: {told.get('message') or 'no reason given'}")
    return FinishReason(told["type"])


def _tells_original_logprobs(http: Http) -> bool:
    """Ask for the logprob of one id at two temperatures: equal ones are not divided by them."""

    def logprob(temperature: float) -> float:
        params = {"temperature": temperature, "max_new_tokens": 1, **_UNCHANGED}
        reply = http.ask(
            "/generate",
            {
                "input_ids": [2, 3],
                "sampling_params": params,
                "return_logprob": True,
                "token_ids_logprob": [2],
            },
            http.config.seconds,
        )
        return float(reply["meta_info"]["output_token_ids_logprobs"][0][0][0])

    try:
        return abs(logprob(1.0) - logprob(4.0)) < 1e-3
    except (LookupError, TypeError, ValueError) as e:
        raise http.misread(f"/generate has no {e}") from e
