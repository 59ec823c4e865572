"""The error tree: as drawn, catchable as built-in errors, and whole after a wire."""

from __future__ import annotations

import builtins
import copy
import pickle
import re
from collections.abc import Callable
from textwrap import dedent
from typing import Any, NamedTuple

import pytest

from dlock_core import LockError, LockTimeoutError, NotPermittedError, StaleTokenError, errors


class Drawn(NamedTuple):
    """One line of the drawing."""

    name: str
    depth: int
    cousin: str | None


LINE = re.compile(r"^(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+Error)\b *(?:\((?P<cousin>\w+)\))?")
CLASSES: list[type[LockError]] = [getattr(errors, name) for name in errors.__all__]
# What an error tells besides its key.
OWN_ATTRIBUTES: dict[type[LockError], dict[str, Any]] = {
    LockTimeoutError: {"timeout": 2.5, "waited": 2.625},
    NotPermittedError: {"found": ["a lock"]},
    StaleTokenError: {"token": 6, "seen": 7},
}


def drawing() -> list[Drawn]:
    """Read the tree in the docstring of `dlock_core.errors`, top down."""
    paragraph = next(text for text in (errors.__doc__ or "").split("\n\n") if "├──" in text)
    found = [LINE.match(line) for line in dedent(paragraph).splitlines()]
    return [Drawn(line["name"], len(line["branch"]) // 4, line["cousin"]) for line in found if line]


def drawn_bases() -> dict[str, tuple[str, ...]]:
    """Return for each drawn class its bases: the class that it hangs on, then its built-in cousin."""
    bases: dict[str, tuple[str, ...]] = {}
    path: list[str] = ["Exception"]
    for name, depth, cousin in drawing():
        path[depth + 1 :] = [name]
        bases[name] = (path[depth], cousin) if cousin else (path[depth],)
    return bases


def drawn_ancestors(name: str) -> set[type]:
    """Return all that a class is, by the drawing: what it hangs on, its cousins, and what Python adds."""
    bases = drawn_bases().get(name)
    if bases is None:
        return set(getattr(builtins, name).__mro__)
    return {getattr(errors, name)}.union(*map(drawn_ancestors, bases))


def error_of(kind: type[LockError]) -> LockError:
    """Make an error with every attribute set, and one that a user added."""
    error = kind("key ('orders', 42): no", key=("orders", 42), **OWN_ATTRIBUTES.get(kind, {}))
    error.add_note("while importing orders")
    error.colour = "red"  # type: ignore[attr-defined]
    return error


def test_the_drawing_shows_every_error_once() -> None:
    """A class that is not drawn, or drawn twice, is a mistake of the drawing."""
    assert sorted(line.name for line in drawing()) == sorted(errors.__all__)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_has_the_bases_that_are_drawn(kind: type[LockError]) -> None:
    """So `except TimeoutError` and its like catch what the drawing says, and nothing else."""
    assert tuple(base.__name__ for base in kind.__bases__) == drawn_bases()[kind.__name__]
    assert set(kind.__mro__) == drawn_ancestors(kind.__name__)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_tells_its_key_and_what_else_it_knows(kind: type[LockError]) -> None:
    """All by name and none required: code that catches it need not read the message."""
    known = {"key": ("orders", 42), "colour": "red", **OWN_ATTRIBUTES.get(kind, {})}
    assert {name: value for name, value in vars(error_of(kind)).items() if name != "__notes__"} == known
    unknown = {name: value for name, value in vars(kind("no")).items() if value not in (None, ())}
    assert unknown == {}


def _pickled(protocol: int) -> Callable[[LockError], LockError]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


COPIES: dict[str, Callable[[LockError], LockError]] = {
    **{f"pickle protocol {number}": _pickled(number) for number in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_is_whole_after_pickling_and_copying(kind: type[LockError], way: str) -> None:
    """Class, message, arguments, notes and every attribute: Celery sends errors over a wire."""
    error = error_of(kind)
    twin = COPIES[way](error)
    assert type(twin) is kind
    assert twin is not error
    assert str(twin) == str(error)
    assert twin.args == error.args
    assert vars(twin) == vars(error)
    assert twin.__notes__ == ["while importing orders"]


def test_a_copy_of_an_error_has_notes_and_attributes_of_its_own() -> None:
    """What a caller adds to the copy stays off the original."""
    error = error_of(LockError)
    twin = copy.deepcopy(error)
    twin.key = "another"
    twin.add_note("elsewhere")
    assert error.key == ("orders", 42)
    assert error.__notes__ == ["while importing orders"]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_shows_its_message_and_nothing_else(kind: type[LockError]) -> None:
    """The built-in cousins, OSError first of all, put no number or tuple around it."""
    error = kind("key 'orders': no", key="orders")
    assert str(error) == "key 'orders': no"
    assert error.args == ("key 'orders': no",)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_takes_one_positional_message(kind: type[LockError]) -> None:
    """A key in second place would silently become OSError's strerror."""
    with pytest.raises(TypeError):
        kind("message", "orders")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        kind()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, OSError)])
def test_an_error_of_the_oserror_family_has_no_number(kind: type[LockError]) -> None:
    """Code that looks at `errno` finds None, not our message."""
    error = kind("a message")
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror, error.filename) == (None, None, None)
