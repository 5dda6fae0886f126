"""Starts a server on a checkpoint with the flags that the engines here rely on, and stops it.

Servers live in environments of their own, so the interpreter of one is named and nothing of it is
imported. Everything that a server starts is in its process group, and ends with it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

import httpx

from apr.errors import CheckpointError, ConfigError, EngineError
from apr.files import writing
from apr.remote.connect import Server

_MODULES = {
    Server.SGLANG: ("sglang", "sglang.launch_server"),
    Server.VLLM: ("vllm", "vllm.entrypoints.openai.api_server"),
}
_OWN_POSITIONS = 6
"""Of its context, SGLang takes this many positions from the prompt."""
# In full precision, as the embedded engine computes there.
_ON_CPU = {
    Server.SGLANG: (
        *("--device", "cpu", "--dtype", "float32"),
        *("--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    ),
    Server.VLLM: ("--dtype", "float32", "--enforce-eager"),
}
_CPU_VARIABLES = {"SGLANG_USE_CPU_ENGINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}


def _has_no_gpu() -> bool:
    return not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))


@dataclass(frozen=True)
class Launch:
    """What to start, and where."""

    server: Server
    checkpoint: Path
    """A Hugging Face folder."""
    python: Path = Path(sys.executable)
    """Interpreter of the environment that the server is installed in."""
    host: str = "127.0.0.1"
    port: int = 8000
    flags: tuple[str, ...] = ()
    """Further flags of the server's own; they come last, so they win."""
    environment: dict[str, str] = field(default_factory=dict)
    cpu: bool = field(default_factory=_has_no_gpu)
    """Run on the CPU; by default where there is no device of NVIDIA or AMD."""
    script: Path | None = None
    """Run in place of the server's own module, with the same flags."""
    patience: float = 600.0
    """Seconds until it must be ready."""
    grace: float = 20.0
    """Seconds that it has to stop by itself."""

    def __post_init__(self) -> None:
        if self.server not in _MODULES:
            raise ConfigError(f"apr starts {' and '.join(_MODULES)}, and no {self.server}")

    @property
    def address(self) -> str:
        """What to ``connect`` to."""
        return f"{self.server}://{self.place}"

    @property
    def place(self) -> str:
        """Host and port as addresses have them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def command(self) -> list[str]:
        """
        Raises:
            CheckpointError: the folder has no readable config.json.
        """
        module = ["-m", _MODULES[self.server][1]] if self.script is None else [str(self.script)]
        flags = {Server.SGLANG: self._sglang_flags, Server.VLLM: self._vllm_flags}[self.server]()
        device = _ON_CPU[self.server] if self.cpu else ()
        where = ["--host", self.host, "--port", str(self.port)]
        return [str(self.python), *module, *flags, *device, *where, *self.flags]

    def _vllm_flags(self) -> list[str]:
        return [
            *("--model", str(self.checkpoint), "--max-model-len", str(self._context())),
            # Prefixes are shared, logprobs are of temperature 1, and what a request does not say
            # is not made up from the checkpoint.
            *("--enable-prefix-caching", "--logprobs-mode", "raw_logprobs"),
            *("--generation-config", "vllm"),
        ]

    def _sglang_flags(self) -> list[str]:
        context = str(self._context() + _OWN_POSITIONS)
        return ["--model-path", str(self.checkpoint), "--context-length", context]

    def _context(self) -> int:
        path = self.checkpoint / "config.json"
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["max_position_embeddings"])
        except (OSError, ValueError, LookupError, TypeError) as e:
            raise CheckpointError(f"cannot read the context from {path}: {e}") from e

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the server."""
        needed = {
            # Logprobs of temperature 1 whatever the temperature, and a context of six more.
            "SGLANG_RETURN_ORIGINAL_LOGPROB": "1",
            "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        device = _CPU_VARIABLES if self.cpu else {}
        return {**device, **os.environ, **needed, **self.environment}


@contextmanager
def launched(
    launch: Launch, log: Path, on_start: Callable[[], None] = lambda: None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is ready when the body begins, and gone, with all it started, at its end.

    Args:
        log: file that takes what the server prints.
        on_start: called once it is started, long before it is ready.

    Raises:
        ConfigError: the port is in use, the host is none of this machine, or the server is not
            installed in that environment.
        CheckpointError: the checkpoint cannot be read.
        StorageError: the log cannot be written.
        EngineError: it ended, or was not ready in time; the message has its last lines.
    """
    command = launch.command
    _check_port(launch.host, launch.port)
    _check_installed(launch)
    with _new_log(log) as out:
        process = _start(command, launch.variables, out)
        try:
            on_start()
            _await_ready(launch, process, log)
            yield process
        finally:
            stop(process, launch.grace)


def serve(
    launch: Launch,
    log: Path,
    on_ready: Callable[[str], None],
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Run a server until Ctrl-C, or until this process is asked to end.

    Args:
        on_ready: told its address once it answers.
        on_start: called once it is started.

    Raises:
        EngineError: it ended by itself. Else as ``launched``.
    """

    def end(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # A terminal that is closed hangs up, which the server's own process group never hears.
    before = {asked: signal.signal(asked, end) for asked in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with suppress(KeyboardInterrupt), launched(launch, log, on_start) as process:
            on_ready(launch.address)
            process.wait()
            raise _failed(launch, f"ended with status {process.returncode}", log)
    finally:
        for asked, handler in before.items():
            signal.signal(asked, handler)


def stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ask the process group to end, and end it once ``grace`` seconds or the patience of whoever
    waits are over."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:
        # Also what the process itself left behind.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _new_log(path: Path) -> IO[bytes]:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")


def _start(
    command: list[str], variables: dict[str, str], out: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _check_port(host: str, port: int) -> None:
    try:
        _bind(host, port)
    except (OSError, UnicodeError) as e:  # a name that cannot be one is a UnicodeError
        if isinstance(e, OSError) and e.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(f"port {port} of {host} is not free ({e}): use another --port") from e
        raise ConfigError(f"cannot listen on {host!r} ({e}): use another --host") from e


def _bind(host: str, port: int) -> None:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: a port that was in use a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _check_installed(launch: Launch) -> None:
    package = _MODULES[launch.server][0]
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    try:
        found = subprocess.run([launch.python, "-c", code], check=False).returncode == 0
    except OSError as e:
        raise ConfigError(f"cannot run {launch.python}: {e}") from e
    if not found:
        raise ConfigError(
            f"{package} is not installed for {launch.python}: name the interpreter of an "
            "environment that has it"
        )


def _await_ready(launch: Launch, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + launch.patience
    url = f"http://{launch.place}/health"
    # No certificates, since they take time to read and nobody asks for them here; and no proxy
    # knows of a server on this machine.
    with httpx.Client(verify=False, timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise _failed(launch, f"ended with status {process.returncode}", log)
            with suppress(httpx.TransportError):
                if client.get(url).status_code == 200:
                    return
            time.sleep(0.5)
    raise _failed(launch, f"was not ready within {launch.patience:g} s", log)


def _failed(launch: Launch, how: str, log: Path) -> EngineError:
    return EngineError(f"{launch.server} {how}; its log is {log}, and ends:\n{_tail(log)}")


def _tail(log: Path, num_lines: int = 12) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-num_lines:])
