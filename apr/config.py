"""TOML in, frozen dataclasses out: unknown keys refused, types checked, errors named by path."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Sequence
from enum import Enum
from math import inf
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from apr.errors import ConfigError

T = TypeVar("T")


def load(path: Path, cls: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a TOML file as ``cls``.

    Args:
        overrides: ``section.key=value`` strings, the value as TOML writes it (bare words are text).

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a value of the wrong type.
    """
    if not path.is_file():
        raise ConfigError(f"no recipe at {path}: name a TOML file such as recipes/mini.toml")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not TOML: {e}") from e
    for override in overrides:
        _apply(raw, override)
    return build(cls, raw)


def build(cls: type[T], raw: dict[str, Any], where: str = "", default: T | None = None) -> T:
    """Make ``cls``, a dataclass, from plain values.

    Args:
        where: its path, for messages.
        default: has what ``raw`` leaves out, which need not be what the class says by itself.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in raw:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown key {where + key!r}: {hint}")
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and default is None and name not in raw:
            raise ConfigError(f"missing key {where + name!r}")
    hints = typing.get_type_hints(cls)
    values = {
        key: _convert(hints[key], value, where + key, _default(known[key], default))
        for key, value in raw.items()
    }
    return cls(**values) if default is None else dataclasses.replace(default, **values)  # type: ignore[type-var]


def build_query(cls: type[T], query: str) -> T:
    """Make ``cls`` from the end of an address, such as ``kv=u8&threads=2``; bare words are text."""
    return build(cls, {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)})


def check_least(least: float, **values: float | None) -> None:
    """Raises ConfigError that names the first of ``values`` below ``least``; None is not set."""
    for name, value in values.items():
        if value is not None and not value >= least:  # not a number is below everything
            raise ConfigError(f"{name} is {value}: give {least} or more")


def check_drawing(temperature: float, top_p: float, top_k: int) -> None:
    """Raises ConfigError where ids cannot be drawn so."""
    if not 0 <= temperature < inf or top_k < 0 or not 0 < top_p <= 1:
        raise ConfigError("temperature and top_k are 0 or more, and top_p above 0 and up to 1")


def to_json(value: Any) -> Any:
    """Plain values of a config, for a manifest; ``build`` gives back an equal config."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value.value if isinstance(value, Enum) else value


def _value(text: str) -> Any:
    """As TOML reads it; what it cannot read is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _apply(raw: dict[str, Any], override: str) -> None:
    path, sep, text = override.partition("=")
    if not sep:
        raise ConfigError(f"{override!r} is no override: write section.key=value")
    *sections, key = path.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{override!r}: {section!r} is a value, not a section")
    raw[key] = _value(text)


def _default(field: dataclasses.Field[Any], of: Any) -> Any:
    """What the field is where nobody sets it; None where it must be set."""
    if of is not None:
        return getattr(of, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _convert(hint: Any, value: Any, where: str, default: Any = None) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        return None if value is None else _convert(inner[0], value, where, default)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where!r} is a section, not {value!r}")
        return build(hint, value, where + ".", default)
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _convert_enum(hint, value, where)
    return _convert_plain(hint, value, where)


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where!r} is a list, not {value!r}")
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(value):
        raise ConfigError(f"{where!r} takes {len(hints)} values, not {len(value)}")
    return tuple(
        _convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True))
    )


def _convert_enum(hint: type[Enum], value: Any, where: str) -> Enum:
    try:
        return hint(value)
    except ValueError:
        choices = ", ".join(repr(m.value) for m in hint)
        raise ConfigError(f"{where!r} is one of {choices}, not {value!r}") from None


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
    ):
        raise ConfigError(f"{where!r} takes {hint.__name__}, not {value!r}")
    return value
