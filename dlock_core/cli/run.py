"""`dlock run`: a program under a lock, as flock(1) does it for one machine."""

from __future__ import annotations

import sys

import click

from dlock_core import LockError, LockLostError, LockTimeoutError, run_locked

from .holders import holder_of
from .source import Source, with_source

__all__ = ["run"]

HELD, LOST, NOT_FOUND, NOT_EXECUTABLE = 75, 74, 127, 126


@click.command(short_help="Run a program while holding a lock.")
@click.argument("key")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--timeout", type=click.FloatRange(0), default=0, show_default=True, help="Seconds to wait for the lock.")
@click.option("--wait", "for_ever", is_flag=True, help="Wait for the lock for ever.")
@click.option("--shared", is_flag=True, help="Share the lock with others who say so too: many readers, no writer.")
@click.option(
    "--lease", type=click.FloatRange(1), help="Seconds after which the server frees the lock of a frozen host."
)
@click.option("--skip", is_flag=True, help="When the lock is held, exit 0 and do not run the program.")
@click.option(
    "--exit-code", type=click.IntRange(0, 255), default=HELD, show_default=True, help="Exit status when held."
)
@click.option(
    "--grace", type=click.FloatRange(0), default=10, show_default=True, help="Seconds from SIGTERM to SIGKILL."
)
@with_source
def run(
    source: Source,
    key: str,
    command: tuple[str, ...],
    *,
    timeout: float,
    for_ever: bool,
    shared: bool,
    lease: float | None,
    skip: bool,
    exit_code: int,
    grace: float,
) -> None:
    """Run COMMAND while holding the lock KEY, on all machines that share the database.

    \b
    */5 * * * *  dlock run nightly-report -- python report.py
    dlock run deploy --timeout 600 -- ./deploy.sh

    The lock is free as soon as the program ends, however it ends; so it is when this process is killed, and then
    the program is killed too (on Linux). Signals, and Ctrl-C, reach the program. It finds DLOCK_KEY and
    DLOCK_FENCING_TOKEN in its environment.

    \b
    Exit status: the program's own, or
      75  the lock is held (--exit-code; 0 with --skip)
      74  the lock was lost: the program got SIGTERM, and SIGKILL if it did not end
      126, 127  the program cannot be started
      2   the command line or the database is wrong
    """
    wait = None if for_ever else timeout
    with source.locks(lease=lease) as locks:
        try:
            status = run_locked(locks, key, command, timeout=wait, shared=shared, grace=grace)
        except LockTimeoutError:
            holder = holder_of(locks, key)
            click.echo(f"{key} is held{holder and f' by {holder}'}{'; skipped' if skip else ''}", err=True)
            status = 0 if skip else exit_code
        except LockLostError as error:
            click.echo(str(error), err=True)
            status = LOST
        except OSError as error:
            if isinstance(error, LockError):
                raise
            click.echo(f"{command[0]}: {error.strerror}", err=True)
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    sys.exit(status)
