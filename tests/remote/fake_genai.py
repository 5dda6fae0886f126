"""OpenVINO GenAI as far as the engine over it goes: a token of each request in every step."""

from __future__ import annotations

from collections import deque
from enum import Enum
from types import SimpleNamespace
from typing import Any

GenerationStatus = Enum("GenerationStatus", "RUNNING IGNORED")
GenerationFinishReason = Enum("GenerationFinishReason", "NONE LENGTH")
GenerationConfig = type("GenerationConfig", (), {"set_eos_token_id": lambda self, id: None})
SchedulerConfig = type("SchedulerConfig", (), {})
openvino = SimpleNamespace(Tensor=lambda ids: ids)


class Handle:
    """A request: its ids count up from 0."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.num_sampled = 0
        self.unread: deque[Any] = deque()

    @property
    def goes_on(self) -> bool:
        return self.num_sampled < self.num_tokens

    def sample(self) -> None:
        id = self.num_sampled
        self.num_sampled += 1
        reason = GenerationFinishReason["NONE" if self.goes_on else "LENGTH"]
        told = SimpleNamespace(generated_ids=[id], generated_log_probs=[-1.0], finish_reason=reason)
        self.unread.append(told)

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> dict[int, Any]:
        return {0: self.unread.popleft()}

    def get_status(self) -> GenerationStatus:
        return GenerationStatus.RUNNING

    def cancel(self) -> None:
        self.num_tokens = self.num_sampled


class ContinuousBatchingPipeline:
    def __init__(self, *settings: object) -> None:
        self.handles: list[Handle] = []

    def add_request(self, number: int, prompt: object, asked: Any) -> Handle:
        self.handles.append(Handle(asked.max_new_tokens))
        return self.handles[-1]

    def has_non_finished_requests(self) -> bool:
        return any(handle.goes_on for handle in self.handles)

    def step(self) -> None:
        for handle in self.handles:
            if handle.goes_on:
                handle.sample()
