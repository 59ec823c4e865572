"""Holders and waiters on the screen, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlock_core import LockError, LockInfo, LockProvider, LockWaiter, NotPermittedError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["find", "holder_of", "look", "print_json", "print_table"]

# Columns of a table that no terminal limits.
WIDE = 200
UNNAMED = "(unnamed)"


def look(locks: LockProvider) -> tuple[list[LockInfo], str]:
    """Return all holders that the database shows, and why these are not all; '' when they are."""
    try:
        return locks.inspect(), ""
    except NotPermittedError as error:
        return list(error.found), str(error)


def find(locks: LockProvider, key: str) -> list[LockInfo]:
    """Return the holders of a key, given as applications write it or as `list` shows it."""
    return locks.inspect(key) or [info for info in look(locks)[0] if key in (info.key, str(info.actual_key))]


def holder_of(locks: LockProvider, key: str) -> str:
    """Return who holds a key in a few words, '' when nobody can tell."""
    try:
        found = locks.inspect(key)
    except LockError:
        return ""
    return f"{found[0].party}{f' and {len(found) - 1} more' if found[1:] else ''}" if found else ""


def print_json(value: Any) -> None:
    """Print a value for programs: times in ISO 8601, objects as their fields."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return dataclasses.asdict(value)


def print_table(found: Sequence[LockInfo]) -> None:
    """Print one line for each holder, and one for each who waits for him."""
    table = Table("KEY", "MODE", "", "WHO", "HOST", "PID", "SESSION", "SINCE", box=None, pad_edge=False)
    for info in found:
        table.add_row(*_cells(_name(info), "holds", info, _age(info)))
        for waiter in info.waiters:
            table.add_row(*_cells("", "waits", waiter, _ago(waiter.since) if waiter.since else "?"))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    console.print(table)


def _cells(key: str, state: str, party: LockInfo | LockWaiter, age: str) -> list[Text]:
    pid = "?" if party.pid is None else str(party.pid)
    # Text, since keys and names of applications may contain what rich takes for markup.
    return [Text(text) for text in (key, party.mode, state, party.who, party.host or "?", pid, str(party.session), age)]


def _name(info: LockInfo) -> str:
    if info.key is None:
        return f"{info.actual_key} {UNNAMED}"
    return info.key


def _age(info: LockInfo) -> str:
    if info.since is not None:
        return _ago(info.since)
    return "?" if info.session_since is None else f"< {_ago(info.session_since)}"


def _ago(since: datetime) -> str:
    seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
