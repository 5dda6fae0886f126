"""Other engines that the embedded one is measured beside."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.sizes import Sizes
from benchmarks.work import Generate, random_ids

LIBRARIES = ("transformers", "generate_batch", "openvino")
"""Those that run in this process; all others are addresses of servers."""


def addresses(names: Sequence[str], checkpoint: Path) -> dict[str, str]:
    """What to ``connect`` to, for those of ``names`` that are engines of ``apr.remote``."""
    found = {name: name for name in names if "://" in name}
    if "openvino" in names and _installed("openvino_genai"):
        where = f"openvino://{checkpoint}?threads={torch.get_num_threads()}"
        # The second is OpenVINO's own default.
        found |= {f"openvino kv={kv}": f"{where}&kv={kv}" for kv in ("f32", "u8")}
    return found


def transformers(
    names: Sequence[str], checkpoint: Path, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Generate]]:
    """The reference work by ``generate`` on one static batch, and by ``generate_batch``.

    The second is its continuous batching. Those are left out that ``names`` does not ask for.
    """
    if not {"transformers", "generate_batch"} & set(names) or not _installed("transformers"):
        return
    from transformers import (
        AutoModelForCausalLM,
        ContinuousBatchingConfig,
        GenerationConfig,
    )

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    model.to(device).eval()
    batching = None
    if device.type == "cpu":  # Where it would take all memory that there is.
        blocks = sizes.requests * -(-(sizes.prompt + sizes.new) // 256)
        batching = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=2048)

    def asked() -> Any:
        config: Any = GenerationConfig
        return config(max_new_tokens=sizes.new, pad_token_id=0)

    def prompts(n: int) -> list[list[int]]:
        return random_ids(sizes.requests, sizes.prompt, sizes.vocabulary, n)

    def static(n: int) -> list[list[int]]:
        seen = torch.tensor(prompts(n), device=device)
        with torch.inference_mode():
            out = model.generate(
                seen, attention_mask=torch.ones_like(seen), generation_config=asked()
            )
        ids: list[list[int]] = out[:, sizes.prompt :].tolist()
        return ids

    def continuous(n: int) -> list[list[int]]:
        with torch.inference_mode():
            done = model.generate_batch(prompts(n), asked(), batching)
        return [list(d.generated_tokens) for d in done.values()]

    yield from [
        (name, generate)
        for name, generate in (("transformers", static), ("generate_batch", continuous))
        if name in names
    ]


def _installed(package: str) -> bool:
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed, and left out")
    return found
