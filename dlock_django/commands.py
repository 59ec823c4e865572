"""Management commands under a lock: `manage.py anything --lock`."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, OutputWrapper
from django.utils.connection import ConnectionDoesNotExist

from dlock_core import DeadlockError, KeyTemplate, Lock, LockError, LockLostError, LockTimeoutError

from .conf import UNSET, Unset, alias_of, setting
from .flags import Flags, add_flags, add_switches
from .holders import holder_of
from .locks import Wish, taking
from .sigterm import sigterm_exits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from django.core.management.base import CommandParser

    from .keys import Key

__all__ = ["CommandLockLost", "CommandLocked", "LockedCommand", "LockedCommandMixin", "Screen", "execute_locked"]

LOST = 74  # EX_IOERR of sysexits.h


class CommandLocked(CommandError):  # noqa: N818 - what the shell shows before the message
    """Somebody else holds the lock of this command, which did not run.

    Attributes:
        key: Of the lock.
        holder: Who holds it, for people; "" if unknown.
        returncode: The command's exit status.
    """

    def __init__(self, *args: object, returncode: int = 75, key: Key = "", holder: str = "") -> None:
        super().__init__(*args, returncode=returncode)
        self.key = key
        self.holder = holder


class CommandLockLost(CommandError):  # noqa: N818 - same
    """The command ran to its end, but the server took the lock away meanwhile.

    Attributes:
        key: Of the lock.
        returncode: The command's exit status, 74.
    """

    def __init__(self, *args: object, returncode: int = LOST, key: Key = "") -> None:
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
    """Seconds to wait, where 0 tries once and None is for ever; by default DLOCK_TIMEOUT, which is 0."""
    lock_database: str | None = None
    """Alias of the database that lends the lock, by default DLOCK_DATABASE."""
    lock_skip: bool = False
    """Exit with 0, not with `lock_exit_code`, when somebody else holds the lock."""
    lock_exit_code: int | None = None
    """Exit status when somebody else holds the lock, by default DLOCK_CONFLICT_EXIT_CODE, which is 75."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
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
            raise CommandError(f"{subcommand} has a flag of its own that LockedCommandMixin adds: {error}") from error
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
            skip=self.lock_skip if flags.skip is None else flags.skip,
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
        self.say(0, f"Lost the lock {lost.key!r}: somebody else may run beside this command from now on")

    def say(self, verbosity: int, text: str) -> None:
        if self._verbosity >= verbosity:
            self._stream.write(text, lambda text: text)


def execute_locked(body: Callable[[], Any], key: Key, flags: Flags, screen: Screen) -> Any:
    """Run the body of a command under a lock.

    Raises:
        CommandLocked: Somebody else holds it; not with `skip`.
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
        screen.say(2, f"Locked {key!r} on {alias!r} after {time.monotonic() - asked:.1f} s")
        output = body()
        try:
            stack.close()
        except LockLostError as error:
            raise CommandLockLost(str(error), key=key) from error
        return output


def _conflict(key: Key, alias: str, flags: Flags, screen: Screen) -> None:
    by = holder_of(key, alias)
    text = f"{key!r} is locked by {by or 'somebody else'}"
    if not flags.skip:
        code = setting("DLOCK_CONFLICT_EXIT_CODE") if flags.exit_code is None else flags.exit_code
        raise CommandLocked(text, returncode=code, key=key, holder=by)
    screen.say(1, f"Skipped: {text}")
