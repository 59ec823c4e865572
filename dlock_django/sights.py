"""Who holds and who waits on each database of DATABASES, as the admin shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from django.db import connections
from django.utils.timesince import timesince
from sqlalchemy.exc import SQLAlchemyError

from dlock_core import LockError, NotPermittedError

from .providers import provider

if TYPE_CHECKING:
    from dlock_core import LockInfo, LockWaiter

__all__ = ["Database", "Line", "all_databases", "look", "name_of", "others_of"]

MINUTE = 60


class Line(NamedTuple):
    """One who holds, or waits."""

    party: LockInfo | LockWaiter
    name: str
    holds: bool
    age: str


class Database(NamedTuple):
    """What one database shows, and why that is not all; '' when it is."""

    alias: str
    found: list[LockInfo]
    missing: str

    @property
    def lines(self) -> list[Line]:
        """Return each holder, followed by those who wait for him."""
        return [
            line
            for info in self.found
            for line in (
                Line(info, name_of(info), holds=True, age=_age_of(info)),
                *(Line(waiter, "", holds=False, age=_age(waiter.since)) for waiter in info.waiters),
            )
        ]

    def holder(self, lock: str, session: str) -> LockInfo | None:
        """Return who holds a lock in a session, both in the database's own names; None when he does no more."""
        return next((one for one in self.found if (str(one.actual_key), str(one.session)) == (lock, session)), None)


def all_databases() -> list[Database]:
    """Ask every database of DATABASES."""
    return [look(alias) for alias in connections]


def look(alias: str) -> Database:
    """Ask one database; what it does not tell, and why, is an answer too."""
    try:
        with provider(alias) as locks:
            return Database(alias, locks.inspect(), "")
    except NotPermittedError as error:
        return Database(alias, list(error.found), f"Not permitted: {error}")
    except (LockError, SQLAlchemyError) as error:
        return Database(alias, [], str(error))


def name_of(info: LockInfo) -> str:
    """Return the key, or what the database calls the lock."""
    return info.key or f"{info.actual_key} (unnamed)"


def others_of(info: LockInfo, found: list[LockInfo]) -> list[str]:
    """Return the names of the locks that would end with one."""
    return [name_of(one) for one in found if one.session == info.session and one.actual_key != info.actual_key]


def _age_of(info: LockInfo) -> str:
    if info.since is None and info.session_since is not None:
        return f"at most {_age(info.session_since)}"
    return _age(info.since)


def _age(since: datetime | None) -> str:
    if since is None:
        return "?"
    seconds = max(0, round((datetime.now(UTC) - since).total_seconds()))
    return f"{seconds} s" if seconds < 2 * MINUTE else timesince(since)
