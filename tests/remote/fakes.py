"""In-process fakes of the servers' APIs, on real sockets, since sockets dying is what is tested.

Each answers as the real one was seen to. What a fake samples, a function of the prompt says.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from apr.testing import ByteCodec, ScriptedEngine

Json = dict[str, Any]
Sampler = Callable[[tuple[int, ...]], Sequence[int]]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    status: int | None = None
    """Replied with, in place of a completion."""
    body: bytes | None = None
    """Replied as it is, in place of a completion."""
    after: int | None = None
    """Tokens after which the connection is reset."""
    error: str | None = None
    """Told within the reply, after the first token."""
    code: int = 500
    """Told with an error."""
    reason: str | None = None
    """Told as why it ended, in place of the truth."""
    garbled: bool = False
    """Its body is not of the encoding that its head says."""


@dataclass
class Asked:
    """What a request wants, in any API."""

    prompt: tuple[int, ...]
    max_tokens: int
    stop_ids: Sequence[int] = ()
    stops: Sequence[str] = ()
    stream: bool = False
    temperature: float = 0.0


@dataclass
class Fake:
    """A server that can be killed, brought back on its port, and made to fail."""

    sample: Sampler
    codec: ByteCodec = field(default_factory=ByteCodec)
    context: int = 4096
    delay: float = 0.0
    """Seconds before each token."""
    key: str | None = None
    bodies: list[Json] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    num_connections: int = 0
    num_active: int = 0
    most_active: int = 0
    num_hung_up: int = 0
    """Requests whose client went away before the end."""
    port: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    scheme = ""
    completion_path = ""

    def __enter__(self) -> Fake:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.revive()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self.call(self._drain())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(100)

    def die(self) -> None:
        """No more listening, and every connection is reset."""
        self.call(self._die())

    def revive(self) -> None:
        self.call(self._listen())

    async def _listen(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _die(self) -> None:
        # Whoever is half accepted when asyncio closes a server is left hanging: let them in first.
        for listener in self.server.sockets:
            self.loop.remove_reader(listener.fileno())
        await asyncio.sleep(0.02)
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _drain(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers.discard(writer)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when there are no more."""
        line = await reader.readline()
        if not line:
            return False
        method, path, _ = line.decode().split()
        headers: dict[str, str] = {}
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            _send(writer, 401, {"error": {"message": "no key, no answer"}})
        elif method == "POST" and path == self.completion_path:
            await self._complete(json.loads(data), reader, writer)
        else:
            found = self.other(path, json.loads(data) if data else None)
            _send(writer, *(found or (404, {"detail": "Not Found"})))
        await writer.drain()
        return True

    async def _complete(
        self, body: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.bodies.append(body)
        self.num_active += 1
        self.most_active = max(self.most_active, self.num_active)
        try:
            await self._complete_or_fail(body, reader, writer)
        except ConnectionError:
            self.num_hung_up += 1
            raise
        finally:
            self.num_active -= 1

    async def _complete_or_fail(
        self, body: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        fault = self.faults.popleft() if self.faults else Fault()
        if fault.status is not None or fault.body is not None:
            error = {"message": "as the test wants it", "code": fault.code}
            return _send(writer, fault.status or 200, fault.body or {"error": error})
        if fault.garbled:
            return _send(writer, 200, {}, "gzip")
        refusal = self.refusal(body)
        if refusal is not None:
            return _send(writer, 400, {"error": {"message": refusal}})
        asked = self.read(body)
        ids: list[int] = []
        reason = None
        async for id, reason in self._sampled(asked):
            if reason is not None:
                reason = fault.reason or reason
            ids.append(id)
            if fault.after is not None and len(ids) > fault.after:
                writer.transport.abort()
                return
            if reader.at_eof() or reader.exception():
                self.num_hung_up += 1
                writer.transport.abort()
                return
            if asked.stream:
                if len(ids) == 1:
                    _send_head(writer)
                for event in self.events(asked, ids, reason):
                    _send_event(writer, event)
                if fault.error is not None:
                    _send_event(writer, {"error": {"message": fault.error, "code": fault.code}})
                await writer.drain()
        if asked.stream:
            _send_end(writer)
        else:
            _send(writer, 200, self.whole(asked, ids, reason))

    async def _sampled(self, asked: Asked) -> AsyncIterator[tuple[int, str | None]]:
        """Each id, and with the last the reason why it is the last."""
        ids = list(self.sample(asked.prompt))[: asked.max_tokens]
        text = b""
        for i, id in enumerate(ids):
            await asyncio.sleep(self.delay)
            text += self.codec.decode([id]).encode()
            stopped = id in asked.stop_ids or any(s.encode() in text for s in asked.stops)
            if stopped or i == len(ids) - 1:
                # The sampler's last id is taken for the model's end of sequence.
                yield id, "stop" if stopped or len(ids) < asked.max_tokens else "length"
                return
            yield id, None

    def logprobs(self, asked: Asked, ids: Sequence[int]) -> list[float]:
        return [ScriptedEngine.logprob(i) for i in ids]

    def refusal(self, body: Json) -> str | None:
        return None

    def read(self, body: Json) -> Asked:
        raise NotImplementedError

    def events(self, asked: Asked, ids: Sequence[int], reason: str | None) -> list[Json]:
        """What is sent once the last of ``ids`` is sampled."""
        raise NotImplementedError

    def whole(self, asked: Asked, ids: Sequence[int], reason: str | None) -> Json:
        raise NotImplementedError

    def other(self, path: str, body: Json | None) -> tuple[int, Any] | None:
        raise NotImplementedError


class FakeSGLang(Fake):
    scheme = "sglang"
    completion_path = "/generate"
    original = True
    """As with SGLANG_RETURN_ORIGINAL_LOGPROB=1."""
    incremental = False
    """As with --incremental-streaming-output."""
    weights: tuple[int, Json] = (200, {"success": True, "message": "Succeeded to update"})
    updates: tuple[Json, ...] = ()

    def read(self, body: Json) -> Asked:
        p = body["sampling_params"]
        asked = Asked(
            tuple(body["input_ids"]),
            p["max_new_tokens"],
            p.get("stop_token_ids", ()),
            p.get("stop", ()),
            body.get("stream", False),
            p["temperature"],
        )
        self.asked_logprobs = body.get("return_logprob", False)
        self.asked_ids = body.get("token_ids_logprob")
        return asked

    def logprobs(self, asked: Asked, ids: Sequence[int]) -> list[float]:
        divisor = 1.0 if self.original else asked.temperature or 1.0
        return [lp / divisor for lp in super().logprobs(asked, ids)]

    def events(self, asked: Asked, ids: Sequence[int], reason: str | None) -> list[Json]:
        told = self.whole(asked, ids, reason)
        if self.incremental:
            told["output_ids"] = told["output_ids"][-1:]
            if "output_token_logprobs" in told["meta_info"]:
                del told["meta_info"]["output_token_logprobs"][:-1]
        return [told]

    def whole(self, asked: Asked, ids: Sequence[int], reason: str | None) -> Json:
        meta: Json = {
            "completion_tokens": len(ids),
            "finish_reason": {"type": reason, "matched": ids[-1]} if reason else None,
        }
        if self.asked_logprobs:
            pairs = zip(self.logprobs(asked, ids), ids, strict=True)
            meta["output_token_logprobs"] = [[lp, id, None] for lp, id in pairs]
        if self.asked_ids:
            pairs = zip(self.logprobs(asked, self.asked_ids), self.asked_ids, strict=True)
            meta["output_token_ids_logprobs"] = [[[lp, id, None] for lp, id in pairs]]
        return {"text": "", "output_ids": list(ids), "meta_info": meta}

    def other(self, path: str, body: Json | None) -> tuple[int, Any] | None:
        if path == "/server_info":
            limit = self.context
            return 200, {"max_req_input_len": limit, "served_model_name": "m", "version": "0.5.23"}
        if path == "/update_weights_from_disk" and body is not None:
            self.updates += (body,)
            return self.weights
        return None


class FakeVLLM(Fake):
    scheme = "vllm"
    completion_path = "/v1/completions"
    tells_ids = True

    def refusal(self, body: Json) -> str | None:
        if len(body["prompt"]) + body["max_tokens"] > self.context:
            return f"This model's maximum context length is {self.context} tokens."
        return None

    def read(self, body: Json) -> Asked:
        return Asked(
            tuple(body["prompt"]),
            body["max_tokens"],
            body["stop_token_ids"],
            body["stop"],
            body["stream"],
        )

    def events(self, asked: Asked, ids: Sequence[int], reason: str | None) -> list[Json]:
        return [self.whole(asked, ids[-1:], reason)]

    def whole(self, asked: Asked, ids: Sequence[int], reason: str | None) -> Json:
        choice: Json = {
            "text": self.codec.decode(ids),
            "finish_reason": reason,
            "logprobs": {"token_logprobs": self.logprobs(asked, ids)},
        }
        if self.tells_ids:
            choice["token_ids"] = list(ids)
        return {"choices": [choice]}

    def other(self, path: str, body: Json | None) -> tuple[int, Any] | None:
        if path == "/v1/models":
            return 200, {"data": [{"id": "m", "max_model_len": self.context}]}
        return (200, {"version": "0.32.0"}) if path == "/version" else None


class FakeLlamaCpp(Fake):
    scheme = "llamacpp"
    completion_path = "/completion"
    hides: frozenset[int] = frozenset()
    """Ids of which it says nothing, as of tokens that end within a character."""

    def read(self, body: Json) -> Asked:
        assert body["return_tokens"]
        return Asked(tuple(body["prompt"]), body["n_predict"], (), body["stop"], body["stream"])

    def events(self, asked: Asked, ids: Sequence[int], reason: str | None) -> list[Json]:
        last = ids[-1]
        probs = [{"id": last, "logprob": ScriptedEngine.logprob(last)}]
        told = {"tokens": [last], "stop": False, "tokens_predicted": len(ids)}
        events = [told | {"completion_probabilities": probs}] if last not in self.hides else []
        if reason is not None:
            kind = {"length": "limit", "stop": "eos"}.get(reason, reason)
            end = {"tokens": [], "stop": True, "tokens_predicted": len(ids), "stop_type": kind}
            events.append(end)
        return events

    def other(self, path: str, body: Json | None) -> tuple[int, Any] | None:
        if path != "/props":
            return None
        settings = {"n_ctx": self.context}
        return 200, {"default_generation_settings": settings, "model_path": "m.gguf"}


class FakeOpenAI(Fake):
    """An endpoint that tells text; by default it takes ids and refuses every extension."""

    scheme = "openai"
    completion_path = "/v1/completions"
    takes_ids = True
    takes_extensions = False
    tells_ids = False
    tells_logprobs = True
    split: Callable[[str], list[str]] = staticmethod(list)
    """How it cuts text into the tokens whose logprobs it tells."""

    def refusal(self, body: Json) -> str | None:
        if not self.takes_extensions and "return_token_ids" in body:
            return "Unrecognized request argument: return_token_ids"
        if not self.takes_ids and not isinstance(body["prompt"], str):
            return "prompt must be a string"
        return None

    def read(self, body: Json) -> Asked:
        prompt = body["prompt"]
        ids = self.codec.encode(prompt) if isinstance(prompt, str) else tuple(prompt)
        return Asked(ids, body["max_tokens"], stream=body.get("stream", False))

    def events(self, asked: Asked, ids: Sequence[int], reason: str | None) -> list[Json]:
        return [self.whole(asked, ids[-1:], reason)]

    def whole(self, asked: Asked, ids: Sequence[int], reason: str | None) -> Json:
        text = self.codec.decode([i for i in ids if i != self.codec.eos_id])
        choice: Json = {"text": text, "finish_reason": reason, "logprobs": None}
        if self.tells_ids:
            choice["token_ids"] = list(ids)
        if self.tells_logprobs:
            tokens = [text] if text in self.codec.specials else self.split(text)
            choice["logprobs"] = {
                "tokens": tokens,
                "token_logprobs": [ScriptedEngine.logprob(self.codec.encode(t)[0]) for t in tokens],
            }
        return {"choices": [choice]}

    def other(self, path: str, body: Json | None) -> tuple[int, Any] | None:
        return (200, {"data": [{"id": "m"}, {"id": "n"}]}) if path == "/v1/models" else None

    @property
    def address(self) -> str:
        return f"{super().address}?context={self.context}"


def _send(
    writer: asyncio.StreamWriter, status: int, answer: Any, encoding: str = "identity"
) -> None:
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Encoding: {encoding}\r\n"
    )
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)


def _send_head(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )


def _send_event(writer: asyncio.StreamWriter, event: Json) -> None:
    data = f"data: {json.dumps(event)}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _send_end(writer: asyncio.StreamWriter) -> None:
    data = b"data: [DONE]\n\n"
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n")
