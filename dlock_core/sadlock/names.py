"""From a key to the server's name for it, as sqlalchemy-dlock 0.9 maps it: both exclude each other.

The names are those of `dlock_core.keys` for a provider without prefix. What 0.9 accepts beyond that
(bytearray, memoryview, float, the empty text, bool as int) is brought into that form first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import keys
from ..errors import LockKeyError, LockKeyRangeError, LockKeyTypeError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect

__all__ = ["actual_key", "readable"]


def actual_key(dialect: Dialect, key: object, convert: Callable[[Any], int | str] | None) -> int | str:
    """Map a key to the database's name for the lock.

    Raises:
        LockKeyTypeError: The key, or what `convert` made of it, is of a type that cannot be a name.
        LockKeyRangeError: An int does not fit in 64 bits with sign.
        LockKeyError: `convert` made a name that the database cannot have.
    """
    match dialect.name:
        case "postgresql":
            return _int64(key) if convert is None else _converted_int64(key, convert(key))
        case "oracle":
            return _oracle(key if convert is None else _converted_int64(key, convert(key), "Oracle"), key)
        case "mssql":
            return _named(keys.mssql_name, key) if convert is None else _converted_mssql(key, convert(key))
        case "sqlite":
            return keys.file_name("", _plain(key if convert is None else convert(key), key))
        case _:
            return _named(keys.mysql_name, key) if convert is None else _converted_name(key, convert(key))


def readable(key: object) -> str:
    """Return the key as the server's views show it to people."""
    raw = bytes(key) if isinstance(key, bytearray | memoryview) else key
    return keys.label("", raw if isinstance(raw, str | bytes | int) else str(raw))


def _int64(key: object) -> int:
    plain = _plain(key, key)
    if isinstance(plain, int) and plain not in keys.INT64:
        raise LockKeyRangeError(f"key {shown(key)}: an int must fit in 64 bits with sign; use its text", key=key)
    return keys.int64("", plain)


def _oracle(key: object, given: object) -> int:
    return keys.oracle_id("", str(key) if isinstance(key, float) else _plain(key, given))


def _named(name: Callable[[str, keys.Key], str], key: object) -> str:
    if isinstance(key, int | float):
        return name("", str(key))
    plain = _plain(key, key)
    if isinstance(plain, bytes):
        try:
            plain = plain.decode()
        except UnicodeDecodeError:
            return name("", plain)
    return name("", plain)


def _plain(key: object, given: object) -> str | bytes | int:
    match key:
        case int():
            return int(key)
        case bytes() | bytearray() | memoryview():
            return bytes(key)
        case str():
            return _encodable(key, given)
        case _:
            kind = type(key).__name__
            raise LockKeyTypeError(f"key {shown(given)}: {kind} is not a key; give a str, bytes or int", key=given)


def _encodable(text: str, given: object) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LockKeyError(f"key {shown(given)}: lone surrogates have no UTF-8 form; give bytes", key=given) from error
    return str.__str__(text)


def _converted_int64(key: object, converted: object, database: str = "PostgreSQL") -> int:
    if not isinstance(converted, int):
        raise LockKeyTypeError(
            f"key {shown(key)}: convert must return an int for {database}, not {type(converted).__name__}", key=key
        )
    if int(converted) not in keys.INT64:
        raise LockKeyRangeError(f"key {shown(key)}: convert returned an int of more than 64 bits with sign", key=key)
    return int(converted)


def _converted_name(key: object, converted: object) -> str:
    """Take a name as `convert` made it; whether it minds case is then the user's business."""
    if not isinstance(converted, str):
        raise LockKeyTypeError(
            f"key {shown(key)}: convert must return a str for MySQL and MariaDB, not {type(converted).__name__}",
            key=key,
        )
    if not 0 < len(converted) <= keys.MYSQL_MAX or "\0" in converted:
        raise LockKeyError(
            f"key {shown(key)}: convert returned {shown(converted)}; a name has 1 to {keys.MYSQL_MAX} characters "
            "and no NUL, at which the server would cut it",
            key=key,
        )
    return converted


def _converted_mssql(key: object, converted: object) -> str:
    if not isinstance(converted, str):
        raise LockKeyTypeError(
            f"key {shown(key)}: convert must return a str for SQL Server, not {type(converted).__name__}", key=key
        )
    if not 0 < len(_encodable(converted, key).encode()) <= keys.MSSQL_MAX:
        raise LockKeyError(
            f"key {shown(key)}: convert returned {shown(converted)}; a name has 1 to {keys.MSSQL_MAX} bytes of UTF-8, "
            "beyond which some servers would cut it",
            key=key,
        )
    return converted
