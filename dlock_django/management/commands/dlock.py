"""`manage.py dlock run KEY -- COMMAND ARGS`: any management command under a lock, unedited.

The command runs in this process: whatever ends it ends the lock, and the other way round. The other
verbs, `list`, `show`, `terminate`, `check` and `name`, are those of the command `dlock`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from django.core.management import ManagementUtility, call_command
from django.core.management.base import BaseCommand, CommandError

from dlock_django.commands import Screen, execute_locked
from dlock_django.conf import alias_of
from dlock_django.flags import Flags, add_flags
from dlock_django.providers import provider

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

    from dlock_core import LockProvider

__all__ = ["Command"]

VERBS = {
    "list": "who holds which key, and who waits",
    "show": "one key",
    "terminate": "end the session that holds a key",
    "check": "are locks safe here?",
    "name": "the database's own name for a key",
}


class Command(BaseCommand):
    """The command group."""

    help = "Locks from the database."
    requires_system_checks = ()  # the command that runs under the lock has its own

    def run_from_argv(self, argv: list[str]) -> None:
        """Hand all but `run` over to the verbs of the command `dlock`."""
        if len(argv) == 2 or argv[2] in {"run", "-h", "--help"}:  # noqa: PLR2004 - manage.py, dlock
            super().run_from_argv(argv)
        else:
            _verbs().main(args=argv[2:], prog_name=f"{argv[0]} dlock")

    def add_arguments(self, parser: CommandParser) -> None:
        """Describe the command line."""
        actions = parser.add_subparsers(dest="action", required=True)
        run = actions.add_parser("run", help="run a management command under a lock: dlock run KEY -- COMMAND ARGS")
        run.add_argument("key", metavar="KEY", help="one for which nobody else runs at the same time")
        add_flags(run)
        for verb, text in VERBS.items():
            actions.add_parser(verb, help=f"{text}; see dlock {verb} --help", add_help=False)
        run.add_argument("words", nargs="+", metavar="-- COMMAND ARGS", help="the command, with all of its arguments")

    def handle(self, *, action: str, key: str = "", words: list[str] | None = None, **options: Any) -> None:
        """Run it."""
        if words is None:
            raise CommandError(f"dlock {action} is for the command line; in code use a LockProvider")
        flags = Flags.taken_from(options)
        execute_locked(lambda: self._run(words), key, flags, Screen(self, options))

    def _run(self, words: list[str]) -> None:
        if not getattr(self, "_called_from_command_line", False):
            call_command(*words)
            return
        arguments = [sys.argv[0], *words]
        given, sys.argv = sys.argv, arguments  # some commands read it
        try:
            ManagementUtility(arguments).fetch_command(words[0]).run_from_argv(arguments)
        finally:
            sys.argv = given


def _verbs() -> Any:
    try:
        import click
    except ModuleNotFoundError:
        raise SystemExit("click is missing: pip install 'dlock-suite[cli]'") from None
    from dlock_core.cli import dlock_commands

    def factory(*, database: str | None) -> LockProvider:
        return click.get_current_context().with_resource(provider(alias_of(database)))

    return dlock_commands(factory, params=[click.Option(["--database"], help="An alias of DATABASES.")])
