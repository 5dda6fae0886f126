from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apr.errors import StorageError
from apr.files import check_writable, finish_replacement, new_directory, new_file
from tests.conftest import DiskLimit


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_a_file_is_there_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "file"
    with new_file(path) as tmp:
        tmp.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["file"]


def test_a_failing_body_leaves_the_file_and_the_folder_of_before(tmp_path: Path) -> None:
    file, directory = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    directory.mkdir()
    (directory / "old").touch()

    def write_half(path: Path) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), new_file(file) as tmp:
        write_half(tmp)
    with pytest.raises(ZeroDivisionError), new_directory(directory) as tmp:
        write_half(tmp / "half")
    assert file.read_text() == "old"
    assert names(directory) == ["old"]
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    directory = tmp_path / "folder"
    for name in ("old", "new"):
        with new_directory(directory) as tmp:
            (tmp / name).touch()
    assert names(directory) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_what_the_disk_refuses_is_one_sentence(tmp_path: Path, disk_limit: DiskLimit) -> None:
    with (
        pytest.raises(StorageError, match=r"^cannot write .*/file \(File too large\): "),
        disk_limit(10),
        new_file(tmp_path / "file") as tmp,
    ):
        tmp.write_text("more than ten bytes")
    in_the_way = tmp_path / "plain"
    in_the_way.touch()
    with (
        pytest.raises(StorageError, match=r"^cannot write .*/plain/file \("),
        new_file(in_the_way / "file"),
    ):
        pass
    with (
        pytest.raises(StorageError, match=r"^cannot write .*/plain/folder \("),
        new_directory(in_the_way / "folder"),
    ):
        pass
    assert names(tmp_path) == ["plain"]


def test_a_replacement_that_fails_half_way_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "folder"
    with new_directory(directory) as tmp:
        (tmp / "old").touch()
    move = os.replace

    def move_all_but_the_new(source: Path, target: Path) -> None:
        if source.name.endswith(".apr-new"):
            raise PermissionError("no")
        move(source, target)

    monkeypatch.setattr(os, "replace", move_all_but_the_new)
    with pytest.raises(StorageError), new_directory(directory) as tmp:
        (tmp / "new").touch()
    assert names(tmp_path) == ["folder"]
    assert names(directory) == ["old"]


def test_a_kill_between_the_two_moves_is_made_good(tmp_path: Path) -> None:
    directory, old = tmp_path / "folder", tmp_path / ".folder.apr-old"
    old.mkdir()
    finish_replacement(directory)
    assert names(tmp_path) == ["folder"]
    old.mkdir()
    finish_replacement(directory)  # Both are there: the new one is whole, and stays.
    assert names(tmp_path) == [".folder.apr-old", "folder"]


@pytest.mark.parametrize("write", [new_file, new_directory])
def test_a_path_without_a_name_is_one_sentence(write: Callable[..., Any]) -> None:
    with (
        pytest.raises(StorageError, match=r"^cannot write \. \(it ends in no name\): "),
        write(Path()),
    ):
        pass


def test_nobody_elses_file_is_touched(tmp_path: Path) -> None:
    mine = [tmp_path / f"made.{ending}" for ending in ("old", "tmp", "new", "bak")]
    for n, path in enumerate(mine):
        if n % 2:
            path.write_text("mine")
        else:
            path.mkdir()
            (path / "mine").touch()
    for _ in range(2):
        with new_directory(tmp_path / "made") as tmp:
            (tmp / "theirs").touch()
        with new_file(tmp_path / "file") as tmp:
            tmp.touch()
    assert names(tmp_path) == sorted(["file", "made", *(p.name for p in mine)])
    assert all(path.is_file() or names(path) == ["mine"] for path in mine)


def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, folder = tmp_path / "file", tmp_path / "folder"
    for link in (file, folder):
        link.symlink_to(tmp_path / "there" / link.name)
    for text in ("first", "second"):
        with new_file(file) as tmp:
            tmp.write_text(text)
        with new_directory(folder) as tmp:
            (tmp / text).touch()
    assert file.is_symlink()
    assert folder.is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "second"
    assert names(tmp_path / "there" / "folder") == ["second"]
    assert names(tmp_path / "there") == ["file", "folder"]


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path(os.devnull)):
        with pytest.raises(StorageError, match="a device or a pipe is there"):
            check_writable(path)
        with pytest.raises(StorageError), new_file(path) as tmp:
            tmp.touch()
    assert pipe.is_fifo()
    assert Path(os.devnull).is_char_device()
    assert names(tmp_path) == ["pipe"]
