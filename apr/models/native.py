"""C, compiled on first use with the system's compiler; here the whole network, for inference.

A step of a small network is over before torch has found its way to the operators of it. Where there
is no compiler, or ``APR_NATIVE=0`` is set, ``library`` returns None and everything runs on torch
alone, to the same results up to rounding. A compiled file stays in the user's cache, under a name
that says what it was made of.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apr.models.precision import Precision

if TYPE_CHECKING:
    from apr.models.llama import Block, Llama

# Not -ffast-math: it would change how the whole process rounds the smallest numbers.
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
_TYPES = {torch.float32: "float", torch.float64: "double"}
SOURCE = Path(__file__).with_name("native.c")
_HEADER = SOURCE.with_name("vectors.h")
_COMPILE_SECONDS = 120
WIDEST = 16
"""Numbers of the widest vectors there are."""
_PARTS = ("matrix products", "attention", "rest of the network", "sampler")
"""As ``native.c`` counts them."""


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
    log = logging.getLogger(__name__)
    try:
        compiler = shlex.split(os.environ.get("CC") or "cc")
        command = [*compiler, *_FLAGS, *defines, f"-I{_HEADER.parent}"]
        made_of = repr((command, _processor())).encode()
        made_of += source.read_bytes() + _HEADER.read_bytes()
        cache = _cache()
        name = f"{source.stem}-{hashlib.sha256(made_of).hexdigest()[:24]}.so"
        if not (cache / name).exists():
            _compile([*command, str(source)], cache / name)
        # Its OpenMP is the one that torch has loaded, by the same name: one pool of threads.
        return ctypes.CDLL(str(cache / name))
    except FileNotFoundError as e:
        log.info("%s runs on torch alone: %s", source.stem, e)
    except subprocess.CalledProcessError as e:
        why = e.stderr.decode(errors="replace").strip()[-1_000:]
        log.warning("%s is not compiled and runs on torch alone, far slower: %s", source.stem, why)
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as e:
        # RuntimeError: no home. ValueError: a quote that CC leaves open.
        log.warning("%s is not compiled and runs on torch alone, far slower: %s", source.stem, e)
    return None


def _cache() -> Path:
    """Where compiled files stay: a folder that nobody else can put one into.

    Raises:
        OSError: it cannot be made, or is no such folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(home) / "apr" / "native"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = cache.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"others may write to {cache}: name a folder of your own, XDG_CACHE_HOME")
    return cache


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        subprocess.run(
            [*command, "-o", str(made), "-lm"],
            check=True,
            capture_output=True,
            timeout=_COMPILE_SECONDS,
        )
        with made.open("rb") as file:
            os.fsync(file.fileno())  # A file cut short would end every process that maps it.
        made.replace(path)


def _processor() -> str:
    """What the compiler adapts to: a cache may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return " ".join(platform.uname())
    return "\n".join(
        sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    )


class Packed:
    """A matrix (out, in) as ``native.c`` reads it; a copy, to be made again when it changes."""

    def __init__(self, compiled: ctypes.CDLL, weight: Tensor) -> None:
        self.compiled = compiled
        self.num_out, self.num_in = weight.shape
        # A factor takes as many bytes as a weight, whatever the number of numbers in it.
        self.factors = weight.new_empty(compiled.packed_size(self.num_out, self.num_in))
        weight = weight.detach().contiguous()
        compiled.pack(self.num_out, self.num_in, weight.data_ptr(), self.factors.data_ptr())

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        # C takes pointers, and whatever lies there.
        assert x.dtype == self.factors.dtype
        assert x.shape[1:] == (self.num_in,)
        x = x.contiguous()
        out = x.new_empty(len(x), self.num_out)
        matrix, to = self.factors.data_ptr(), out.data_ptr()
        self.compiled.linear(len(x), self.num_in, self.num_out, x.data_ptr(), matrix, to)
        return out


class CompiledAttend:
    """How queries meet keys, for C: what ``apr.models.llama.Attend`` is for torch."""

    function: int
    """Where it is: an ``attention`` of ``native.c``."""
    step: int
    """Its first argument."""
    advance: int
    """Where is what readies that for the next token: as in ``draws`` of ``native.c``."""
    layers: Tensor
    """Keys and values, a row of bytes for each layer."""


class _Network(ctypes.Structure):
    """``network`` of ``native.c``."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("num_layers", "width", "inner", "heads", "kv_heads", "d")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("embed", "cos", "sin", "norm", "layers")),
    )


class _Tokens(ctypes.Structure):
    """``tokens`` of ``native.c``."""

    _fields_ = (
        ("n", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("ids", "positions", "attend", "step", "kv")),
        ("kv_bytes", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("scratch", "out", "seconds")),
    )


class _Draws(ctypes.Structure):
    """``draws`` of ``native.c``."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("num_rows", "most", "vocab", "patience")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("head", "chunks", "last", "temperatures", "top_p", "uniforms"),
                *("top_k", "limits", "stops", "stop_ends", "advance"),
                *("hidden", "logits", "rows", "ids", "counts", "logprobs"),
            )
        ),
    )


class Wanted(NamedTuple):
    """What is to be sampled behind a step: R rows, at most S ids of each."""

    chunks_R: NDArray[np.int64]  # which chunk of the step a row goes on from
    last_R: NDArray[np.int64]  # the last of that chunk's tokens
    temperatures_R: NDArray[np.float64]  # 0 is greedy
    top_p_R: NDArray[np.float64]
    uniforms_RS: NDArray[np.float64]  # in [0, 1)
    top_k_R: NDArray[np.int64]  # the size of the vocabulary is no limit
    limits_R: NDArray[np.int64]  # most ids, up to S
    stops: list[Sequence[int]]  # ids to end with, of each row
    patience: int  # all is over when more than one in so many rows have ended


class CompiledLlama:
    """The whole of a packed network in one call. Shares all weights but the packed copies."""

    def __init__(self, model: Llama) -> None:
        """
        Args:
            model: whose projections are packed, all alike.
        """
        assert model.lm_head.packed is not None, "weights are packed first"
        self._head, config = model.lm_head.packed, model.config
        compiled = self._head.compiled
        self._decode = compiled.decode
        self._seconds = np.zeros(len(_PARTS))
        dtype = model.embed_tokens.weight.dtype
        tables = [model.embed_tokens.weight, model.cos.to(dtype), model.sin.to(dtype)]
        layers = [w for block in model.layers for w in _layer(cast("Block", block))]
        # What the addresses below point to lives as long as this.
        self._weights = [*tables, model.norm.weight, *layers]
        self._addresses = np.array([t.data_ptr() for t in layers], np.uintp)
        self._network = _Network(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rms_norm_eps,
            *(t.data_ptr() for t in (*tables, model.norm.weight)),
            self._addresses.ctypes.data,
        )
        self._scratch = compiled.scratch(ctypes.byref(self._network))

    def seconds(self) -> dict[str, float]:
        """Spent so far, by part."""
        return dict(zip(_PARTS, self._seconds.tolist(), strict=True))

    def decode(
        self, ids_N: Tensor, positions_N: Tensor, attend: CompiledAttend, wanted: Wanted
    ) -> list[tuple[list[int], list[float]]]:
        """Sample behind a step, feed that back, and so on: of each row ids and their logprobs.

        A row ends with one of its stop ids or at its limit, and all do once more of them have
        ended than it has patience for. Ids and positions are overwritten.
        """
        embed, num_tokens, width = self._weights[0], len(ids_N), self._network.width
        out, scratch = (embed.new_empty(num_tokens * each) for each in (width, self._scratch))
        tokens = _Tokens(
            num_tokens,
            ids_N.data_ptr(),
            positions_N.data_ptr(),
            attend.function,
            attend.step,
            attend.layers.data_ptr(),
            attend.layers.stride(0),
            scratch.data_ptr(),
            out.data_ptr(),
            self._seconds.ctypes.data,
        )
        num_rows, most = wanted.uniforms_RS.shape
        hidden, logits = (out.new_empty(num_rows * n) for n in (width, self._head.num_out))
        rows = np.arange(num_rows)
        stops = np.array([id for ids in wanted.stops for id in ids], np.int64)
        stop_ends = np.array([len(ids) for ids in wanted.stops]).cumsum()
        ids, counts = np.empty((num_rows, most), np.int64), np.zeros(num_rows, np.int64)
        logprobs = np.empty((num_rows, most))
        draws = _Draws(
            num_rows,
            most,
            self._head.num_out,
            wanted.patience,
            self._head.factors.data_ptr(),
            *(x.ctypes.data for x in (*wanted[:-2], stops, stop_ends)),
            attend.advance,
            hidden.data_ptr(),
            logits.data_ptr(),
            *(x.ctypes.data for x in (rows, ids, counts, logprobs)),
        )
        self._decode(*(ctypes.byref(x) for x in (self._network, tokens, draws)))
        told = zip(ids.tolist(), logprobs.tolist(), counts.tolist(), strict=True)
        return [(ids[:count], logprobs[:count]) for ids, logprobs, count in told]


def _layer(block: Block) -> list[Tensor]:
    """Weights of one layer, in the order of ``native.c``."""
    attention, mlp = block.self_attn, block.mlp
    qkv, o, gate_up, down = (
        p.packed.factors
        for p in (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        if p.packed is not None
    )
    return [
        block.input_layernorm.weight,
        qkv,
        o,
        block.post_attention_layernorm.weight,
        gate_up,
        down,
    ]


def packed(weight: Tensor, rounded: Precision = Precision.MODEL) -> Packed | None:
    """``weight`` for inference; None off CPUs and without a compiler.

    Args:
        rounded: as for ``compiled``.
    """
    found = compiled(weight, rounded)
    return None if found is None else Packed(found, weight)


def compiled(weight: Tensor, rounded: Precision = Precision.MODEL) -> ctypes.CDLL | None:
    """``native.c`` for the numbers of ``weight``; None off CPUs and without a compiler.

    Args:
        rounded: what products round both sides to; anything but ``model`` is for float32 alone.
    """
    exact = rounded is Precision.MODEL
    if weight.device.type != "cpu" or not (exact or weight.dtype == torch.float32):
        return None
    found = library(SOURCE, weight.dtype, ROUNDED=rounded.number)
    if found is not None:
        n, p = ctypes.c_int64, ctypes.c_void_p
        found.packed_size.restype = found.scratch.restype = n
        found.pack.restype = found.linear.restype = found.decode.restype = None
        found.packed_size.argtypes = [n, n]
        found.pack.argtypes = [n, n, p, p]
        found.linear.argtypes = [n, n, n, p, p, p]
        found.scratch.argtypes = [p]
        found.decode.argtypes = [p, p, p]
    return found
