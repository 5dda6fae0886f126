"""What the README says works, as it stands there."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from apr import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{n}.md" for n in ("evaluation", "training", "results")),
]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_code_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_every_file_of_the_tree_is_there() -> None:
    tree = README.split("## The tree of files")[1].split("## More")[0]
    lines = re.findall(r"^    (  )?(\S+(?: \S+)*?)(?:   |$)", tree, re.MULTILINE)
    folder = ROOT
    for indented, names in lines:
        for name in names.split():
            if not indented:
                folder = ROOT / name if name == "apr/" else ROOT
                assert (ROOT / name).exists(), name
            else:
                assert (folder / name).exists(), name
    listed = {n.rstrip("/").split("/")[0] for _, names in lines for n in names.split()}
    parts = {p.name for p in (ROOT / "apr").iterdir()} - {"__init__.py", "__pycache__", "py.typed"}
    assert parts <= listed, "a part of the package is missing from the tree"


def test_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def commands(text: str) -> Iterator[list[str]]:
    """Words behind ``apr`` of each command that stands in a block of its own."""
    lines = re.findall(r"^    (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    for command in (part for line in lines for part in re.split(r"&&|\|", line)):
        words = shlex.split(command, comments=True) if "apr " in command else []
        # What stands for a file or a choice of the reader's is no command yet.
        if words[:1] == ["apr"] and not any(re.search(r"[$\[]|^[A-Z]+$", w) for w in words):
            yield words[1:]


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.stem)
def test_every_command_is_one(doc: Path) -> None:
    verbs = typer.main.get_command(cli.app)
    found = list(commands(doc.read_text(encoding="utf-8")))
    assert len(found) >= 3
    for verb, *words in found:
        group = verbs.commands[verb]  # type: ignore[attr-defined]
        if hasattr(group, "commands"):
            group, *words = group.commands[words[0]], *words[1:]
        group.make_context(verb, words)


def test_no_two_commands_write_the_same_file() -> None:
    """One after the other they all run: none replaces what another has written."""
    written: Counter[tuple[str, str]] = Counter()
    for verb, *words in commands(README.split("## Use it")[1].split("```python")[0]):
        if verb == "eval" and "--out" not in words:
            model = words[0] if not words[0].startswith("-") else ""
            method = words[words.index("--method") + 1] if "--method" in words else "apr"
            written[model, method] += 1
    assert written
    assert set(written.values()) == {1}
