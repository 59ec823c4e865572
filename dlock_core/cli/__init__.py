"""The `dlock` command line; needs the extra `dlock-suite[cli]`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import click

    from ..provider import LockProvider

__all__ = ["dlock_commands", "lazy_commands", "main"]

# Imports are inside the functions: the core installs without click and rich, and where they are missing the
# command says what to install, not a traceback.


def main() -> None:
    """Run the command line `dlock` and exit with its status."""
    try:
        from .group import dlock
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"click", "rich"}:
            raise
        sys.stderr.write(f"{missing} is missing: pip install 'dlock-suite[cli]'\n")
        sys.exit(2)
    dlock(prog_name="dlock")


def dlock_commands(
    factory: Callable[..., LockProvider], *, name: str = "dlock", params: Sequence[click.Parameter] = ()
) -> click.Group:
    """Return `run`, `list`, `show`, `terminate` and `check` for an application's own command line.

    Add the group to a click group of yours.

    Args:
        factory: Returns the application's lock provider when a command needs it; it is left open.
        name: Of the group.
        params: Options of the group, such as `--database`; the factory is called with their values by name.

    Raises:
        ModuleNotFoundError: click or rich is missing: install `dlock-suite[cli]`.
    """
    from .group import mounted

    return mounted(factory, name=name, params=params)


def lazy_commands(
    factory: Callable[..., LockProvider], *, name: str = "dlock", params: Sequence[click.Parameter] = (), text: str = ""
) -> click.Command:
    """Return a command that loads what `dlock_commands` returns when it is called: a server needs no tables.

    Args:
        factory: As for `dlock_commands`, and so the rest.
        name: Of the command.
        params: Options of the command.
        text: Its line in the list of commands.
    """
    import click

    class Commands(click.Command):
        def make_context(self, *args: Any, **extra: Any) -> click.Context:
            try:
                commands = dlock_commands(factory, name=name, params=params)
            except ModuleNotFoundError as error:
                raise click.ClickException(f"{error.name} is missing: pip install 'dlock-suite[cli]'") from None
            return commands.make_context(*args, **extra)

    return Commands(name, help=text)
