"""Where the key of a decorated function comes from: a template, a list of names, or a callable."""

from __future__ import annotations

import inspect
import string
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from dlock_core import LockKeyError, LockKeyTypeError

from .options import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["KeySource", "key_maker"]

KeySource: TypeAlias = "str | bytes | int | tuple[str | bytes | int, ...] | list[str] | Callable[..., Any]"
"""A key in whose text `{name}` stands for an argument; a list of arguments' names; or a callable that gets the
arguments and returns the key."""
# What reads alike in every process; an object's default text has its address in it.
PLAIN = (str, int, float, Decimal, UUID, date, time, Enum, type(None))


def key_maker(key: Any, function: Callable[..., Any], name: Callable[[], str]) -> Callable[..., Any]:
    """Return what computes the key of one call.

    Args:
        key: A template over the arguments; a tuple, whose texts are such; a list of arguments'
            names, which stands for the name and their values; or a callable that gets the arguments.
        function: Whose calls.
        name: What the function is called where it runs, such as the endpoint of a view.

    Raises:
        LockKeyError: At once, if no call of the function can have what the template names.
    """
    if callable(key):
        return key  # type: ignore[no-any-return]
    signature = inspect.signature(function)
    wanted = set(key) if isinstance(key, list) else _fields(key)
    takes_more = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    if not takes_more:
        _refuse_unknown(key, wanted, signature.parameters, lambda: function.__qualname__)

    def make(*args: Any, **kwargs: Any) -> Any:
        arguments = _arguments(signature, args, kwargs)
        _refuse_unknown(key, wanted, arguments, name)
        if isinstance(key, list):
            return (name(), *(_part(one, arguments[one]) for one in key))
        return _filled(key, arguments)

    return make if wanted else lambda *_args, **_kwargs: key


def _arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by their names, with defaults; what another decorator adds is not there yet."""
    bound = signature.bind_partial(*args, **kwargs)
    bound.apply_defaults()
    found = dict(bound.arguments)
    for one in signature.parameters.values():
        if one.kind is one.VAR_KEYWORD:
            found.update(found.pop(one.name))
    return found


def _refuse_unknown(key: Any, wanted: set[str], there: Mapping[str, Any], name: Callable[[], str]) -> None:
    missing = ", ".join(sorted(wanted - there.keys()))
    if missing:
        has = ", ".join(there) or "no arguments"
        raise LockKeyError(f"key {shown(key)}: {name()} has no argument {missing}; it has {has}", key=key)


def _fields(key: Any) -> set[str]:
    """Return the arguments' names in the templates of a key."""
    if isinstance(key, tuple):
        return {name for part in key for name in _fields(part)}
    if not isinstance(key, str):
        return set()
    fields = (field for _, field, _, _ in string.Formatter().parse(key) if field is not None)
    return {field.partition(".")[0].partition("[")[0] for field in fields}


def _filled(key: Any, arguments: Mapping[str, Any]) -> Any:
    if isinstance(key, tuple):
        return tuple(_filled(part, arguments) for part in key)
    return _Template().vformat(key, (), arguments) if isinstance(key, str) else key


class _Template(string.Formatter):
    """Text with `{name}`, `{name.attribute}` and `{name[index]}`."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        value, used = super().get_field(field_name, args, kwargs)
        return _plain(field_name, value), used


def _plain(name: str, value: object) -> object:
    if isinstance(value, PLAIN):
        return value
    raise LockKeyTypeError(
        f"key: {name} is a {type(value).__name__}, whose text may differ between processes: "
        f"name an attribute of it, such as {{{name}.id}}, or give a callable",
        key=name,
    )


def _part(name: str, value: object) -> Any:
    """Return a value as a part of a key: text and numbers as they are, other plain values as text."""
    return value if isinstance(value, str | int | bytes) else str(_plain(name, value))
