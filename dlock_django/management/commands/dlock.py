"""`manage.py dlock run KEY -- COMMAND ARGS`: any management command under a lock, unedited.

The command runs in this process: whatever ends it ends the lock, and the other way round. The other
verbs, `list`, `show`, `terminate` and `check`, are those of the command `dlock`.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from django.core.management import ManagementUtility, call_command
from django.core.management.base import BaseCommand, CommandError

from dlock_django.commands import Flags, Screen, add_flags, execute_locked
from dlock_django.conf import alias_of
from dlock_django.providers import provider

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

    from dlock_core import LockProvider

__all__ = ["Command"]

# What Django applies to the whole process before any command runs.
PROCESS_OPTIONS = ("--settings", "--pythonpath")
VERBS = {
    "list": "which session holds which key, and which wait",
    "show": "one key",
    "terminate": "end the session that holds a key",
    "check": "are locks safe here?",
}


class Command(BaseCommand):
    """The command group."""

    help = "Locks from the database."
    requires_system_checks = ()  # the command that runs under the lock has its own

    def run_from_argv(self, argv: list[str]) -> None:
        """Hand all but `run` over to the verbs of the command `dlock`."""
        program, name, *words = argv
        end = words.index("--") if "--" in words else len(words)
        applied = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # by Django, before it came here
        for option in PROCESS_OPTIONS:
            applied.add_argument(option)
        words = [*applied.parse_known_args(words[:end])[1], *words[end:]]
        if not words or words[0] in {"run", "-h", "--help"}:
            super().run_from_argv([program, name, *words])
        else:
            _verbs().main(args=words, prog_name=f"{program} dlock")

    def add_arguments(self, parser: CommandParser) -> None:
        """Describe the command line."""
        actions = parser.add_subparsers(dest="action", required=True)
        run = actions.add_parser("run", help="run a management command under a lock: dlock run KEY -- COMMAND ARGS")
        run.add_argument("key", metavar="KEY", help="at most one command at a time runs under it")
        add_flags(run)
        run.add_argument(
            "-v", "--verbosity", type=int, choices=range(4), default=argparse.SUPPRESS, help="0 is silence"
        )
        for option in ("--traceback", "--no-color", "--force-color"):
            run.add_argument(option, action="store_true", default=argparse.SUPPRESS, help="as for every command")
        for verb, text in VERBS.items():
            actions.add_parser(verb, help=f"{text}; see dlock {verb} --help", add_help=False)
        run.add_argument("words", nargs="+", metavar="-- COMMAND ARGS", help="the command, with all of its arguments")

    def handle(self, *, action: str, key: str = "", words: list[str] | None = None, **options: Any) -> None:
        """Run it."""
        if words is None:
            raise CommandError(f"dlock {action} is for the command line; in code use a LockProvider")
        for word in words:
            if word.partition("=")[0] in PROCESS_OPTIONS:
                raise CommandError(
                    f"{word} comes too late behind `--`: give it before, as in dlock run {word} {key} -- …"
                )
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

        from dlock_core.cli import dlock_commands

        return dlock_commands(_lent, params=[click.Option(["--database"], help="An alias of DATABASES.")])
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is missing: pip install 'dlock-suite[cli]'") from None


def _lent(*, database: str | None) -> LockProvider:
    import click

    return click.get_current_context().with_resource(provider(alias_of(database)))
