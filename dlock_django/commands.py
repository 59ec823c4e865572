"""Management commands under a lock, and the flags that they understand."""

from __future__ import annotations

import argparse
import math
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, OutputWrapper
from django.utils.connection import ConnectionDoesNotExist

from dlock_core import DeadlockError, Lock, LockError, LockLostError, LockTimeoutError
from dlock_core.adapters import EX_IOERR, EX_TEMPFAIL, UNSET, KeyTemplate, Unset, holder_of, shown

from .conf import alias_of, setting
from .locks import Wish, taking
from .providers import provider
from .sigterm import sigterm_exits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from django.core.management.base import CommandParser

    from dlock_core.adapters import Key

__all__ = [
    "CommandLockLost",
    "CommandLocked",
    "Flags",
    "LockedCommand",
    "LockedCommandMixin",
    "Screen",
    "add_flags",
    "add_switches",
    "execute_locked",
]

# Names of our values among a command's own options.
DEST = "dlock_{}"
EXIT_CODES = range(256)


class Flags(NamedTuple):
    """What the command line, or `call_command`, said; None for nothing."""

    lock: bool | None = None
    no_lock: bool | None = None
    key: str | None = None
    timeout: float | Unset | None = UNSET
    database: str | None = None
    skip: bool | None = None
    exit_code: int | None = None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Flags:
        """Take our values out of a command's options."""
        found = {field: options.pop(DEST.format(field)) for field in cls._fields if DEST.format(field) in options}
        return cls(**found)

    def wanted(self, *, by_default: bool) -> bool:
        """Tell whether to lock; a key, a timeout and so on ask for a lock too.

        Raises:
            CommandError: They say both.
        """
        refused = self.no_lock or self.lock is False
        given = self._replace(lock=None, no_lock=None, skip=self.skip or None) != Flags()
        asked = self.lock or given
        if refused and asked:
            raise CommandError("--no-lock together with other --lock options: decide for one")
        return bool(asked) or (by_default and not refused)


def add_switches(parser: CommandParser) -> None:
    """Let a command be asked for a lock at all."""
    without = "run without the lock that this command takes by itself"
    _add(parser, "--lock", "lock", action="store_true", help="run under a lock")
    _add(parser, "--no-lock", "no_lock", action="store_true", help=without)
    _add(parser, "--lock-key", "key", metavar="KEY", help="lock this key instead of its own")


def add_flags(parser: CommandParser) -> None:
    """Add the flags that say how to lock."""
    wait = 'wait so long for the lock; 0 tries once, "forever" never gives up'
    _add(parser, "--lock-timeout", "timeout", type=_seconds, default=UNSET, metavar="SECONDS", help=wait)
    _add(parser, "--lock-database", "database", metavar="ALIAS", help="the database that lends the lock")
    _add(parser, "--lock-skip", "skip", action="store_true", help="exit with 0 when the lock is held")
    _add(parser, "--lock-exit-code", "exit_code", type=_exit_code, metavar="N", help="exit with N when it is held")


def _add(parser: CommandParser, flag: str, field: str, **more: Any) -> None:
    more.setdefault("default", None)  # argparse's own for a switch is False
    parser.add_argument(flag, dest=DEST.format(field), **more)


def _seconds(text: str) -> float | None:
    if text == "forever":
        return None
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f'{text}: give seconds from 0, or "forever"')


def _exit_code(text: str) -> int:
    if text.isdecimal() and int(text) in EXIT_CODES:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to 255")


class CommandLocked(CommandError):  # noqa: N818 - what the shell shows before the message
    """The lock of this command is held elsewhere; the command did not run.

    Attributes:
        key: Of the lock.
        holder: The session that holds it, in words; "" if unknown.
        returncode: The command's exit status.
    """

    def __init__(self, *args: object, returncode: int = EX_TEMPFAIL, key: Key = "", holder: str = "") -> None:
        super().__init__(*args, returncode=returncode)
        self.key = key
        self.holder = holder


class CommandLockLost(CommandError):  # noqa: N818 - same
    """The command ran to its end, but the server took the lock away meanwhile.

    Attributes:
        key: Of the lock.
        returncode: The command's exit status, 74.
    """

    def __init__(self, *args: object, returncode: int = EX_IOERR, key: Key = "") -> None:
        super().__init__(*args, returncode=returncode)
        self.key = key


class LockedCommandMixin:
    """Give a command `--lock` and its kin; write it before the other base classes.

    The lock is taken before the command's checks and released after its output. Nothing of the command
    itself needs to change: `handle` and `add_arguments` are as they were.
    """

    lock_by_default: bool = False
    """Lock also without `--lock`; then there is `--no-lock`."""
    lock_key: Key | None = None
    """The key, in whose text `{name}` stands for the command's option of that name; by default
    `command:<app label>.<name>`."""
    lock_timeout: float | Unset | None = UNSET
    """Seconds to wait, where 0 tries once and None is no limit; by default DLOCK_TIMEOUT, which is 0."""
    lock_database: str | None = None
    """Alias of the database that lends the lock, by default DLOCK_DATABASE."""
    lock_on_conflict: Literal["raise", "skip"] = "raise"
    """What a held lock does. "raise" exits with `lock_exit_code`, by CommandLocked; "skip" exits with 0."""
    lock_exit_code: int | None = None
    """Exit status when the lock is held, by default DLOCK_CONFLICT_EXIT_CODE, which is 75."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.lock_on_conflict not in ("raise", "skip"):
            raise ValueError(
                f"{cls.__qualname__}.lock_on_conflict={shown(cls.lock_on_conflict)}: give 'raise' or 'skip'"
            )
        if issubclass(cls, BaseCommand) and cls.__mro__.index(BaseCommand) < cls.__mro__.index(LockedCommandMixin):
            raise TypeError(f"{cls.__qualname__}: write LockedCommandMixin before the other base classes")

    def get_lock_key(self, options: Mapping[str, Any]) -> Key:
        """Return the key, which may depend on the command's options; override it for more than `lock_key` can say."""
        if self.lock_key is None:
            return _default_key(type(self).__module__)
        return KeyTemplate(self.lock_key).fill(options, where="the command")

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Add our flags behind those of the command, whether or not its `add_arguments` calls super()."""
        parser: CommandParser = super().create_parser(prog_name, subcommand, **kwargs)  # type: ignore[misc]
        try:
            add_switches(parser)
            add_flags(parser)
        except argparse.ArgumentError as error:
            refusal = CommandError(
                f"{subcommand} has a flag of its own that LockedCommandMixin adds: {error}. Rename it, or leave the "
                f"mixin and run `manage.py dlock run KEY -- {subcommand}`"
            )
            if getattr(self, "_called_from_command_line", False):  # an error here would be shown as a traceback
                self.stderr.write(f"{type(refusal).__name__}: {refusal}")  # type: ignore[attr-defined]
                sys.exit(refusal.returncode)
            raise refusal from error
        return parser

    def execute(self, *args: Any, **options: Any) -> Any:
        """Run the command, under its lock if that is wanted."""
        run: Callable[..., Any] = super().execute  # type: ignore[misc]
        flags = Flags.taken_from(options)
        if not flags.wanted(by_default=self.lock_by_default):
            return run(*args, **options)
        flags = flags._replace(
            timeout=self.lock_timeout if flags.timeout is UNSET else flags.timeout,
            database=flags.database or self.lock_database,
            skip=self.lock_on_conflict == "skip" if flags.skip is None else flags.skip,
            exit_code=self.lock_exit_code if flags.exit_code is None else flags.exit_code,
        )
        try:
            key = self.get_lock_key(options) if flags.key is None else flags.key
        except LockError as error:
            raise CommandError(str(error)) from error
        return execute_locked(lambda: run(*args, **options), key, flags, Screen(self, options))


class LockedCommand(LockedCommandMixin, BaseCommand):
    """A command with `--lock`; set `lock_by_default = True` for one that always locks."""


def _default_key(module: str) -> str:
    """Return `command:<app label>.<name>` for `<app>.management.commands.<name>`."""
    app = apps.get_containing_app_config(module)
    return f"command:{app.label if app else module.partition('.')[0]}.{module.rpartition('.')[2]}"


class Screen:
    """Where a command talks; all that is said about locks goes to stderr, since stdout belongs to the command."""

    def __init__(self, command: Any, options: Mapping[str, Any]) -> None:
        given = options.get("stderr")
        self._stream: OutputWrapper = OutputWrapper(given) if given else command.stderr
        self._verbosity = int(options.get("verbosity", 1))

    def tell_loss(self, lost: Lock) -> None:
        self.say(0, f"Lost the lock {shown(lost.key)}: another process may run beside this command from now on")

    def says(self, verbosity: int) -> bool:
        return self._verbosity >= verbosity

    def say(self, verbosity: int, text: str) -> None:
        if self.says(verbosity):
            self._stream.write(text, lambda text: text)


def execute_locked(body: Callable[[], Any], key: Key, flags: Flags, screen: Screen) -> Any:
    """Run the body of a command under a lock.

    Raises:
        CommandLocked: It is held elsewhere; not with `skip`.
        CommandLockLost: The body ended well, but without the lock.
        CommandError: The lock cannot be taken at all.
    """
    alias, asked = alias_of(flags.database), time.monotonic()
    with sigterm_exits(), ExitStack() as stack:
        try:
            stack.enter_context(taking(Wish(alias, flags.timeout, on_lost=screen.tell_loss), key))
        except (LockTimeoutError, DeadlockError):
            return _conflict(key, alias, flags, screen)
        except (LockError, ConnectionDoesNotExist) as error:
            raise CommandError(str(error)) from error
        screen.say(2, f"Locked {shown(key)} on {alias!r} after {time.monotonic() - asked:.1f} s")
        output = body()
        try:
            stack.close()
        except LockLostError as error:
            raise CommandLockLost(str(error), key=key) from error
        return output


def _conflict(key: Key, alias: str, flags: Flags, screen: Screen) -> None:
    by = ""
    if not flags.skip or screen.says(1):  # else nothing would show it, and asking costs a connection
        with provider(alias) as locks:
            by = holder_of(locks, key)
    text = f"{shown(key)} is locked by {by or 'another process'}"
    if not flags.skip:
        code = setting("DLOCK_CONFLICT_EXIT_CODE") if flags.exit_code is None else flags.exit_code
        raise CommandLocked(text, returncode=code, key=key, holder=by)
    screen.say(1, f"Skipped: {text}")
