"""Recipes by file or by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import apr
from apr import config

if TYPE_CHECKING:
    from apr.api import Recipe

T = TypeVar("T")


def load(name: str, kind: type[T], overrides: list[str] | None) -> T:
    """The recipe in a file, or that of a name, here or beside the package."""
    places = [Path("recipes"), Path(apr.__file__).parents[1] / "recipes"]
    named = [path for place in places if (path := place / f"{name}.toml").is_file()]
    path = Path(name) if Path(name).is_file() or not named else named[0]
    return config.load(path, kind, overrides or [])


def load_sft(name: str, overrides: list[str] | None = None) -> Recipe:
    from apr.api import Recipe

    return load(name, Recipe, overrides)
