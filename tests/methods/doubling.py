"""A task that fits on a line: twice a number."""

from __future__ import annotations

from typing import Any

from apr.types import Grade


class Doubling:
    def prompt(self, problem: int) -> str:
        return f"{problem}?"

    def answer(self, message: str) -> str | None:
        return message.strip() or None

    def canonical(self, answer: str) -> str:
        return str(int(answer)) if answer.isdigit() else answer

    def grade(self, problem: int, answer: str | None) -> Grade:
        if answer is None:
            return Grade(False, "no answer")
        correct = answer == str(2 * problem)
        return Grade(correct, "correct" if correct else "wrong")

    def to_json(self, problem: int) -> dict[str, Any]:
        return {"number": problem}
