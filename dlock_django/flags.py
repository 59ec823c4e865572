"""The flags that a locked command understands; `--lock` has no value, so that it never eats an argument."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from django.core.management.base import CommandError

from .conf import UNSET, Unset

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

__all__ = ["Flags", "add_flags", "add_switches"]

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
        """Tell whether to lock; whoever gives a key, a timeout and so on wants a lock.

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
    parser.add_argument("--lock", action="store_true", default=None, dest=DEST.format("lock"), help="run under a lock")
    parser.add_argument(
        "--no-lock",
        action="store_true",
        default=None,
        dest=DEST.format("no_lock"),
        help="run without the lock that this command takes by itself",
    )
    parser.add_argument("--lock-key", metavar="KEY", dest=DEST.format("key"), help="lock this key instead of its own")


def add_flags(parser: CommandParser | argparse._ArgumentGroup) -> None:
    """Add the flags that say how to lock."""
    parser.add_argument(
        "--lock-timeout",
        type=_seconds,
        default=UNSET,
        metavar="SECONDS",
        dest=DEST.format("timeout"),
        help='wait so long for the lock; 0 tries once, "forever" never gives up',
    )
    parser.add_argument(
        "--lock-database", metavar="ALIAS", dest=DEST.format("database"), help="the database that lends the lock"
    )
    parser.add_argument(
        "--lock-skip",
        action="store_true",
        default=None,
        dest=DEST.format("skip"),
        help="exit with 0 when somebody else holds the lock",
    )
    parser.add_argument(
        "--lock-exit-code",
        type=_exit_code,
        metavar="N",
        dest=DEST.format("exit_code"),
        help="exit with N when somebody else holds the lock",
    )


def _seconds(text: str) -> float | None:
    if text == "forever":
        return None
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f'{text}: give seconds from 0, or "forever"')
    return seconds


def _exit_code(text: str) -> int:
    code = int(text)
    if code not in EXIT_CODES:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to 255")
    return code
