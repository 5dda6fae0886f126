"""llama.cpp's server over its native ``/completion``.

Checked against the server within llama-cpp-python 0.3.36. The logprobs it returns are a plain
softmax of the logits, whatever the temperature. It rounds keys and values to 16 bits, which moves
logprobs by some hundredths, unless it runs with ``--cache-type-k f32 --cache-type-v f32
--flash-attn off``. It knows no stop ids and renders control tokens as empty text, so stops are
looked for among the ids that it streams, and the connection is closed at the first one. It says
nothing of a token that ends within a character; a completion with such a token cannot be put
together and is an error. The model's own end of sequence always ends a completion. Each slot of the
server caches its last prefix. ``apr.models.gguf`` writes the file that it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apr.errors import EngineError
from apr.remote.engine import Counted, Exchange, Piece
from apr.remote.http import Http, Json
from apr.types import FinishReason, Ids, Sampling

PORT = 8080
# In the order in which the embedded engine applies them, and nothing else.
_SAMPLERS = ["temperature", "top_k", "top_p"]
_ENDS = {
    "eos": FinishReason.STOP,
    "word": FinishReason.STOP,
    "limit": FinishReason.LENGTH,
}


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """What llama.cpp is asked, and how it replies."""

    context: int
    path: str = "/completion"

    def exchange(self, prompt_ids: Ids, sampling: Sampling, stream: bool) -> Exchange:
        body: Json = {
            "prompt": list(prompt_ids),
            "n_predict": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "samplers": _SAMPLERS,
            "stop": list(sampling.stop_strings),
            "n_probs": 1,
            "return_tokens": True,
            "cache_prompt": True,
            # Streamed in any case: whoever finds the stop must be able to hang up.
            "stream": True,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        return _Exchange(body, sampling.max_tokens)


class _Exchange(Counted):
    server = "llama.cpp"
    hint = "start it with a larger --ctx-size for each slot"

    def read(self, reply: Json) -> Piece:
        ids = reply["tokens"]
        logprobs = [p["logprob"] for p in reply.get("completion_probabilities") or ()]
        if reply["tokens_predicted"] != self.num_read + len(ids):
            raise EngineError(
                "llama.cpp told the ids of some tokens only: it cannot be used for text "
                "with tokens that end within a character"
            )
        return self.piece(ids, logprobs, _ENDS[reply["stop_type"]] if reply["stop"] else None)


def read_server(http: Http) -> tuple[LlamaCpp, dict[str, Any]]:
    """What the server says of itself.

    Raises:
        EngineError: it does not answer, or not as llama.cpp does.
    """
    props = http.ask("/props")
    try:
        context = int(props["default_generation_settings"]["n_ctx"])
        about = {
            "model": str(props.get("model_alias") or props["model_path"]),
            "server": f"llama.cpp {props.get('build_info', '')}".strip(),
        }
    except (LookupError, TypeError, ValueError) as e:
        raise http.misread(f"/props has no {e}") from e
    return LlamaCpp(context), about
