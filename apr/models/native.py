"""Parts of a step in C, compiled on first use with the system's compiler.

What torch does in several passes over memory, these do in one. Where there is no compiler, or
``APR_NATIVE=0`` is set, ``library`` returns None and everything runs on torch alone, to the same
results up to rounding. A compiled file stays in the user's cache, under a name that says what it
was made of.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

# Not -ffast-math: it would change how the whole process rounds the smallest numbers.
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
_TYPES = {torch.float32: "float", torch.float64: "double"}
_HEADER = Path(__file__).with_name("exp2.h")
_COMPILE_SECONDS = 120


def library(source: Path, dtype: torch.dtype, **defines: int) -> ctypes.CDLL | None:
    """``source`` compiled for numbers of ``dtype``, its REAL; None where it cannot be.

    Args:
        defines: other names that the source leaves open, and their values.
    """
    if os.environ.get("APR_NATIVE") == "0" or dtype not in _TYPES:
        return None
    return _library(source, f"-DREAL={_TYPES[dtype]}", *(f"-D{k}={v}" for k, v in defines.items()))


@lru_cache
def _library(source: Path, *defines: str) -> ctypes.CDLL | None:
    command = [*shlex.split(os.environ.get("CC", "cc")), *_FLAGS, *defines, f"-I{_HEADER.parent}"]
    made_of = repr((command, _processor())).encode() + source.read_bytes() + _HEADER.read_bytes()
    name = f"{source.stem}-{hashlib.sha256(made_of).hexdigest()[:24]}.so"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apr" / "native"
    try:
        if not (cache / name).exists():
            _compile([*command, str(source)], cache / name)
        # Its OpenMP is the one that torch has loaded, by the same name: one pool of threads.
        return ctypes.CDLL(str(cache / name))
    except (OSError, subprocess.SubprocessError) as e:
        logging.getLogger(__name__).info("%s runs on torch alone: %s", source.stem, e)
        return None


def _compile(command: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        subprocess.run(
            [*command, "-o", str(made), "-lm"],
            check=True,
            capture_output=True,
            timeout=_COMPILE_SECONDS,
        )
        made.replace(path)


def _processor() -> str:
    """What the compiler adapts to: a cache may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return " ".join(os.uname())
    return "\n".join(
        sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    )


class Kernels:
    """Steps between matrix products, each in one pass."""

    def __init__(self, library: ctypes.CDLL) -> None:
        address, number = ctypes.c_void_p, ctypes.c_int64
        self._rms_norm, self._rotate, self._silu_mul = (
            library.rms_norm,
            library.rotate,
            library.silu_mul,
        )
        self._rms_norm.argtypes = [number, number, address, address, ctypes.c_double, address]
        self._rotate.argtypes = [number, number, number, number, address, address, address, address]
        self._silu_mul.argtypes = [number, number, address, address]
        for function in (self._rms_norm, self._rotate, self._silu_mul):
            function.restype = None

    def rms_norm(self, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x_ND)
        n, width = x_ND.shape
        self._rms_norm(n, width, x_ND.data_ptr(), weight_D.data_ptr(), eps, out.data_ptr())
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As ``apr.models.llama.rotate``."""
        n, num_heads, d = x.shape
        out = x.new_empty(x.shape)
        self._rotate(
            n,
            num_heads,
            d,
            x.stride(0),
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            out.data_ptr(),
        )
        return out

    def silu_mul(self, gate_up_NF: Tensor) -> Tensor:
        """(N, 2 F) -> (N, F): silu of the first half times the second."""
        n, width = gate_up_NF.shape
        out = gate_up_NF.new_empty(n, width // 2)
        self._silu_mul(n, width // 2, gate_up_NF.data_ptr(), out.data_ptr())
        return out


def kernels(x: Tensor) -> Kernels | None:
    """For tensors like ``x``; None where something is learnt, off CPUs and without a compiler."""
    if x.device.type != "cpu" or not torch.is_inference_mode_enabled():
        return None
    return _kernels(x.dtype)


@lru_cache
def _kernels(dtype: torch.dtype) -> Kernels | None:
    found = library(Path(__file__).with_name("native.c"), dtype)
    return None if found is None else Kernels(found)
