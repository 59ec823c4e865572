"""`dlock list`, `show`, `terminate` and `check`: for whoever is on call."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from dlock_core import LockStateError

from .holders import find, look, print_json, print_table
from .source import NO_PERMISSION, Source, with_source
from .target import Refusal

if TYPE_CHECKING:
    from dlock_core import LockInfo, LockProvider

__all__ = ["check", "list_", "name", "show", "terminate"]

# A number that `list` shows in place of a key may be negative, and is no option then.
NUMBERS = {"ignore_unknown_options": True}
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.command("list", short_help="Show who holds which lock, and who waits.")
@as_json
@with_source
def list_(source: Source, *, as_json: bool) -> None:
    """Show all locks that are held: by whom, since when, and who waits for them.

    It shows what the database itself sees, so locks of other applications too. SINCE with "<" is the age of the
    session: database servers do not record when a lock was granted. PostgreSQL knows keys by a number only, so a
    lock is "unnamed" unless the session that holds it, or one that waits for it, tells; `dlock show KEY` finds it
    by its key, and `dlock name KEY` tells the list for good.

    \b
    Exit status: 0, or
      77  the database does not show all of it to this user; what it shows is printed
    """
    with source.locks() as locks:
        found, missing = look(locks)
    if as_json:
        print_json(found)
    elif found:
        print_table(found)
    elif not missing:
        click.echo("no locks are held")
    if missing:
        click.echo(f"not all is shown: {missing}", err=True)
        sys.exit(NO_PERMISSION)


@click.command(short_help="Show who holds one lock.", context_settings=NUMBERS)
@click.argument("key")
@as_json
@with_source
def show(source: Source, key: str, *, as_json: bool) -> None:
    """Show who holds the lock KEY, and who waits for it.

    KEY is the key as applications use it, or what `dlock list` shows.

    \b
    Exit status: 0 when it is held, 1 when it is free.
    """
    with source.locks() as locks:
        found = find(locks, key)
    if as_json:
        print_json(found)
    elif found:
        print_table(found)
    else:
        click.echo(f"{key} is free")
    sys.exit(0 if found else 1)


@click.command(short_help="End the session that holds a lock.", context_settings=NUMBERS)
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--whole-session", is_flag=True, help="Also when the session holds other locks: they end too.")
@as_json
@with_source
def terminate(source: Source, key: str, *, yes: bool, whole_session: bool, as_json: bool) -> None:
    """End the database session that holds the lock KEY: the lock is free at once.

    The program that held it is not stopped: it is told that it lost the lock, and may be working still. Look
    (`dlock show KEY`) before you leap.

    \b
    Exit status: 0 when ended, 1 when nobody holds it, 77 when the database does not permit it.
    """
    with source.locks() as locks:
        found = find(locks, key)
        if found and not yes:
            print_table(found)
            click.confirm(f"End {'this session' if len(found) == 1 else f'these {len(found)} sessions'}?", abort=True)
        ended = [info for info in found if _end(locks, info, whole_session=whole_session)]
    if as_json:
        print_json({"ended": ended})
    elif ended:
        click.echo("\n".join(f"ended {info.party}" for info in ended))
    else:
        click.echo(f"nobody holds {key}")
    sys.exit(0 if ended else 1)


def _end(locks: LockProvider, info: LockInfo, *, whole_session: bool) -> bool:
    try:
        return locks.terminate(info, whole_session=whole_session)
    except LockStateError as error:
        raise Refusal(str(error).replace("Say whole_session=True (--whole-session)", "Say --whole-session")) from None


@click.command(short_help="Teach `list` the names of keys.")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@with_source
def name(source: Source, keys: tuple[str, ...]) -> None:
    """Write each KEY into the table `dlock_names`, so that `dlock list` can name its lock on PostgreSQL.

    `dlock init` makes the table.
    """
    with source.locks() as locks:
        for key in keys:
            locks.remember(key)
    click.echo(f"named {len(keys)}")


@click.command(short_help="Tell whether locks are safe on this database.")
@as_json
@with_source
def check(source: Source, *, as_json: bool) -> None:
    """Look for what would make locks unsafe or slow here: poolers, replicas, missing rights, limits, latency.

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
