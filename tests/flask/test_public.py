"""The public names: all described, with options that cannot be misspelt."""

from __future__ import annotations

import inspect

import pytest

import dlock_flask

LOCKING = ("lock", "try_lock", "alock", "hold", "locked", "cli_locked", "is_locked")
METHODS = [name for name in vars(dlock_flask.DLock) if not name.startswith("_")]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_does(name: str) -> None:
    """In a sentence."""
    first = (getattr(dlock_flask.DLock, name).__doc__ or "").partition("\n")[0]
    assert len(first) > 15
    assert first.endswith((".", ":"))


@pytest.mark.parametrize("name", LOCKING)
def test_all_options_after_the_key_are_keywords(name: str) -> None:
    """And a misspelt one is a TypeError."""
    parameters = list(inspect.signature(getattr(dlock_flask.DLock, name)).parameters.values())
    assert [parameter.name for parameter in parameters[:2]] == ["self", "key"]
    assert {parameter.kind for parameter in parameters[2:]} == {inspect.Parameter.KEYWORD_ONLY}


def test_the_same_option_means_the_same_everywhere() -> None:
    """One vocabulary: a default is written once in a reader's mind."""
    seen: dict[str, set[object]] = {}
    for name in LOCKING:
        for parameter in list(inspect.signature(getattr(dlock_flask.DLock, name)).parameters.values())[2:]:
            seen.setdefault(parameter.name, set()).add(parameter.default)
    assert {name for name, defaults in seen.items() if len(defaults) > 1} == set()
