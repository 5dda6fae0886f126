"""What the README says works, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
