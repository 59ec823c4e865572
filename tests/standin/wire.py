"""As much of SQL Server's wire protocol (TDS 7.2 to 7.4, unencrypted) as our drivers need.

https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-tds
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

__all__ = [
    "ATTENTION",
    "BATCH",
    "LOGIN",
    "PRELOGIN",
    "RPC",
    "TRANSACTION",
    "Call",
    "Reader",
    "packets",
    "tokens",
    "transaction",
]

BATCH, RPC, ATTENTION, TRANSACTION, LOGIN, PRELOGIN, REPLY = 1, 3, 6, 14, 16, 18, 4
END_OF_MESSAGE = 1
COLLATION = bytes.fromhex("0904d00034")
MORE, COUNT, ATTENTION_SEEN, ERROR = 1, 0x10, 0x20, 2
BEGIN, COMMIT, ROLLBACK = 5, 7, 8
PROCEDURES = {10: "sp_executesql", 11: "sp_prepare", 12: "sp_execute", 13: "sp_prepexec", 15: "sp_unprepare"}


class Reader:
    """Reads messages, which may come in several packets."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Yield the kind and the body of each message, until the client hangs up."""
        body = b""
        while header := self._stream.read(8):
            kind, status, length = struct.unpack(">BBH", header[:4])
            body += self._stream.read(length - 8)
            if status & END_OF_MESSAGE:
                yield kind, body
                body = b""


def packets(body: bytes) -> bytes:
    """Wrap a reply into packets."""
    size = 4088
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    return b"".join(
        struct.pack(">BBHHBB", REPLY, part is parts[-1], len(part) + 8, 0, number % 256, 0) + part
        for number, part in enumerate(parts, 1)
    )


def without_headers(body: bytes) -> bytes:
    """Cut off what TDS 7.2 and later put before a batch or call."""
    return body[struct.unpack_from("<I", body)[0] :]


def transaction(body: bytes) -> tuple[bool, bool]:
    """Read what a client wants of its transaction: to end it, to begin one, or both."""
    body = without_headers(body)
    (request,) = struct.unpack_from("<H", body)
    if request not in (COMMIT, ROLLBACK):
        return False, request == BEGIN
    return True, bool(body[3 + body[2]] & 1)  # behind the name of the transaction


@dataclass
class Call:
    """A remote procedure call."""

    procedure: str
    values: list[Any]

    @classmethod
    def parse(cls, body: bytes) -> Call:
        """Read a call."""
        body = without_headers(body)
        (length,) = struct.unpack_from("<H", body)
        if length == 0xFFFF:
            procedure, at = PROCEDURES[struct.unpack_from("<H", body, 2)[0]], 4
        else:
            procedure, at = body[2 : 2 + 2 * length].decode("utf-16-le"), 2 + 2 * length
        at += 2  # options
        values = []
        while at < len(body):
            at += 1 + 2 * body[at] + 1  # the name, and whether it is for output
            value, at = _value(body, at)
            values.append(value)
        return cls(procedure.lower(), values)

    @property
    def named(self) -> tuple[str, dict[str, Any]]:
        """The statement and its parameters, of a call that brings both."""
        declared, statement, values = self.values[0], self.values[1], self.values[2:]
        if self.procedure == "sp_executesql":
            declared, statement = statement, declared
        return statement, named(declared, values)


def named(declared: str | None, values: Sequence[Any]) -> dict[str, Any]:
    """Give values the names that a declaration of parameters has for them."""
    return dict(zip(re.findall(r"@\w+", declared or ""), values, strict=False))


def _value(body: bytes, at: int) -> tuple[Any, int]:
    kind, at = body[at], at + 1
    match kind:
        case 0x26 | 0x68 | 0x6D:  # INTN, BITN, FLTN
            at += 1
            length, at = body[at], at + 1
            return (int.from_bytes(body[at : at + length], "little", signed=True) if length else None), at + length
        case 0x38:  # INT4
            return struct.unpack_from("<i", body, at)[0], at + 4
        case 0xE7 | 0xEF | 0xA7 | 0xAF:  # NVARCHAR, NCHAR, VARCHAR, CHAR
            size = struct.unpack_from("<H", body, at)[0]
            encoding = "utf-16-le" if kind in (0xE7, 0xEF) else "utf-8"
            raw, at = (_chunks if size == 0xFFFF else _short)(body, at + 7)
            return (None if raw is None else raw.decode(encoding)), at
        case 0x63 | 0x23:  # NTEXT, TEXT
            (length,) = struct.unpack_from("<i", body, at + 9)
            at += 13
            length = max(0, length)
            return body[at : at + length].decode("utf-16-le" if kind == 0x63 else "utf-8"), at + length
        case _:
            raise AssertionError(f"a value of type {kind:#x}")


def _short(body: bytes, at: int) -> tuple[bytes | None, int]:
    (length,) = struct.unpack_from("<H", body, at)
    return (None, at + 2) if length == 0xFFFF else (body[at + 2 : at + 2 + length], at + 2 + length)


def _chunks(body: bytes, at: int) -> tuple[bytes | None, int]:
    (total,) = struct.unpack_from("<Q", body, at)
    at += 8
    if total == 2**64 - 1:
        return None, at
    found = b""
    while (length := struct.unpack_from("<I", body, at)[0]) > 0:
        found += body[at + 4 : at + 4 + length]
        at += 4 + length
    return found, at + 4


class tokens:  # noqa: N801 - a namespace
    """What a server says."""

    @staticmethod
    def prelogin() -> bytes:
        """No encryption, no several results at a time."""
        options = [(0, b"\x10\x00\x03\xe8\x00\x00"), (1, b"\x02"), (2, b"\x00"), (3, b""), (4, b"\x00")]
        at, head, data = 5 * len(options) + 1, b"", b""
        for kind, value in options:
            head += struct.pack(">BHH", kind, at + len(data), len(value))
            data += value
        return head + b"\xff" + data

    @staticmethod
    def logged_in(version: int) -> bytes:
        """You are in."""
        name = _text("Microsoft SQL Server")
        ack = b"\x01" + struct.pack(">I", version) + name + b"\x10\x00\x03\xe8"
        database = b"\x01" + _text("dlock") + _text("master")
        collation = b"\x07" + b"\x05" + COLLATION + b"\x00"
        size = b"\x04" + _text("4096") + _text("4096")
        changes = b"".join(b"\xe3" + struct.pack("<H", len(part)) + part for part in (database, collation, size))
        return changes + b"\xad" + struct.pack("<H", len(ack)) + ack + tokens.done()

    @staticmethod
    def refused(text: str) -> bytes:
        """You are not."""
        return tokens.error(18456, text, 14) + tokens.done(status=ERROR)

    @staticmethod
    def error(number: int, text: str, severity: int) -> bytes:
        """An error."""
        raw = text.encode("utf-16-le")
        body = struct.pack("<iBBH", number, 1, severity, len(text)) + raw + _text("standin") + _text("")
        body += struct.pack("<i", 1)
        return b"\xaa" + struct.pack("<H", len(body)) + body

    @staticmethod
    def rows(rows: Sequence[tuple[Any, ...]], *, kind: int, more: bool) -> bytes:
        """A result: columns are numbers or texts."""
        width = len(rows[0]) if rows else 1
        numbers = [all(isinstance(row[column], int) for row in rows) for column in range(width)]
        columns = b"".join(
            b"\x00\x00\x00\x00\x09\x00" + (b"\x26\x08" if number else _NVARCHAR) + _text("") for number in numbers
        )
        found = b"\x81" + struct.pack("<H", width) + columns
        for row in rows:
            found += b"\xd1" + b"".join(map(_column, row))
        return found + tokens.done(kind, status=COUNT | (MORE if more else 0), count=len(rows))

    @staticmethod
    def done(kind: int = 0xFD, *, status: int = 0, count: int = 0) -> bytes:
        """The end of a statement."""
        return struct.pack("<BHHQ", kind, status, 0xC1, count)

    @staticmethod
    def called(handle: int | None, *, failed: bool) -> bytes:
        """The end of a call: what it returned, and its output."""
        found = b"\x79" + struct.pack("<i", 0)
        if handle is not None:
            found += b"\xac" + struct.pack("<H", 0) + _text("") + b"\x01" + b"\x00\x00\x00\x00\x00\x00"
            found += b"\x26\x04\x04" + struct.pack("<i", handle)
        return found + tokens.done(0xFE, status=ERROR if failed else 0)

    @staticmethod
    def transaction(*, begins: bool) -> bytes:
        """A transaction has begun or ended."""
        number = struct.pack("<Q", 1)
        body = b"\x08\x08" + number + b"\x00" if begins else b"\x09\x00\x08" + number
        return b"\xe3" + struct.pack("<H", len(body)) + body


_NVARCHAR = b"\xe7" + struct.pack("<H", 8000) + COLLATION


def _column(value: Any) -> bytes:
    if isinstance(value, int):
        return b"\x08" + struct.pack("<q", value)
    if value is None:
        return b"\xff\xff"
    raw = str(value).encode("utf-16-le")
    return struct.pack("<H", len(raw)) + raw


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode("utf-16-le")
