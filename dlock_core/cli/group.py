"""The command group: each command lives in a module of its own and is added here."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import click

from . import inspecting
from .demo.command import demo
from .init import init
from .run import run
from .source import Source, source_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dlock_core import LockProvider

__all__ = ["dlock", "mounted"]

VERBS = (run, inspecting.list_, inspecting.show, inspecting.terminate, inspecting.check, inspecting.name)
SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="dlock-suite")
def dlock() -> None:
    """Distributed locks from the database you already have.

    \b
    export DLOCK_URL=postgresql+psycopg://user@host/database
    dlock check                                   are locks safe here?
    dlock run nightly-report -- python report.py  one at a time, on all machines
    dlock list                                    who holds, who waits
    dlock terminate nightly-report                end a holder that hangs

    \b
    Completion in the shell: eval "$(_DLOCK_COMPLETE=bash_source dlock)"   (or zsh_source, fish_source)
    """


def _with_source_options(command: click.Command) -> click.Command:
    own = copy.copy(command)
    own.params = [*command.params, *source_options()]
    return own


for _verb in VERBS:
    dlock.add_command(_with_source_options(_verb))
dlock.add_command(demo)
dlock.add_command(init)


def mounted(factory: Callable[..., LockProvider], *, name: str, params: Sequence[click.Parameter]) -> click.Group:
    """Return the verbs for an application's own command line; see `dlock_commands`."""

    @click.pass_context
    def begin(context: click.Context, /, **options: Any) -> None:
        context.obj = Source(factory, options)

    return click.Group(
        name,
        commands={verb.name or "": verb for verb in VERBS},
        params=list(params),
        callback=begin,
        context_settings=SETTINGS,
        help="Locks of this application: who holds them, who waits, and programs that run under one.",
    )
