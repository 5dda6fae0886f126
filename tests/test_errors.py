from __future__ import annotations

import inspect

from apr import errors


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    ancestors: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" |`-").partition(" ")[0]
        if line.startswith("    ") and name in vars(errors):
            ancestors[(line.index(name) - 4) // 4 :] = [name]
            drawn[name] = ancestors[-2] if len(ancestors) > 1 else "Exception"
    classes = inspect.getmembers(errors, inspect.isclass)
    assert drawn == {name: cls.__base__.__name__ for name, cls in classes}


def test_what_the_user_can_mend_is_a_value_error_and_what_the_world_does_is_not() -> None:
    assert issubclass(errors.InputError, ValueError)
    assert not issubclass(errors.EngineError, errors.InputError)
