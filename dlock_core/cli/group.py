"""The command group with `dlock run` and `dlock init`; the verbs for the person on call are in `inspect`."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy import BigInteger, Column, DateTime, MetaData, Table, Text, create_engine
from sqlalchemy import inspect as inspect_engine
from sqlalchemy.exc import SQLAlchemyError

from dlock_core import LockError, LockLostError, LockTimeoutError, fence_table, run_locked

from ..adapters import EX_IOERR, EX_TEMPFAIL, holder_of
from ..dialects.failures import shown_url
from . import inspect
from .inspect import as_json_option, print_json
from .source import (
    Source,
    json_key_option,
    parse_key,
    parse_target,
    refusal_of,
    refuse_async,
    source_options,
    typed,
    with_source,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dlock_core import LockProvider

__all__ = ["dlock", "mounted"]

SETTINGS = {"help_option_names": ["-h", "--help"]}
# Exit statuses of a shell, for a program that cannot be started.
NOT_FOUND, NOT_EXECUTABLE = 127, 126


@click.command(short_help="Run a program while holding a lock.")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="KEY COMMAND...")
@json_key_option
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait for the lock.  [default: 0, a single try]")
@click.option("--wait", "no_limit", is_flag=True, help="Wait for the lock without limit.")
@click.option("--shared", is_flag=True, help="Share the lock with others that are --shared: many readers, no writer.")
@click.option("--skip", is_flag=True, help="When the lock is held, exit 0 and do not run the program.")
@click.option(
    "--exit-code", type=click.IntRange(0, 255), default=EX_TEMPFAIL, show_default=True, help="Exit status when held."
)
@click.option(
    "--grace", type=click.FloatRange(0), default=10, show_default=True, help="Seconds from SIGTERM to SIGKILL."
)
@with_source
def run(
    source: Source,
    words: tuple[str, ...],
    *,
    json_key: str | None,
    timeout: float | None,
    no_limit: bool,
    shared: bool,
    skip: bool,
    exit_code: int,
    grace: float,
) -> None:
    """Run COMMAND while holding the lock KEY, on all machines that share the database.

    \b
    */5 * * * *  dlock run nightly-report -- python report.py
    dlock run deploy --timeout 600 -- ./deploy.sh

    The lock is free as soon as the program ends, however it ends; so it is when this process is killed, and then
    the program is killed too (on Linux). Signals, and Ctrl-C, reach the program. It finds DLOCK_KEY in its
    environment, and DLOCK_FENCING_TOKEN unless --shared, or the database (SQL Server, Oracle) has no such tokens.

    \b
    Exit status: the program's own, or
      75  the lock is held (--exit-code; 0 with --skip)
      74  the lock was lost: the program got SIGTERM, and SIGKILL if it did not end
      126, 127  the program cannot be started
      2   the command line or the database is wrong
    """
    if no_limit and timeout is not None:
        raise click.UsageError(f"--wait waits without limit, and --timeout {timeout:g} does not: give one of them")
    key, command = (None, words) if json_key is not None else (words[0], words[1:])
    wanted = parse_key(key, json_key)
    if not command:
        raise click.UsageError("no COMMAND: write dlock run KEY -- COMMAND")
    with source.locks() as locks:
        try:
            status = run_locked(
                locks, wanted, command, timeout=None if no_limit else timeout or 0, shared=shared, grace=grace
            )
        except LockTimeoutError:
            holder = holder_of(locks, wanted)
            click.echo(f"{typed(wanted)} is held{holder and f' by {holder}'}{'; skipped' if skip else ''}", err=True)
            status = 0 if skip else exit_code
        except LockLostError as error:
            click.echo(str(error), err=True)
            status = EX_IOERR
        except ChildProcessError as error:
            raise click.ClickException(f"{command[0]}: {error}") from None
        except OSError as error:
            if isinstance(error, LockError):
                raise
            click.echo(f"{command[0]}: {error.strerror}", err=True)
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    sys.exit(status)


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="dlock-suite")
def dlock() -> None:
    """Distributed locks from the database you already have.

    \b
    export DLOCK_URL=postgresql+psycopg://user@host/database
    dlock check                                   are locks safe here?
    dlock run nightly-report -- python report.py  one at a time, on all machines
    dlock list                                    holders and waiters
    dlock terminate nightly-report                end a holder that hangs

    \b
    Completion in the shell: eval "$(_DLOCK_COMPLETE=bash_source dlock)"   (or zsh_source, fish_source)
    """


def _with_source_options(command: click.Command) -> click.Command:
    own = copy.copy(command)
    own.params = [*command.params, *source_options()]
    return own


VERBS = (run, inspect.list_, inspect.show, inspect.terminate, inspect.check)
for _verb in VERBS:
    dlock.add_command(_with_source_options(_verb))


def mounted(factory: Callable[..., LockProvider], *, name: str, params: Sequence[click.Parameter]) -> click.Group:
    """Return the verbs for an application's own command line; see `dlock_commands`."""

    @click.pass_context
    def begin(context: click.Context, /, **arguments: Any) -> None:
        context.obj = Source(factory, arguments)

    return click.Group(
        name,
        commands={verb.name or "": verb for verb in VERBS},
        params=list(params),
        callback=begin,
        context_settings=SETTINGS,
        help="Locks of this application: their holders and waiters, and programs that run under one.",
    )


@dlock.command()
@click.argument("url", envvar="DLOCK_URL")
@as_json_option
def init(url: str, *, as_json: bool) -> None:
    """Make the optional tables in the database at URL (or $DLOCK_URL).

    Locks need none. `dlock_fences` is for fencing tokens; applications with migrations define it there, with
    `fence_table(metadata)`. On PostgreSQL, `dlock_names` is where lock providers write the keys of locks that are
    held for longer than a second, so that `dlock list` shows them.
    """
    target = parse_target(url)
    refuse_async(target)
    metadata = MetaData()
    tables = [fence_table(metadata)]
    if target.get_backend_name() == "postgresql":
        tables.append(_name_table(metadata))
    try:
        engine = create_engine(target)
        existed = {table.name: inspect_engine(engine).has_table(table.name) for table in tables}
        metadata.create_all(engine)
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise refusal_of(target, error) from None
    engine.dispose()
    if as_json:
        print_json([{"table": name, "made": not there, "url": shown_url(target)} for name, there in existed.items()])
    else:
        for name, there in existed.items():
            click.echo(f"{name} {'was there already' if there else 'made'} in {shown_url(target)}")


def _name_table(metadata: MetaData) -> Table:
    return Table(
        "dlock_names",
        metadata,
        Column("actual_key", BigInteger, primary_key=True, autoincrement=False, comment="the lock's number"),
        Column("key", Text, nullable=False, comment="JSON: the prefix, the key"),
        Column("seen", DateTime(timezone=True), nullable=False, index=True, comment="when a holder wrote it last"),
    )
