"""From the arguments of a task to one text, the same before and after a wire."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from dlock_core import LockKeyTypeError

__all__ = ["key_part", "key_text"]

HINT = (
    "give str, bytes, numbers, bool, None, dates and times, Decimal, UUID, Enum, dataclasses, or lists, tuples "
    "and dicts of them; or compute the key yourself: key=lambda …"
)


def key_text(value: Any, parameter: str) -> str:
    """Write a value as canonical JSON: a list is a tuple, a dict is sorted and its keys are text.

    Raises:
        LockKeyTypeError: There is no such form; the message names the parameter.
    """
    plain = _plain(value, parameter)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def key_part(value: Any, parameter: str) -> str | bytes | int:
    """Return a value as a part of a key: text, bytes and integers as they are, others as their canonical text."""
    plain = value if isinstance(value, bytes) else _plain(value, parameter)
    if isinstance(plain, bytes | str) or (isinstance(plain, int) and not isinstance(plain, bool)):
        return plain
    return key_text(plain, parameter)


def _plain(value: Any, parameter: str) -> Any:
    match value:
        case Enum():
            return _plain(value.value, parameter)
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item, parameter) for item in value]
        case dict():
            return _plain_dict(value, parameter)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return _plain(fields, parameter)
        case _:
            return _text(value, parameter)


def _plain_dict(value: dict[Any, Any], parameter: str) -> dict[str, Any]:
    """Make all keys text, as JSON does on the wire."""
    named = {_name(key, parameter): _plain(item, parameter) for key, item in value.items()}
    if len(named) < len(value):
        raise LockKeyTypeError(f"argument {parameter}: keys of a dict are the same as text; {HINT}", key=None)
    return named


def _name(key: Any, parameter: str) -> str:
    part = _plain(key, parameter)
    return part if isinstance(part, str) else json.dumps(part)


def _text(value: Any, parameter: str) -> str:
    match value:
        case bytes():
            return f"0x{value.hex()}"
        case UUID():
            return str(value)
        case Decimal():
            return f"{value.normalize():f}"
        case datetime():
            return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
        case date() | time():
            return value.isoformat()
        case timedelta():
            return str(value.total_seconds())
        case _:
            kind = type(value).__qualname__
            raise LockKeyTypeError(f"argument {parameter}: {kind} has no canonical form for a lock's key; {HINT}")
