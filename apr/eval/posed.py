"""Whether what stands side by side was posed the same problems."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

Problems = frozenset[Hashable]


def note_of(posed: Iterable[tuple[str, Problems]]) -> str | None:
    """A sentence that tells apart whose problems differ, and how to pose the same.

    Args:
        posed: names, which may come several times, and what each was posed.

    Returns:
        None where all were posed the same, or a part of it.
    """
    groups = _groups(posed)
    if len(groups) < 2:
        return None
    names = " | ".join(", ".join(group) for group in groups)
    return (
        f"not all were posed the same problems, so these do not compare: {names}. By default a "
        'model is posed those of its own recipe; task = "recipes/mini.toml" in the grid, or --task '
        "of apr eval, poses those of one recipe to all."
    )


def _groups(posed: Iterable[tuple[str, Problems]]) -> list[list[str]]:
    """Names together whose problems are all or a part of the same, each once in a group."""
    found: list[tuple[Problems, dict[str, None]]] = []
    for name, problems in sorted(posed, key=lambda p: len(p[1]), reverse=True):
        group = next((names for whole, names in found if problems <= whole), None)
        if group is None:
            found.append((problems, {name: None}))
        else:
            group[name] = None
    return [list(names) for _, names in found]
