"""Where the key of a decorated function comes from: a template, a list of names, or a callable."""

from __future__ import annotations

import inspect
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from dlock_core import KeyTemplate, LockKeyError, LockKeyTypeError

from .options import shown

if TYPE_CHECKING:
    from collections.abc import Callable

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
    template = KeyTemplate(_template_of(key), plain=_plain)
    if not template.names:
        constant = template.fill({}, where=function.__qualname__)
        return lambda *_args, **_kwargs: constant
    signature = inspect.signature(function)
    if not any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
        template.check_names(signature.parameters, where=function.__qualname__)

    def make(*args: Any, **kwargs: Any) -> Any:
        arguments = _arguments(signature, args, kwargs)
        if not template.names <= arguments.keys():  # else nobody asks for the name, which may need a request
            template.check_names(arguments, where=name())
        if isinstance(key, list):
            return (name(), *(_part(one, arguments[one]) for one in key))
        return template.fill(arguments, where=function.__qualname__)

    return make


def _template_of(key: Any) -> Any:
    """Return what names the same arguments as a list, or the key itself."""
    if not isinstance(key, list):
        return key
    if not all(name.isidentifier() for name in key):
        raise LockKeyError(f"key {shown(key)}: a list holds names of arguments, and nothing else", key=key)
    return tuple(f"{{{name}}}" for name in key)


def _arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by their names, with defaults; what another decorator adds is not there yet."""
    bound = signature.bind_partial(*args, **kwargs)
    bound.apply_defaults()
    found = dict(bound.arguments)
    for one in signature.parameters.values():
        if one.kind is one.VAR_KEYWORD:
            found.update(found.pop(one.name))
    return found


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
