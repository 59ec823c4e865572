"""`dlock list`, `show`, `terminate` and `check`: for the person on call."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlock_core import LockInfo, LockKeyError, LockProvider, LockStateError, LockWaiter, NotPermittedError

from ..keys import label, readings
from .source import NO_PERMISSION, Refusal, Source, key_options, parse_key, typed, with_source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..keys import Key

__all__ = ["as_json_option", "check", "list_", "print_json", "show", "terminate"]

# Columns of a table that no terminal limits.
WIDE = 200
UNNAMED = "(unnamed)"
# How many keys are tried that a readable form may be of.
READINGS = 64
# A number that `list` shows in place of a key may be negative, and is no option then.
NUMBERS = {"ignore_unknown_options": True}
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.command("list", short_help="Show all locks, their holders and waiters.")
@as_json_option
@with_source
def list_(source: Source, *, as_json: bool) -> None:
    """Show all locks that are held, with their holders, ages and waiters.

    It shows what the database itself sees, so locks of other applications too. SINCE with "<" is the age of the
    session: database servers do not record when a lock was granted. PostgreSQL knows keys by a number only, so a
    lock is "unnamed" until it was held for a second, and stays so on a session with others unless `dlock init` was
    run; `dlock show KEY` finds it by its key.

    \b
    Exit status: 0, or
      77  the database does not show all of it to this user; what it shows is printed
    """
    with source.locks() as locks:
        found, missing = look(locks)
        if as_json:
            print_json(found)
        elif found:
            print_table(locks, found)
    if not found and not as_json and not missing:
        click.echo("no locks are held")
    if missing:
        click.echo(f"not all is shown: {missing}", err=True)
        sys.exit(NO_PERMISSION)


@click.command(short_help="Show the holders of one lock.", context_settings=NUMBERS)
@key_options
@as_json_option
@with_source
def show(source: Source, key: str | None, json_key: str | None, *, as_json: bool) -> None:
    """Show the holders and waiters of the lock KEY.

    KEY is the key as applications use it, or what `dlock list` shows.

    \b
    Exit status: 0 when it is held, 1 when it is free.
    """
    wanted = parse_key(key, json_key)
    with source.locks() as locks:
        found = find(locks, wanted)
        if as_json:
            print_json(found)
        elif found:
            print_table(locks, found)
        else:
            click.echo(f"{typed(wanted)} is free")
    sys.exit(0 if found else 1)


@click.command(short_help="End the session that holds a lock.", context_settings=NUMBERS)
@key_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--whole-session", is_flag=True, help="Also when the session holds other locks: they end too.")
@as_json_option
@with_source
def terminate(
    source: Source, key: str | None, json_key: str | None, *, yes: bool, whole_session: bool, as_json: bool
) -> None:
    """End the database session that holds the lock KEY: the lock is free at once.

    The program that held it is not stopped: it gets notice of the loss, and may be working still. Look first:
    `dlock show KEY`.

    \b
    Exit status: 0 when ended, 1 when nothing holds it, 77 when the database does not permit it.
    """
    wanted = parse_key(key, json_key)
    with source.locks() as locks:
        found = find(locks, wanted)
        if found and not yes:
            print_table(locks, found)
            click.confirm(f"End {'this session' if len(found) == 1 else f'these {len(found)} sessions'}?", abort=True)
        ended = [info for info in found if _end(locks, info, whole_session=whole_session)]
    if as_json:
        print_json({"ended": ended})
    elif ended:
        click.echo("\n".join(f"ended {info.describe()}" for info in ended))
    else:
        click.echo(f"nothing holds {typed(wanted)}")
    sys.exit(0 if ended else 1)


def _end(locks: LockProvider, info: LockInfo, *, whole_session: bool) -> bool:
    try:
        return locks.terminate(info, whole_session=whole_session)
    except LockStateError as error:
        raise Refusal(str(error).replace("Say whole_session=True (--whole-session)", "Say --whole-session")) from None


@click.command(short_help="Tell whether locks are safe on this database.")
@as_json_option
@with_source
def check(source: Source, *, as_json: bool) -> None:
    """Look for what makes locks unsafe or slow here: poolers, replicas, missing rights, limits, latency.

    \b
    Exit status: 0 when nothing is wrong, 1 when something is.
    """
    with source.locks() as locks:
        findings = locks.check()
    if as_json:
        print_json(findings)
    else:
        signs = {True: "ok  ", False: "BAD ", None: "note"}
        for finding in findings:
            click.echo(f"{signs[finding.ok]}  {finding.name}: {finding.detail}")
    sys.exit(1 if any(finding.ok is False for finding in findings) else 0)


def look(locks: LockProvider) -> tuple[list[LockInfo], str]:
    """Return all holders that the database shows, and why these are not all; '' when they are."""
    try:
        return locks.inspect(), ""
    except NotPermittedError as error:
        return list(error.found), str(error)


def find(locks: LockProvider, key: Key) -> list[LockInfo]:
    """Return the holders of a key, given as applications write it or as `list` shows it.

    Raises:
        Refusal: Nothing holds it, but another key that looks like it is held.
    """
    if found := locks.inspect(key):
        return found
    held = [(info, exact_key(locks, info)) for info in look(locks)[0]]
    if isinstance(key, str):
        found = [info for info, exact in held if key == str(info.actual_key) or (key == info.key and exact is None)]
    text = label("", key)
    for info, exact in held if not found else ():
        if exact is not None and label("", exact) == text:
            raise Refusal(f"{typed(key)} is free; a lock that looks like it is held: {typed(exact)}, {info.describe()}")
    return found


def exact_key(locks: LockProvider, info: LockInfo) -> Key | None:
    """Return the key by which these locks know what is held; None when it has another prefix, or is unknown."""
    fitting = None
    for _, key in islice(readings(info.key or ""), READINGS):
        with suppress(LockKeyError):
            if locks.lock(key).actual_key == info.actual_key and (fitting is None or isinstance(key, str)):
                fitting = key
    return fitting


def print_json(value: Any) -> None:
    """Print a value for programs: times in ISO 8601, objects as their fields."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return dataclasses.asdict(value)


def print_table(locks: LockProvider, found: Sequence[LockInfo]) -> None:
    """Print a line for each holder, and one for each waiter; a key as it is to be typed."""
    table = Table("KEY", "MODE", "", "WHO", "HOST", "PID", "SESSION", "SINCE", box=None, pad_edge=False)
    for info in found:
        table.add_row(*_cells(_name(locks, info), "holds", info, _age(info)))
        for waiter in info.waiters:
            table.add_row(*_cells("", "waits", waiter, _in_words(waiter.since) if waiter.since else "?"))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    console.print(table)


def _cells(key: str, state: str, session: LockInfo | LockWaiter, age: str) -> list[Text]:
    pid = "?" if session.pid is None else str(session.pid)
    # Text, since keys and names of applications may contain what rich takes for markup.
    return [
        Text(text)
        for text in (key, session.mode, state, session.who, session.host or "?", pid, str(session.session), age)
    ]


def _name(locks: LockProvider, info: LockInfo) -> str:
    exact = exact_key(locks, info)
    if exact is not None:
        return typed(exact)
    return info.key or f"{info.actual_key} {UNNAMED}"


def _age(info: LockInfo) -> str:
    if info.since is not None:
        return _in_words(info.since)
    return "?" if info.session_since is None else f"< {_in_words(info.session_since)}"


def _in_words(since: datetime) -> str:
    seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
