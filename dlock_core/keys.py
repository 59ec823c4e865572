"""From a user's key to the name that each server accepts.

This mapping is a wire format: two processes exclude each other only if they compute the same name,
whatever their host, framework or version. It is pure, and frozen by `tests/unit/key_vectors.json`.

A scalar without a prefix maps as sqlalchemy-dlock 0.9 maps it on a little-endian host, so that both
libraries exclude each other; on MySQL, MariaDB and SQL Server as far as all servers and drivers
read its name alike. Everything else is hashed over typed, length-prefixed parts, so that no
two different keys can run together ("app" + "1:x" and "app1" + ":x").
"""

from __future__ import annotations

import itertools
import json
import re
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

from .errors import LockKeyError, LockKeyRangeError, LockKeyTypeError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Key",
    "Scalar",
    "check_key",
    "check_prefix",
    "dump_key",
    "file_name",
    "int64",
    "label",
    "load_key",
    "mssql_name",
    "mysql_name",
    "oracle_id",
    "readings",
]

Scalar: TypeAlias = str | bytes | int
Key: TypeAlias = str | bytes | int | tuple[str | bytes | int, ...]
"""A str, bytes or int of 64 bits with sign, or a tuple of them. 1 and "1" are different keys, but
without a prefix one and the same to MySQL, MariaDB and SQL Server."""

INT64 = range(-(2**63), 2**63)
MYSQL_MAX = 64
MSSQL_MAX = 255
ORACLE_IDS = 2**30
_HINT = "give a str, bytes, int, or a tuple of them"
# What MySQL and MariaDB, of whatever version and character set, read as one and the same name.
_MYSQL_VERBATIM = re.compile(r"[ -@\[-`{-}a-z]*[!-@\[-`{-}a-z]")
# Without control characters: T-SQL reads a backslash before a line's end, in a literal, as neither of the two.
_MSSQL_VERBATIM = re.compile(r"[^\x00-\x1f\x7f]+")
# The form that a hashed name has: a verbatim key may have it on purpose.
_MSSQL_DIGEST = re.compile(r"[0-9a-f]{8}\|.*\|[0-9a-f]{24}")
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
# How many parts a label may have that is read in every way.
READ_PARTS = 6
_NOT_READABLE = re.compile(r"[^a-z0-9._:/@-]+")


def check_key(key: object) -> Key:
    """Return the key as plain built-in values.

    Raises:
        LockKeyTypeError: It is not a str, bytes, int or tuple of them (bool, None and float are refused too).
        LockKeyRangeError: An int does not fit in 64 bits with sign.
        LockKeyError: It is empty, or text that has no UTF-8 form.
    """
    if not isinstance(key, tuple):
        return _check_scalar(key, key)
    if not key:
        raise LockKeyError(f"key (): an empty tuple names nothing; {_HINT}", key=key)
    return tuple(_check_scalar(part, key) for part in key)


def _check_scalar(part: object, key: object) -> Scalar:
    if isinstance(part, bool) or not isinstance(part, str | bytes | int):
        raise LockKeyTypeError(f"{_where(part, key)}: {type(part).__name__} is not a key; {_HINT}", key=key)
    if isinstance(part, int):
        if int(part) not in INT64:
            raise LockKeyRangeError(
                f"{_where(part, key)}: an int key must fit in 64 bits with sign; use its text", key=key
            )
        return int(part)
    if not part:
        raise LockKeyError(f"{_where(part, key)}: empty; give it at least one character", key=key)
    if isinstance(part, bytes):
        return bytes(part)
    return _check_text(str.__str__(part), key, part)


def _where(part: object, key: object) -> str:
    return f"key {shown(key)}" if part is key else f"key {shown(key)}, part {shown(part)}"


def _check_text(text: str, key: object, part: object) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LockKeyError(
            f"{_where(part, key)}: lone surrogates have no UTF-8 form; give bytes instead", key=key
        ) from error
    return text


def check_prefix(prefix: object) -> str:
    """Return the prefix, or say why it cannot be one."""
    if not isinstance(prefix, str):
        raise LockKeyTypeError(f"prefix={shown(prefix)}: give a str, '' for none", key=prefix)
    try:
        return _check_text(str.__str__(prefix), prefix, prefix)
    except LockKeyError as error:
        raise LockKeyError(f"prefix={shown(prefix)}: lone surrogates have no UTF-8 form", key=prefix) from error


def int64(prefix: str, key: Key) -> int:
    """Map to PostgreSQL's signed 64 bits."""
    if isinstance(key, int) and not prefix:
        return key
    return int.from_bytes(_short_digest(prefix, key), "little", signed=True)


def mysql_name(prefix: str, key: Key) -> str:
    """Map to a name that MySQL (64 characters, no case, cut at NUL) and MariaDB read alike."""
    if not prefix and not isinstance(key, tuple):
        text = _raw(key).decode("ascii", "replace")
        if len(text) <= MYSQL_MAX and "~" not in text and _MYSQL_VERBATIM.fullmatch(text):
            return text
    digest = _digest(prefix, key, 16).hex()
    readable = _NOT_READABLE.sub("-", label(prefix, key).lower())
    return f"{readable[: MYSQL_MAX - len(digest) - 1]}~{digest}"


def mssql_name(prefix: str, key: Key) -> str:
    """Map to a name of at most 255 bytes; its first 32 characters, which SQL Server's views show, differ."""
    if not prefix and not isinstance(key, tuple):
        with suppress(UnicodeDecodeError):
            text = (raw := _raw(key)).decode()
            if len(raw) <= MSSQL_MAX and _MSSQL_VERBATIM.fullmatch(text) and not _MSSQL_DIGEST.fullmatch(text):
                return text
    digest = _digest(prefix, key, 16).hex()
    readable = _NOT_READABLE.sub("-", label(prefix, key).lower())
    return f"{digest[:8]}|{readable[: MSSQL_MAX - len(digest) - 2]}|{digest[8:]}"


def oracle_id(prefix: str, key: Key) -> int:
    """Map to a user lock's number in Oracle, of 30 bits; ints beyond wrap around, as in sqlalchemy-dlock."""
    if isinstance(key, int) and not prefix:
        return key % ORACLE_IDS
    return int.from_bytes(_short_digest(prefix, key), "little") % ORACLE_IDS


def file_name(prefix: str, key: Key) -> str:
    """Map to the name of SQLite's lock file: only the hash, never the key."""
    return _digest(prefix, key, 16).hex()


def label(prefix: str, key: Key) -> str:
    """Return the readable form for people: logs and the server's views; no control characters."""
    parts = [prefix] if prefix else []
    parts += [_name_part(part) for part in (key if isinstance(key, tuple) else (key,))]
    text = ":".join(parts)
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


def dump_key(prefix: str, key: Key) -> str:
    """Write a key with its prefix as ASCII, to be read by `load_key`."""
    return json.dumps([prefix, key], default=lambda part: {"bytes": part.hex()})


def load_key(text: str) -> tuple[str, Key]:
    """Read what `dump_key` wrote.

    Raises:
        ValueError: It is something else.
    """
    match json.loads(text, object_hook=lambda part: bytes.fromhex(str(part.get("bytes")))):
        case [str(prefix), list(parts)]:
            return prefix, check_key(tuple(parts))
        case [str(prefix), key]:
            return prefix, check_key(key)
        case _:
            raise ValueError(f"{text!r} is no key with its prefix")


def readings(text: str) -> Iterator[tuple[str, Key]]:
    """Find the keys, each with its prefix, whose label this may be; which of them it is, the server's name tells."""
    parts = text.split(":")
    separators = (":", "") if len(parts) <= READ_PARTS else (":",)
    for between in itertools.product(separators, repeat=len(parts) - 1):
        grouped = [parts[0]]
        for separator, part in zip(between, parts[1:], strict=True):
            if separator:
                grouped[-1] += separator + part
            else:
                grouped.append(part)
        kinds: list[tuple[Scalar, ...]] = [
            (part, int(part)) if _NUMBER.fullmatch(part) else (part,) for part in grouped
        ]
        for prefix, choices in (("", kinds), (grouped[0], kinds[1:])):
            for key in itertools.product(*choices) if choices else ():
                yield prefix, key
                if len(key) == 1:
                    yield prefix, key[0]


def _name_part(part: Scalar) -> str:
    return part.decode("utf-8", "backslashreplace") if isinstance(part, bytes) else str(part)


def _raw(part: Scalar) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode()


def _short_digest(prefix: str, key: Key) -> bytes:
    if prefix or isinstance(key, tuple):
        return _digest(prefix, key, 8)
    return blake2b(_raw(key), digest_size=8).digest()


def _digest(prefix: str, key: Key, size: int) -> bytes:
    parts: tuple[Scalar, ...] = key if isinstance(key, tuple) else (key,)
    kind = b"t" if isinstance(key, tuple) else b"k"
    encoded = b"".join(map(_encode, (prefix, *parts)))
    return blake2b(kind + encoded, digest_size=size, person=b"dlock1").digest()


def _encode(part: Scalar) -> bytes:
    tag = b"i" if isinstance(part, int) else b"b" if isinstance(part, bytes) else b"s"
    raw = _raw(part)
    return tag + len(raw).to_bytes(4, "big") + raw
