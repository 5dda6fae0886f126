from __future__ import annotations

from apr.eval.posed import note_of


def test_those_that_were_posed_a_part_of_the_same_are_together() -> None:
    a, b, part = frozenset("abcd"), frozenset("bcde"), frozenset("cd")
    assert note_of([("one", part), ("two", a), ("one", a), ("three", frozenset())]) is None
    assert note_of([]) is None
    note = note_of([("one", part), ("two", a), ("three", b), ("one", a), ("four", frozenset("x"))])
    assert note is not None
    assert ": two, one | three | four. " in note
