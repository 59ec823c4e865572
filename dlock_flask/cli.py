"""The command line: `flask dlock …`, and locks for an application's own click commands."""

from __future__ import annotations

import functools
import inspect
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
from flask.cli import with_appcontext

from dlock_core import LockLostError, LockTimeoutError
from dlock_core.cli import dlock_commands

from .handles import Handle
from .keys import KeySource, key_maker
from .options import Options, shown
from .state import current_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dlock_core import LockProvider

__all__ = ["Commands", "cli_locked"]

F = TypeVar("F", bound="Callable[..., Any]")
# sysexits.h: "input/output error": the lock was lost.
LOST = 74


class Commands(click.Command):
    """`flask dlock run | list | show | terminate | check`: the verbs of the command `dlock`, on our locks.

    They are loaded when somebody types them: a server needs no tables for the terminal.
    """

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Hand over to the verbs."""
        bind = click.Option(["--bind"], help="The database, of SQLALCHEMY_BINDS.")
        try:
            verbs = dlock_commands(_provider, params=[bind])
        except ModuleNotFoundError as error:
            raise click.ClickException(f"{error.name} is missing: pip install 'dlock-suite[cli]'") from None
        return verbs.make_context(*args, **kwargs)


@with_appcontext
def _provider(*, bind: str | None) -> LockProvider:
    try:
        return current_state().provider(bind)
    except LookupError as error:
        raise click.BadParameter(str(error)) from None


def cli_locked(key: KeySource, options: Options, exit_code: int) -> Callable[[F], F]:
    """Return the decorator; see `DLock.cli_locked`."""

    def decorate(function: F) -> F:
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} is async: click does not await it")
        make_key = key_maker(key, function, lambda: function.__name__.replace("_", "-"))

        @functools.wraps(function)
        def locked(*args: Any, **kwargs: Any) -> Any:
            with _or_exit(Handle(current_state(), make_key(*args, **kwargs), options), exit_code):
                return function(*args, **kwargs)

        return with_appcontext(locked)  # type: ignore[return-value]

    return decorate


@contextmanager
def _or_exit(handle: Handle, exit_code: int) -> Iterator[None]:
    """Enter a handle; if somebody else has the lock, or it is lost, say so in one line and end the command."""
    with ExitStack() as stack:
        try:
            stack.enter_context(handle)
        except LockTimeoutError:
            click.echo(f"dlock: somebody else has the lock of {shown(handle.key)}", err=True)
            raise SystemExit(exit_code) from None
        try:
            yield
            stack.close()
        except LockLostError as error:
            click.echo(f"dlock: {error}", err=True)
            raise SystemExit(LOST) from error
