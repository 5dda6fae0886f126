"""Everything a training run needs to go on exactly: weights, optimiser moments, the step.

Stored as safetensors and JSON, written to a side folder and moved into place, so that a run killed
at any moment finds either the old state or the new one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from apr.errors import CheckpointError
from apr.models.checkpoint import replace_directory

_DIR = "state"


def save_state(
    run: Path, model: nn.Module, optimizers: Sequence[Optimizer], facts: dict[str, Any]
) -> None:
    """Write the state of ``run``, replacing the one before.

    Args:
        facts: plain values to go on with; must hold ``step``, the number of steps done.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"optimizer.{i}.{j}.{key}"] = torch.as_tensor(value)
    tmp = run / f"{_DIR}.tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    # clone: tied weights share storage, which safetensors refuses.
    save_file(
        {k: v.detach().cpu().clone() for k, v in tensors.items()}, tmp / "tensors.safetensors"
    )
    (tmp / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    replace_directory(tmp, run / _DIR)


def load_state(
    run: Path, model: nn.Module, optimizers: Sequence[Optimizer]
) -> dict[str, Any] | None:
    """Put the state of ``run`` into model and optimisers; its facts, or None if there is none.

    Raises:
        CheckpointError: the state is damaged or of another model.
    """
    directory = _finish_replacement(run)
    if not directory.is_dir():
        return None
    try:
        tensors = load_file(directory / "tensors.safetensors")
        facts: dict[str, Any] = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
        weights = _under("model.", tensors)
        model.load_state_dict(weights)
        for i, optimizer in enumerate(optimizers):
            _load_optimizer(optimizer, _under(f"optimizer.{i}.", tensors))
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as e:
        raise CheckpointError(
            f"the training state in {directory} is damaged or of another model ({e}): "
            "delete the folder to start afresh"
        ) from e
    return facts


def _finish_replacement(run: Path) -> Path:
    """A kill between the two moves of a replacement leaves only the old state, renamed."""
    directory, old = run / _DIR, run / f"{_DIR}.old"
    if not directory.exists() and old.exists():
        old.rename(directory)
    return directory


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
