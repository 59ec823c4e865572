"""Keys with gaps, `"orders:{order_id}"`: filled from a call's arguments, a URL's, or a command's options.

The text that a value has in a key is part of the wire format: a view, a task and a script that fill one template with
one value mean one lock. `tests/unit/value_vectors.json` freezes it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import string
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from uuid import UUID

from .errors import LockKeyError, LockKeyTypeError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .keys import Key, Scalar

__all__ = ["KeySource", "KeyTemplate", "key_json", "key_maker", "key_part", "key_text"]

KeySource: TypeAlias = "Key | Callable[..., Any]"
"""A key in whose text `{name}` stands for the function's argument of that name, or a callable that gets the function's
arguments and returns the key."""

_KINDS = (
    "give str, bytes, int, float, bool, None, dates and times, Decimal, UUID, Enum, a dataclass, or lists, tuples and "
    "dicts of them"
)
_CALLABLE = "give a callable that returns the key"


def key_text(value: object, name: str, *, way_out: str = _CALLABLE) -> str:
    """Return the text that stands for a value in a key: the same in every process, version and adapter.

    A str is its own text. bool and None are written as in JSON, dates and times as in ISO 8601 (a moment that knows
    its zone in UTC), bytes as `0x…`, an Enum as its value; a list, a tuple, a dict and a dataclass are canonical JSON.

    Args:
        value: What a key is made of.
        name: What the value is called, for the error.
        way_out: What else to do about a value that has no such text, for the error.

    Raises:
        LockKeyTypeError: The value's text would differ between processes; the message names the value.
    """
    part = key_part(value, name, way_out=way_out)
    return f"0x{part.hex()}" if isinstance(part, bytes) else str(part)


def key_part(value: object, name: str, *, way_out: str = _CALLABLE) -> Scalar:
    """Return a value as a part of a tuple: str, bytes and int as they are, others as their `key_text`."""
    if isinstance(value, bytes):
        return bytes(value)
    plain = _plain(value, _Origin(name, value, way_out))
    if isinstance(plain, str):
        return str.__str__(plain)  # whatever a subclass shows
    if isinstance(plain, int) and not isinstance(plain, bool):
        return int.__int__(plain)
    return _json(plain)


def key_json(value: object, name: str) -> str:
    """Return a value as canonical JSON, in which 1, "1" and True differ."""
    return _json(_plain(value, _Origin(name, value, _CALLABLE)))


def _json(plain: object) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class _Origin(NamedTuple):
    """Where a value comes from, for errors."""

    name: str
    whole: object
    way_out: str

    def refuse(self, value: object) -> LockKeyTypeError:
        inner = "" if value is self.whole else f" with a {type(value).__qualname__} in it"
        return LockKeyTypeError(
            f"key: argument {self.name} is a {type(self.whole).__qualname__}{inner}, whose text may differ between "
            f"processes: {_KINDS}; or {self.way_out}",
            key=self.name,
        )


def _plain(value: Any, origin: _Origin) -> Any:
    """Return what JSON can write of a value; a list is a tuple, a dataclass is a dict."""
    match value:
        case Enum():
            return _plain(value.value, origin)
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item, origin) for item in value]
        case dict():
            return _plain_dict(value, origin)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: _plain(getattr(value, field.name), origin) for field in dataclasses.fields(value)}
        case _:
            return _text(value, origin)


def _plain_dict(value: dict[Any, Any], origin: _Origin) -> dict[str, Any]:
    """Make all keys text, as JSON does on the wire."""
    named = {}
    for key, item in value.items():
        part = _plain(key, origin)
        named[part if isinstance(part, str) else _json(part)] = _plain(item, origin)
    if len(named) < len(value):
        raise LockKeyTypeError(
            f"key: argument {origin.name} has a dict two of whose keys are the same as text; {origin.way_out}",
            key=origin.name,
        )
    return named


def _text(value: Any, origin: _Origin) -> str:
    match value:
        case bytes():
            return f"0x{value.hex()}"
        case UUID():
            return str(value)
        case Decimal():
            text = f"{value:f}"  # normalize() would round to the precision of the thread's context
            return text.rstrip("0").rstrip(".") if "." in text else text
        case datetime():
            return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
        case date() | time():
            return value.isoformat()
        case timedelta():
            return str(value.total_seconds())
        case _:
            raise origin.refuse(value)


class KeyTemplate:
    """A key in whose texts `{name}`, `{name.attribute}` and `{name[index]}` stand for values.

    They are written as `key_text` does. A conversion or a format, as in `{when:%Y-%m}`, is Python's own.

    Args:
        key: str, bytes, int, or a tuple of them.
        names_only: Refuse all but `{name}`: for values that have come over a wire, where an object is no more.

    Attributes:
        gaps: What stands in the braces, such as "order.id".
        names: The values that they need, such as "order".

    Raises:
        LockKeyError: A brace is missing, or with `names_only` there is more than a name in one.
    """

    def __init__(self, key: Key, *, names_only: bool = False) -> None:
        self._key = key
        self._formatter = _Formatter(names_only=names_only)
        try:
            fields = [field for part in _texts(key) for field in string.Formatter().parse(part)]
        except ValueError as error:
            raise LockKeyError(f"key {shown(key)}: {error}", key=key) from error
        self.gaps = [_gap(name, spec, conversion) for _, name, spec, conversion in fields if name is not None]
        self.names = {re.split(r"[.\[!:]", gap, maxsplit=1)[0] for gap in self.gaps}
        if names_only and not all(gap.isidentifier() for gap in self.gaps):
            raise LockKeyError(
                f"key {shown(key)}: only names of parameters may stand in braces; for more {_CALLABLE}", key=key
            )

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
            LockKeyTypeError: A value's text would differ between processes.
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
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise LockKeyError(
                f"key {shown(part)}: it cannot be filled: {type(error).__name__}: {error}", key=part
            ) from error


class _Gap(NamedTuple):
    """A value on its way into a gap."""

    value: object
    text: str


class _Formatter(string.Formatter):
    """Writes canonical texts where Python would write `str(value)`."""

    def __init__(self, *, names_only: bool) -> None:
        self._names_only = names_only

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        value, used = super().get_field(field_name, args, kwargs)
        attribute = "" if self._names_only else f"name an attribute of it, such as {{{field_name}.id}}, or "
        return _Gap(value, key_text(value, field_name, way_out=attribute + _CALLABLE)), used

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion is None:
            return value
        return value.text if conversion == "s" else super().convert_field(value.value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        if not isinstance(value, _Gap):
            return super().format_field(value, format_spec)
        return super().format_field(value.value, format_spec) if format_spec else value.text


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
