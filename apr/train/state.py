"""Everything a training run needs to go on exactly: weights, optimiser moments, the step.

Stored as safetensors and JSON, written to a side folder and moved into place, so that a run killed
at any moment finds either the old state or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from apr.errors import CheckpointError
from apr.files import finish_replacement, new_directory
from apr.models.checkpoint import load_weights, save_tensors
from apr.train.world import World

_DIR = "state"
_ALONE = World()


def save_state(
    run: Path,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    facts: dict[str, Any],
    world: World = _ALONE,
) -> None:
    """Write the state of ``run``, replacing the one before; the first process does, for all.

    Args:
        facts: plain values to go on with; must hold ``step``, the number of steps done.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    if world.is_first:
        _write(run, model, optimizers, facts)
    world.wait()


def _write(
    run: Path, model: nn.Module, optimizers: Sequence[Optimizer], facts: dict[str, Any]
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"optimizer.{i}.{j}.{key}"] = torch.as_tensor(value)
    # clone: tied weights share storage, which safetensors refuses.
    tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
    with new_directory(run / _DIR) as tmp:
        save_tensors(tensors, tmp / "tensors.safetensors")
        (tmp / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def load_state(
    run: Path, model: nn.Module, optimizers: Sequence[Optimizer], world: World = _ALONE
) -> dict[str, Any] | None:
    """Put the state of ``run`` into model and optimisers; its facts, or None if there is none.

    The first process does before all others, since it may have a folder to mend.

    Raises:
        CheckpointError: the state is damaged or of another model.
    """
    if not world.is_first:
        world.wait()
    facts = _read(run, model, optimizers)
    if world.is_first:
        world.wait()
    return facts


def _read(run: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any] | None:
    directory = run / _DIR
    finish_replacement(directory)
    if not directory.is_dir():
        return None
    try:
        tensors = load_file(directory / "tensors.safetensors")
        facts: dict[str, Any] = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
        load_weights(model, _under("model.", tensors))
        for i, optimizer in enumerate(optimizers):
            _load_optimizer(optimizer, _under(f"optimizer.{i}.", tensors))
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as e:
        raise CheckpointError(
            f"the training state in {directory} is damaged or of another model ({e}): "
            "delete the folder to start afresh"
        ) from e
    return facts


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if state and len(state) != len(parameters):
        raise ValueError(f"it has moments of {len(state)} weights in place of {len(parameters)}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
