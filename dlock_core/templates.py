"""Keys with gaps: `"orders:{order_id}"` is filled from a call's arguments, a URL's, or a command's options."""

from __future__ import annotations

import inspect
import re
import string
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import LockKeyError, LockKeyTypeError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .keys import Key, Scalar

__all__ = ["KeySource", "KeyTemplate", "key_maker"]

KeySource: TypeAlias = "Key | Callable[..., Any]"
"""A key in whose text `{name}` stands for the function's argument of that name, or a callable that gets the function's
arguments and returns the key."""

# The address in the default text of an object.
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")


def _as_it_is(gap: str, value: Any) -> Any:
    """Return a value, unless its text is another in each process: then each would have a lock of its own."""
    if isinstance(value, str | int) or not (isinstance(value, set | frozenset) or _ADDRESS.search(str(value))):
        return value
    raise LockKeyTypeError(
        f"key: {gap} is a {type(value).__name__}, whose text differs between processes: "
        f"name an attribute of it, such as {{{gap}.id}}, or give a callable",
        key=gap,
    )


class KeyTemplate:
    """A key in whose texts `{name}`, `{name.attribute}` and `{name[index]}` stand for values.

    Args:
        key: str, bytes, int, or a tuple of them.
        plain: Called with what stands in a gap and with its value; returns what is written there. Default: the
            value itself, refused if its text is another in each process.

    Attributes:
        gaps: What stands in the braces, such as "order.id".
        names: The values that they need, such as "order".

    Raises:
        LockKeyError: A brace is missing.
    """

    def __init__(self, key: Key, *, plain: Callable[[str, Any], Any] = _as_it_is) -> None:
        self._key = key
        self._formatter = _Formatter(plain)
        try:
            fields = [field for part in _texts(key) for field in string.Formatter().parse(part)]
        except ValueError as error:
            raise LockKeyError(f"key {shown(key)}: {error}", key=key) from error
        self.gaps = [_gap(name, spec, conversion) for _, name, spec, conversion in fields if name is not None]
        self.names = {re.split(r"[.\[!:]", gap, maxsplit=1)[0] for gap in self.gaps}

    def check_names(self, there: Collection[str], *, where: str) -> None:
        """Make sure that each gap has a value among those that are there; `where` says where, for the error.

        Raises:
            LockKeyError: One has none.
        """
        missing = ", ".join(name or "{}" for name in sorted(self.names.difference(there)))
        if missing:
            has = ", ".join(there) or "nothing"
            raise LockKeyError(
                f"key {shown(self._key)}: {where} has nothing for {missing}; it has {has}", key=self._key
            )

    def fill(self, values: Mapping[str, Any], *, where: str) -> Key:
        """Return the key with its gaps filled.

        Raises:
            LockKeyError: A gap has no value, or its value no such attribute.
            LockKeyTypeError: A value's text differs between processes.
        """
        self.check_names(values, where=where)
        if isinstance(self._key, tuple):
            return tuple(self._filled(part, values) for part in self._key)
        return self._filled(self._key, values)

    def _filled(self, part: Scalar, values: Mapping[str, Any]) -> Scalar:
        if not isinstance(part, str):
            return part
        try:
            return self._formatter.vformat(part, (), values)
        except LockKeyError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise LockKeyError(
                f"key {shown(part)}: it cannot be filled: {type(error).__name__}: {error}", key=part
            ) from error


class _Formatter(string.Formatter):
    def __init__(self, plain: Callable[[str, Any], Any]) -> None:
        self._plain = plain

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        value, used = super().get_field(field_name, args, kwargs)
        return self._plain(field_name, value), used


def key_maker(key: KeySource, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what computes the key of one call of a function: a callable, or a template over its arguments.

    Raises:
        LockKeyError: The function has no parameter of a name that the template needs.
    """
    if callable(key):
        return key
    template, where = KeyTemplate(key), getattr(function, "__qualname__", shown(function))
    if not template.names:
        constant = template.fill({}, where=where)
        return lambda *_args, **_kwargs: constant
    signature = inspect.signature(function)
    template.check_names(signature.parameters, where=where)

    def from_arguments(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return template.fill(bound.arguments, where=where)

    return from_arguments


def _texts(key: Key) -> list[str]:
    return [part for part in (key if isinstance(key, tuple) else (key,)) if isinstance(part, str)]


def _gap(name: str, spec: str | None, conversion: str | None) -> str:
    return f"{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}"
