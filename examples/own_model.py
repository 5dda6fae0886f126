"""A model of one's own behind a server, which was never trained to spawn, and one's own question.

Each thread is shown by examples how a thread works, then given its message; that is all that it
sees. Any endpoint will do that goes on from a text where it stands, such as ``/v1/completions``; a
chat endpoint will not, since it closes each turn::

    python examples/own_model.py "What is 17 * 6, and what is 90 - 47?"
    python examples/own_model.py --engine vllm://127.0.0.1:8000 --tokenizer MODEL_FOLDER "..."
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import rich

from apr import AprError, Limits, Runtime, terminal
from apr.data.tokenizer import HFCodec
from apr.dialects.tags import Tags
from apr.interfaces import Append, Codec, Join, Malformed
from apr.remote import connect
from apr.testing import ByteCodec
from apr.trace import Trace
from apr.types import Sampling

ENGINE = "openai://127.0.0.1:8000?context=4096&text=true"
SHOWN = """\
Parts of a question that do not depend on each other are handed to threads, which see nothing else
and join with what they find.

Question: What is 2 + 3, and who wrote Hamlet?
<spawn>
<thread>What is 2 + 3?</thread>
<thread>Who wrote Hamlet?</thread>
</spawn>
<joined><thread>5</thread><thread>Shakespeare</thread></joined>
<join>5, and Shakespeare</join>

Question: What is 2 + 3?
<join>5</join>

Question: What is the capital of Italy, and how many legs has a spider?
<spawn>
<thread>What is the capital of Italy?</thread>
<thread>How many legs has a spider?</thread>
</spawn>
<joined><thread>Rome</thread><thread>8</thread></joined>
<join>Rome, and 8</join>

Question: Who wrote Hamlet?
<join>Shakespeare</join>

"""


class Shown(Tags):
    """`tags` for a model that does not know them.

    What is put in are whole lines, so that no token of the examples reaches over an end of it.
    """

    def child_prompt(self, message: str) -> str:
        return f"{SHOWN}Question: {message}\n"

    def resume(self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]) -> Append:
        return Append(f"\n{super().resume(prompt, sampled, joins).text}\n")


def ask(question: str, address: str, tokenizer: Path | None, max_tokens: int) -> Trace:
    """The trace of ``question``, not graded: there is no task that knows the answer."""
    # Asked in text, a server never meets our ids: bytes stand for its tokens.
    codec: Codec = ByteCodec() if tokenizer is None else HFCodec.load(tokenizer)
    dialect = Shown()
    limits = Limits(depth=2, children=8, threads=32)
    runtime = Runtime(connect(address, codec), codec, dialect, Sampling(max_tokens), limits)
    prompt_ids = runtime.root_ids(dialect.child_prompt(question))
    return asyncio.run(runtime.go_on(prompt_ids, (), question))


def main() -> None:
    parser = argparse.ArgumentParser(description="Reason in parallel with a model of one's own.")
    parser.add_argument("question")
    parser.add_argument("--engine", default=ENGINE, metavar="ADDRESS", help=f"default {ENGINE}")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="that of the model served")
    parser.add_argument("--max-tokens", type=int, default=512, help="of one call")
    args = parser.parse_args()
    if args.tokenizer is None and "text=true" not in args.engine:
        parser.error("this engine speaks ids: name --tokenizer, or an address with text=true")
    try:
        trace = ask(args.question, args.engine, args.tokenizer, args.max_tokens)
    except AprError as e:
        sys.exit(f"error: {e}")
    rich.print(terminal.tree(trace))
    rich.print(terminal.verdict(trace, trace.root.join))
    sys.exit(0 if trace.error is None else 1)


if __name__ == "__main__":
    main()
