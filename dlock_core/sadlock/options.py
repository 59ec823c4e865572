"""The options of sqlalchemy-dlock 0.9: each belongs to some databases, and elsewhere it is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..dialects import find_dialect, refusal_to_share
from ..errors import UnsupportedError, shown

if TYPE_CHECKING:
    from sqlalchemy import Dialect

__all__ = ["Options"]

# The databases, by SQLAlchemy's name of the dialect, that know each option. Who adds a database adds
# its name here, and lets `Options` reach its statements.
KNOWN_BY = {
    "xact": {"postgresql": "PostgreSQL", "mssql": "SQL Server"},
    "update": {"mssql": "SQL Server", "oracle": "Oracle"},
    "lock_mode": {"mssql": "SQL Server", "oracle": "Oracle"},
    "release_on_commit": {"oracle": "Oracle"},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a lock is to be held."""

    shared: bool = False
    xact: bool = False
    update: bool = False
    lock_mode: str | None = None
    release_on_commit: bool = False

    def check(self, dialect: Dialect, key: object) -> None:
        """Refuse what the database does not know; an ignored option would be another lock than was asked for.

        Raises:
            UnsupportedError: The option, or the database itself, is not supported.
        """
        locks = find_dialect(dialect.name)
        if self.shared and not locks.capabilities.shared:
            raise UnsupportedError(f"key {shown(key)}: shared={self.shared!r}: {refusal_to_share(locks)}", key=key)
        for option, databases in KNOWN_BY.items():
            value = getattr(self, option)
            if value not in (None, False) and dialect.name not in databases:
                raise UnsupportedError(
                    f"key {shown(key)}: {option}={value!r} means nothing to {dialect.name}: "
                    f"it is an option of {' and '.join(databases.values())}; leave it out",
                    key=key,
                )
