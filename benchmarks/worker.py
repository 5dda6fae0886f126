"""Another checkout of this package as a peer, which works in a process of its own.

The process reads the number of a round from each line of its input, and answers with the ids.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from apr import api
from apr.config import to_json
from apr.engine import EmbeddedEngine
from apr.errors import EngineError
from apr.models.checkpoint import load_checkpoint
from benchmarks import work
from benchmarks.sizes import Sizes
from benchmarks.work import Generate

# What is measured is of the other checkout, what measures is of this one.
_START = """import sys
sys.path.insert(0, sys.argv[1])
import apr
sys.path[0] = sys.argv[2]
from benchmarks.worker import main
main(*sys.argv[3:])"""


@contextmanager
def checkout(
    folder: Path, name: str, checkpoint: Path, sizes: Sizes, device: torch.device, dtype: str
) -> Iterator[Generate]:
    """The work ``name`` by the embedded engine of the checkout in ``folder``, at its defaults."""
    here = Path(__file__).parent.parent
    command = [sys.executable, "-c", _START, str(folder.absolute()), str(here)]
    command += [name, str(checkpoint.absolute()), json.dumps(to_json(sizes)), str(device), dtype]
    command.append(str(torch.get_num_threads()))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    told, heard = process.stdin, process.stdout

    def generate(n: int) -> list[list[int]]:
        print(n, file=told, flush=True)
        for line in heard:
            if line.startswith("[["):
                ids: list[list[int]] = json.loads(line)
                return ids
        raise EngineError(f"the engine of {folder} ended with status {process.wait()}")

    with process:
        yield generate


def _work(name: str, checkpoint: Path, sizes: Sizes, device: str, dtype: str) -> Generate:
    network = load_checkpoint(checkpoint, device, getattr(torch, dtype))
    if name == "reference":
        return work.reference(EmbeddedEngine(network), sizes)
    model = api.load(checkpoint)
    return work.flight(replace(model, engine=EmbeddedEngine(network, None, model.codec)), sizes)


def main(name: str, checkpoint: str, sizes: str, device: str, dtype: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    generate = _work(name, Path(checkpoint), Sizes(**json.loads(sizes)), device, dtype)
    for line in sys.stdin:
        print(json.dumps(generate(int(line))), flush=True)
