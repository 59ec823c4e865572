"""The wire format of keys, written down a second time, and the generator of its frozen vectors.

Nothing here comes from `dlock_core.keys`: what both compute alike, two people could have computed.
`python -m tests.unit.key_vectors` writes `key_vectors.json` anew; a change of a vector that existed
before lets an old and a new process hold one lock at once, so it needs a new major version.
"""

from __future__ import annotations

import json
import struct
import unicodedata
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

Scalar = str | bytes | int
Key = str | bytes | int | tuple[str | bytes | int, ...]

VECTORS = Path(__file__).with_name("key_vectors.json")
PREFIXES = ("", "app")
KEYS: tuple[Key, ...] = (
    "a",
    "orders:42",
    "nightly-report",
    "with blank",
    " leading",
    "trailing ",
    "   ",
    "Orders:42",
    "ORDERS",
    "a~b",
    "~",
    "a\0b",
    "\0",
    "a-\0- b",
    "two\nlines\tand\x7f",
    "a'b\"c\\d%s{e}:f$1?;--",
    "ключ",
    "Заказ:42",
    "straße",
    "\u0130stanbul",  # its lower case has two characters, the first of them ASCII
    "\u212a",  # the Kelvin sign, whose lower case is an ASCII k
    "e\u0301",
    "\u00e9",
    "a\u00a0b",
    "a\u202eb",
    "🔒",
    "🔒:orders",
    "x" * 63,
    "x" * 64,
    "x" * 65,
    "X" * 64,
    "x" * 63 + " ",
    "я" * 64,
    "x" * 255,
    "x" * 256,
    "я" * 200,
    "x" * 5000,
    "5",
    b"5",
    5,
    b"a",
    b"orders:42",
    b"Orders:42",
    b"\xff\x00\x80",
    "\u0433".encode(),
    "\u0433".encode("cp1251"),
    b"x" * 64,
    b"x" * 300,
    0,
    1,
    -1,
    42,
    -42,
    2**31,
    2**63 - 1,
    -(2**63),
    ("a",),
    (b"a",),
    (1,),
    ("orders", 42),
    ("orders", "42"),
    ("orders", b"42"),
    ("orders:42",),
    ("orders", ":42"),
    ("orders:", "42"),
    ("a", "b", "c"),
    ("a", "bc"),
    ("ab", "c"),
    ("заказ", 42, b"\xff"),
    ("🔒", -(2**63), 2**63 - 1),
    ("\0", "\0\0"),
    ("\0\0", "\0"),
    ("x" * 300, "X" * 300),
    tuple(range(20)),
)

ASCII_PRINTABLE = {chr(code) for code in range(0x20, 0x7F)}
CAPITALS = {chr(code) for code in range(ord("A"), ord("Z") + 1)}
VERBATIM = ASCII_PRINTABLE - CAPITALS - {"~"}
READABLE = set("abcdefghijklmnopqrstuvwxyz0123456789._:/@-")


def compute(prefix: str, key: Key) -> dict[str, Any]:
    """Compute all names of one key."""
    return {
        "int64": _int64(prefix, key),
        "mysql_name": _mysql_name(prefix, key),
        "mssql_name": _mssql_name(prefix, key),
        "oracle_id": _oracle_id(prefix, key),
        "file_name": _hash(prefix, key, 16).hex(),
        "label": _label(prefix, key),
    }


def _int64(prefix: str, key: Key) -> int:
    if isinstance(key, tuple) or prefix:
        digest = _hash(prefix, key, 8)
    elif isinstance(key, int):
        return key
    else:
        digest = blake2b(_bytes(key), digest_size=8).digest()
    number: int = struct.unpack("<q", digest)[0]
    return number


def _mysql_name(prefix: str, key: Key) -> str:
    if not prefix and not isinstance(key, tuple):
        codes = list(_bytes(key))
        if len(codes) <= 64 and codes[-1] != 0x20 and all(chr(code) in VERBATIM for code in codes):
            return "".join(map(chr, codes))
    return _readable(prefix, key)[:31] + "~" + _hash(prefix, key, 16).hex()


def _mssql_name(prefix: str, key: Key) -> str:
    if not prefix and not isinstance(key, tuple):
        raw = _bytes(key)
        with suppress(UnicodeDecodeError):
            if len(raw) <= 255 and not any(code < 0x20 or code == 0x7F for code in raw):
                return raw.decode("utf-8")
    digest = _hash(prefix, key, 16).hex()
    return "|".join((digest[:8], _readable(prefix, key)[:221], digest[8:]))


def _oracle_id(prefix: str, key: Key) -> int:
    if isinstance(key, int) and not prefix:
        return key & 0x3FFFFFFF
    return _int64(prefix, key) & 0x3FFFFFFF


def _readable(prefix: str, key: Key) -> str:
    readable, in_gap = "", False
    for character in _label(prefix, key).lower():
        if character in READABLE:
            readable += character
        elif not in_gap:
            readable += "-"
        in_gap = character not in READABLE
    return readable


def _label(prefix: str, key: Key) -> str:
    parts = [part for part in (prefix, *(key if isinstance(key, tuple) else (key,))) if part != ""]
    text = ":".join(
        part.decode("utf-8", "backslashreplace") if isinstance(part, bytes) else f"{part}" for part in parts
    )
    return "".join("?" if c != " " and unicodedata.category(c)[0] in "CZ" else c for c in text)


def _hash(prefix: str, key: Key, size: int) -> bytes:
    message = bytearray(b"t" if isinstance(key, tuple) else b"k")
    for part in (prefix, *(key if isinstance(key, tuple) else (key,))):
        data = _bytes(part)
        message += {str: b"s", bytes: b"b", int: b"i"}[type(part)] + struct.pack(">I", len(data)) + data
    return blake2b(message, digest_size=size, person=b"dlock1").digest()


def _bytes(part: Scalar) -> bytes:
    return part if isinstance(part, bytes) else f"{part}".encode()


def to_json(key: Key) -> dict[str, Any]:
    """Write a key so that any language can read it."""
    if isinstance(key, tuple):
        return {"tuple": [to_json(part) for part in key]}
    return {"bytes": key.hex()} if isinstance(key, bytes) else {type(key).__name__: key}


def from_json(written: dict[str, Any]) -> Any:
    """Read a key back."""
    ((kind, value),) = written.items()
    match kind:
        case "tuple":
            return tuple(from_json(part) for part in value)
        case "bytes":
            return bytes.fromhex(value)
        case _:
            return value


def main() -> None:
    """Write the vectors."""
    vectors = [{"prefix": p, "key": to_json(k), **compute(p, k)} for p in PREFIXES for k in KEYS]
    lines = ",\n".join(json.dumps(vector) for vector in vectors)
    VECTORS.write_text(f"[\n{lines}\n]\n", encoding="ascii")


if __name__ == "__main__":
    main()
