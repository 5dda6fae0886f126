"""Where a figure was measured, and what the machine can do at most."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from apr.errors import ConfigError
from apr.models import native

_VERSIONS = ("torch", "transformers", "openvino-genai", "numpy")
_SIDE = 2048
_NUMBERS = 1 << 26


class Ceilings(NamedTuple):
    """What no engine on this machine can exceed; measured, at the threads in use."""

    matmul_gflops: float  # product of two matrices of ``_SIDE`` rows and columns, torch's or ours
    memory_read_gbs: float  # summing ``_NUMBERS`` numbers of float32


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    a = torch.randn(_SIDE, _SIDE, device=device, dtype=dtype)
    large = torch.ones(_NUMBERS, device=device)

    def wait(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return run

    packed = native.packed(a)
    products: list[Callable[[], object]] = [lambda: a @ a]
    products += [] if packed is None else [lambda: packed(a)]
    return Ceilings(
        2 * _SIDE**3 / min(best(wait(product)) for product in products) / 1e9,
        large.numel() * large.itemsize / best(wait(large.sum)) / 1e9,
    )


def best(work: Callable[[], object], rounds: int = 5) -> float:
    """Seconds of the fastest of ``rounds``."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def provenance(device: torch.device, dtype: torch.dtype, most: Ceilings) -> dict[str, Any]:
    """Machine, commit and versions, for a baseline."""
    return {
        "machine": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "versions": {name: v for name in _VERSIONS if (v := _version(name)) is not None},
        **{name: round(value, 1) for name, value in most._asdict().items()},
    }


def resident_mib() -> float:
    """Memory of this process that is in RAM, in MiB."""
    if not Path("/proc/self/statm").exists():
        raise ConfigError("memory is read from /proc, which only Linux has: run it there")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit checked out, marked where files differ from it."""
    asked = ["git", "describe", "--always", "--dirty=+changes"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
