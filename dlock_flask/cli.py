"""The command line: `flask dlock …`, and locks for an application's own click commands."""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
from flask.cli import with_appcontext

from dlock_core import LockLostError, LockTimeoutError
from dlock_core.adapters import EX_IOERR, refuse_async, shown
from dlock_core.cli import lazy_commands

from .handles import Handle
from .keys import KeySource, key_maker
from .state import current_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dlock_core import LockProvider

    from .settings import Options

__all__ = ["cli_locked", "dlock"]

F = TypeVar("F", bound="Callable[..., Any]")


@with_appcontext
def _provider(*, bind: str | None) -> LockProvider:
    try:
        return current_state().provider(bind)
    except LookupError as error:
        raise click.BadParameter(str(error)) from None


dlock = lazy_commands(
    _provider,
    params=[click.Option(["--bind"], help="The database, of SQLALCHEMY_BINDS.")],
    text="Locks of this application: which session holds or waits for them, and programs that run under one.",
)


def cli_locked(key: KeySource, options: Options, exit_code: int) -> Callable[[F], F]:
    """Return the decorator; see `DLock.cli_locked`."""

    def decorate(function: F) -> F:
        refuse_async(function, "click does not await it")
        make_key = key_maker(key, function, lambda: function.__name__.replace("_", "-"))

        @functools.wraps(function)
        def locked(*args: Any, **kwargs: Any) -> Any:
            with _or_exit(Handle(current_state(), make_key(*args, **kwargs), options), exit_code):
                return function(*args, **kwargs)

        return with_appcontext(locked)  # type: ignore[return-value]

    return decorate


@contextmanager
def _or_exit(handle: Handle, exit_code: int) -> Iterator[None]:
    """Enter a handle; if the lock is held elsewhere, or is lost, say so in one line and end the command."""
    with ExitStack() as stack:
        try:
            stack.enter_context(handle)
        except LockTimeoutError:
            click.echo(f"dlock: {shown(handle.key)} is locked by {handle.holder() or 'another process'}", err=True)
            raise SystemExit(exit_code) from None
        try:
            yield
            stack.close()
        except LockLostError as error:
            click.echo(f"dlock: {error}", err=True)
            raise SystemExit(EX_IOERR) from error
