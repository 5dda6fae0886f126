"""Files and folders that appear whole or not at all, and one error for what the disk refuses.

Everything is written to the side and moved into place, so that a process killed at any moment
leaves either what was there before or what was to be there; of a folder that is replaced perhaps
aside, see ``finish_replacement``. What stands aside has a name that nobody else gives.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL, EISDIR
from pathlib import Path

from apr.errors import StorageError

_NEW, _OLD = ".apr-new", ".apr-old"
"""What is being written, and what was there while it is moved into place."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write ``path`` in the body.

    Raises:
        StorageError: the disk is full, or the path may not be written.
    """
    try:
        yield
    except OSError as e:
        raise StorageError(
            f"cannot write {path} ({e.strerror or e}): make room there or name another place"
        ) from e


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write in the body, which then becomes ``path``; if the body fails, it is gone.

    Where ``path`` is a link, what it leads to is written.

    Raises:
        StorageError: the disk is full, or the path may not be written.
    """
    path = _followed(path)
    tmp = _beside(path, _NEW)
    with writing(path):
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse now the file that could not be written later; leaves nothing behind.

    Raises:
        StorageError: the path may not be written, or is a folder, a device or a pipe.
    """
    path = _followed(path)
    tmp = _beside(path, _NEW)
    with writing(path):
        _check_replaceable(path)
        missing = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp.touch()
        tmp.unlink()
        for parent in missing:
            parent.rmdir()


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A folder to fill in the body, which then becomes ``directory``, in place of any before it.

    Raises:
        StorageError: the disk is full, or the path may not be written.
    """
    directory = _followed(directory)
    tmp = _beside(directory, _NEW)
    with writing(directory):
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        try:
            yield tmp
            _replace_directory(tmp, directory)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


def finish_replacement(directory: Path) -> None:
    """A kill between the two moves of a replacement leaves only the old folder: move it back."""
    directory = _followed(directory)
    old = _beside(directory, _OLD)
    if old.exists() and not directory.exists():
        old.rename(directory)


def _replace_directory(tmp: Path, directory: Path) -> None:
    # Two moves, since no system moves a folder onto a full one.
    old = _beside(directory, _OLD)
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
    try:
        os.replace(tmp, directory)
    except OSError:
        finish_replacement(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _followed(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def _check_replaceable(path: Path) -> None:
    """Nothing but a file is replaced by a file."""
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "a folder is there")
    if path.exists() and not path.is_file():
        raise OSError(EINVAL, "a device or a pipe is there")


def _beside(path: Path, ending: str) -> Path:
    try:
        return path.with_name(f".{path.name}{ending}")
    except ValueError as e:  # the folder itself, or the root of all
        raise StorageError(f"cannot write {path} (it ends in no name): name another place") from e
