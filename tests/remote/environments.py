"""Environments of real servers: made once, in a cache folder apart from the project's own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "servers"
CACHE = Path(os.environ.get("APR_ENGINES", Path.home() / ".cache" / "apr" / "engines"))


def interpreter(server: str) -> Path:
    """Python of an environment with ``server``, installed if it is not there yet (about 2 GB).

    The folder is named after what is in it, so a changed list makes a new one.
    """
    requirements = FOLDER / f"{server}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]
    folder = CACHE / f"{server}-{digest}"
    python = folder / "bin" / "python"
    if (folder / "installed").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    torch = [r for r in requirements.read_text().splitlines() if r.startswith("torch==")]
    # With what torch itself needs, which depends on the platform.
    _install(python, *torch)
    _install(python, "--no-deps", "-r", str(requirements))
    (folder / "installed").touch()
    return python


def _install(python: Path, *what: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    subprocess.run([*pip, "--disable-pip-version-check", *what], check=True)
