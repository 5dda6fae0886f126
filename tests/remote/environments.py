"""Real servers: installed or built once, in a cache folder apart from the project's own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent / "servers"
CACHE = Path(os.environ.get("APR_ENGINES", Path.home() / ".cache" / "apr" / "engines"))

# Python bindings, whose source package holds that of llama.cpp, and what builds it.
LLAMA_CPP = "llama-cpp-python==0.3.36"
TOOLS = ("cmake==4.4.5", "ninja==1.13.2")


def interpreter(server: str) -> Path:
    """Python of an environment with ``server``, installed if it is not there yet (3 GB)."""
    requirements = FOLDER / f"{server}.txt"

    def install(folder: Path) -> None:
        python = folder / "bin" / "python"
        torch = [r for r in requirements.read_text().splitlines() if r.startswith("torch==")]
        # With what torch itself needs, which depends on the platform.
        _install(python, *torch)
        _install(python, "--no-deps", "-r", str(requirements))

    return _made(server, requirements.read_text(), install) / "bin" / "python"


def llama_server() -> Path:
    """llama.cpp's server, built if it is not there yet, which takes a C++ compiler and minutes."""
    return _made("llamacpp", f"{LLAMA_CPP} {TOOLS}", _build_llama_server) / "llama-server"


def _made(name: str, what: str, make: Callable[[Path], None]) -> Path:
    """A virtual environment that ``make`` has filled, now or before.

    The folder is named after what is in it, so another list makes a new one.
    """
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    folder = CACHE / f"{name}-{digest}"
    if not (folder / "installed").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        make(folder)
        (folder / "installed").touch()
    return folder


def _install(python: Path, *what: str) -> None:
    subprocess.run([*_PIP, "--python", str(python), "install", "-q", *what], check=True)


def _build_llama_server(folder: Path) -> None:
    _install(folder / "bin" / "python", *TOOLS)
    work = folder / "work"
    only_source = ["--no-deps", "--no-binary", LLAMA_CPP.partition("==")[0]]
    subprocess.run([*_PIP, "download", "-q", *only_source, LLAMA_CPP, "-d", work], check=True)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    (source,) = work.glob("*/vendor/llama.cpp")
    # One program, without web pages and encryption, which it would fetch or need libraries for.
    off = ("BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP")
    off += ("LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL")
    settings = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in off)]
    cmake = str(folder / "bin" / "cmake")
    tools = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    where = ["-G", "Ninja", "-S", str(source), "-B", str(work / "build")]
    subprocess.run([cmake, *where, *settings], check=True, env=tools)
    build = [cmake, "--build", str(work / "build"), "--target", "llama-server"]
    subprocess.run(build, check=True, env=tools)
    shutil.move(work / "build" / "bin" / "llama-server", folder / "llama-server")
    shutil.rmtree(work)


_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
