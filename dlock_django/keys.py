"""Keys with gaps: `"doc:{pk}"` is filled from a call's arguments, a URL's, or a command's options."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

from dlock_core import LockKeyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Key", "KeySource", "filled", "key_of_call"]

Key: TypeAlias = "str | bytes | int | tuple[str | bytes | int, ...]"
"""A str, bytes or int of 64 bits with sign, or a tuple of them."""
KeySource: TypeAlias = "Key | Callable[..., Key]"
"""A key in whose text `{name}` stands for an argument, or a callable that gets the arguments and returns the key."""


def filled(key: Key, values: Mapping[str, Any], *, where: str) -> Key:
    """Fill the gaps of a key.

    Raises:
        LockKeyError: There is no value for a gap; `where` says where it was looked for.
    """
    if isinstance(key, tuple):
        return tuple(_filled(part, values, where) for part in key)
    return _filled(key, values, where)


def _filled(part: str | bytes | int, values: Mapping[str, Any], where: str) -> str | bytes | int:
    if not isinstance(part, str):
        return part
    try:
        return part.format_map(values)
    except (KeyError, IndexError, ValueError) as error:
        raise LockKeyError(
            f"key {part!r}: {where} has nothing for {error}; it has {', '.join(values) or 'nothing'}", key=part
        ) from error


def key_of_call(key: KeySource, function: Callable[..., Any], args: Any, kwargs: Any) -> Key:
    """Return the key of one call of a function, filled from its arguments and their defaults."""
    if callable(key):
        return key(*args, **kwargs)
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return filled(key, bound.arguments, where=function.__qualname__)
