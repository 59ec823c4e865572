"""The public names: a change of one is a change for users, so it must be made twice."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from pathlib import Path
from typing import Any

import pytest

import dlock_core
from dlock_core import sadlock

SNAPSHOT = Path(__file__).with_name("public_names.txt")
CLASSES = (
    dlock_core.LockProvider,
    dlock_core.AsyncLockProvider,
    dlock_core.Lock,
    dlock_core.AsyncLock,
    sadlock.SadLock,
    sadlock.AsyncSadLock,
    dlock_core.Finding,
    dlock_core.LockAcquired,
    dlock_core.LockAttempt,
    dlock_core.LockEvent,
    dlock_core.LockLost,
    dlock_core.LockNotAcquired,
    dlock_core.LockReleased,
    dlock_core.LockInfo,
    dlock_core.LockWaiter,
)
FUNCTIONS = (
    dlock_core.create_sadlock,
    dlock_core.create_async_sadlock,
    dlock_core.fence,
    dlock_core.fence_table,
    dlock_core.run_locked,
)


def public_members(cls: type) -> dict[str, Any]:
    """Return the methods and properties of a class that its users may use."""
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    members = inspect.getmembers_static(cls)
    return {name: member for name, member in members if not name.startswith("_") and name not in fields}


def described(cls: type, name: str, member: Any) -> str:
    """Write one member as its signature."""
    if isinstance(member, property):
        returned = member.fget.__annotations__["return"] if member.fget else "?"
        return f"{cls.__name__}.{name}: {returned}"
    kind = "async " if inspect.iscoroutinefunction(member) else ""
    return f"{kind}{cls.__name__}.{name}{inspect.signature(member)}"


def described_class(cls: type) -> list[str]:
    """Write how an object is made, if users make it, and all its members."""
    made_by_users = cls.__name__.endswith("Provider")
    first = [f"{cls.__name__}{inspect.signature(cls)}"] if made_by_users else []
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    first += [f"{cls.__name__}.{field.name}: {field.type}" for field in fields]
    return first + [described(cls, name, member) for name, member in public_members(cls).items()]


def current() -> list[str]:
    """Write all public names as they are now."""
    functions = [f"{function.__name__}{inspect.signature(function)}" for function in FUNCTIONS]
    return [*dlock_core.__all__, *functions, *(line for cls in CLASSES for line in described_class(cls))]


def test_every_public_name_is_described() -> None:
    """The snapshot would not show a change of what it leaves out; the errors have tests of their own."""
    described = {thing.__name__ for thing in (*CLASSES, *FUNCTIONS)}
    errors = {name for name in dlock_core.__all__ if name.endswith("Error")}
    assert described | errors == {*dlock_core.__all__, *sadlock.__all__}


def test_the_public_names_and_signatures_are_as_agreed() -> None:
    """After a change that is meant, make the lines below in `public_names.txt` too, and a line in the changelog."""
    agreed = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    changed = list(difflib.unified_diff(agreed, current(), "public_names.txt", "dlock_core", lineterm="", n=0))
    assert not changed, "\n".join(changed)


def test_the_public_names_are_sorted_and_exist_once() -> None:
    """And `from dlock_core import *` gives them all."""
    assert dlock_core.__all__ == sorted(set(dlock_core.__all__))
    names: dict[str, Any] = {}
    exec("from dlock_core import *", names)
    assert set(dlock_core.__all__) == names.keys() - {"__builtins__"}


@pytest.mark.parametrize("name", dlock_core.__all__)
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    """Not one that it inherits, nor one that Python made up; its first line is a sentence."""
    public = getattr(dlock_core, name)
    docstring = (vars(public).get("__doc__") if isinstance(public, type) else public.__doc__) or ""
    first = docstring.strip().partition("\n")[0]
    assert len(first) > 15
    assert first.endswith((".", ":"))


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in CLASSES for name in public_members(cls)], ids=str)
def test_a_public_method_has_a_docstring(cls: type, name: str) -> None:
    """Methods and properties, inherited ones included; the first line is a sentence."""
    first = (inspect.getdoc(public_members(cls)[name]) or "").partition("\n")[0]
    assert len(first) > 15
    assert first.endswith((".", ":"))


@pytest.mark.parametrize("cls", CLASSES)
def test_no_public_method_swallows_unknown_options(cls: type) -> None:
    """A misspelt option must be a TypeError, so there is no **kwargs; after the key all is keyword-only."""
    for name, member in {"__init__": cls.__init__, **public_members(cls)}.items():  # type: ignore[misc]
        if isinstance(member, property):
            continue
        parameters = inspect.signature(member).parameters.values()
        assert not [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)], name
        if name in {"lock", "alock", "locked"}:
            assert [p.kind for p in parameters][2:] == [inspect.Parameter.KEYWORD_ONLY] * (len(parameters) - 2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_public_function_swallows_unknown_options(function: Any) -> None:
    """For the same reason."""
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
