from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest

from apr.config import build, load, to_json
from apr.errors import ConfigError


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.95)
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Outer:
    steps: int
    name: str = "run"
    fast: bool = False
    seed: int | None = None
    sizes: tuple[int, ...] = ()
    inner: Inner = field(default_factory=Inner)
    grid: tuple[Inner, ...] = ()


RECIPE = """
steps = 3
sizes = [1, 2, 3]
[inner]
rate = 1
betas = [0.8, 0.9]
colour = "blue"
[[grid]]
rate = 0.1
[[grid]]
rate = 0.2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_becomes_nested_dataclasses(recipe: Path) -> None:
    config = load(recipe, Outer)
    assert config == Outer(
        steps=3,
        sizes=(1, 2, 3),
        inner=Inner(1.0, (0.8, 0.9), Colour.BLUE),
        grid=(Inner(0.1), Inner(0.2)),
    )
    assert type(config.inner.rate) is float


def test_plain_values_of_a_config_build_an_equal_one(recipe: Path) -> None:
    config = load(recipe, Outer, ["seed=7"])
    assert build(Outer, json.loads(json.dumps(to_json(config)))) == config


def test_overrides_reach_into_sections_and_take_bare_words_as_text(recipe: Path) -> None:
    overrides = ["name=second try", "inner.colour=red", "inner.betas=[0, 1]", "fast=true", "seed=4"]
    config = load(recipe, Outer, overrides)
    assert (config.name, config.fast, config.seed) == ("second try", True, 4)
    assert (config.inner.colour, config.inner.betas) == (Colour.RED, (0.0, 1.0))
    assert config.steps == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stps=3", "unknown key 'stps': did you mean 'steps'?"),
        ("inner.colr='red'", "unknown key 'inner.colr': did you mean 'colour'?"),
        ("inner.zzz=1", "unknown key 'inner.zzz': known: rate, betas, colour"),
        ("steps='3'", "'steps' takes int, not '3'"),
        ("steps=3.0", "'steps' takes int, not 3.0"),
        ("steps=true", "'steps' takes int, not True"),
        ("inner.rate=false", "'inner.rate' takes float, not False"),
        ("fast=1", "'fast' takes bool, not 1"),
        ("seed=soon", "'seed' takes int, not 'soon'"),
        ("inner=3", "'inner' is a section, not 3"),
        ("sizes=4", "'sizes' is a list, not 4"),
        ("sizes=[1, 'two']", "'sizes[1]' takes int, not 'two'"),
        ("grid=[{rate='x'}]", "'grid[0].rate' takes float, not 'x'"),
        ("inner.betas=[0.9]", "'inner.betas' takes 2 values, not 1"),
        ("inner.colour=green", "'inner.colour' is one of 'red', 'blue', not 'green'"),
        ("steps.deep=1", "'steps.deep=1': 'steps' is a value, not a section"),
        ("steps", "'steps' is no override: write section.key=value"),
    ],
)
def test_a_bad_value_is_named_by_its_path(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(recipe, Outer, [override])
    assert str(caught.value) == message


def test_a_key_without_default_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^missing key 'steps'$"):
        build(Outer, {})


@dataclass(frozen=True)
class Shared:
    """A section whose own default differs from that of its class, and holds such a section."""

    inner: Inner = field(default_factory=lambda: Inner(rate=0.1, colour=Colour.BLUE))
    outer: Outer | None = field(default_factory=lambda: Outer(7, inner=Inner(rate=0.2)))


def test_what_a_section_leaves_out_is_as_where_the_section_is_left_out() -> None:
    assert build(Shared, {"inner": {"betas": [0, 1]}}).inner == Inner(0.1, (0, 1), Colour.BLUE)
    deep = build(Shared, {"outer": {"inner": {"colour": "blue"}}}).outer
    assert deep == Outer(7, inner=Inner(rate=0.2, colour=Colour.BLUE))
    assert build(Shared, {"outer": None}).outer is None
    assert build(Outer, {"steps": 1, "grid": [{"rate": 0.3}]}).grid == (Inner(0.3),)


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    absent, broken, binary = (tmp_path / name for name in ("absent", "broken", "binary"))
    broken.write_text("steps = = 3")
    binary.write_bytes(b"\xff\xfe")
    for path, words in [(absent, "no recipe at"), (broken, "is not TOML"), (binary, "is not TOML")]:
        with pytest.raises(ConfigError, match=words) as caught:
            load(path, Outer)
        assert str(path) in str(caught.value)
