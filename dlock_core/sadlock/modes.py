"""The modes of SQL Server's and Oracle's locks on a caller's connection, and their upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..dialects import mssql, oracle
from ..errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from .options import Options

__all__ = ["MSSQLOnCaller", "OracleOnCaller", "Upgradable", "mode_of"]


def mode_of(database: str, options: Options, key: object) -> str | None:
    """Return the mode that the options mean, None where the database has none.

    Raises:
        ValueError: There is no such mode.
    """
    match database:
        case "mssql":
            known: dict[str, str] = {mode.lower(): mode for mode in mssql.MODES}
            update, shared, exclusive = mssql.UPDATE, mssql.SHARED, mssql.EXCLUSIVE
        case "oracle":
            known = {mode.lower(): mode for mode in oracle.MODES}
            update, shared, exclusive = oracle.UPDATE, oracle.SHARED, oracle.EXCLUSIVE
        case _:
            return None
    if options.lock_mode is None:
        return update if options.update else shared if options.shared else exclusive
    try:
        return known[options.lock_mode.strip().lower()]
    except (KeyError, AttributeError):
        raise ValueError(
            f"key {shown(key)}: lock_mode={shown(options.lock_mode)}: give one of {', '.join(known.values())}"
        ) from None


class Upgradable(Protocol):
    """Locks of which a weaker one can become exclusive."""

    mode: str

    def upgrade(self, session: Any, name: Any, *, timeout: float | None) -> bool | None:
        """Ask for the exclusive mode, keeping what is held; None when the server says that nothing is."""
        ...


class MSSQLOnCaller:
    """SQL Server: for the session, or for its transaction."""

    def __init__(self, mode: str, *, xact: bool) -> None:
        self.mode = mode
        self._owner: mssql.Owner = "Transaction" if xact else "Session"
        self._grants = 1

    def guard(self, session: Any) -> None:
        mssql.MSSQL().guard(session, unsafe_ok=False)

    def acquire(self, session: Any, name: Any, *, shared: bool, xact: bool, timeout: float | None) -> bool:  # noqa: ARG002 - the mode and the owner say so
        return mssql.MSSQL().request(session, name, self.mode, timeout, owner=self._owner)

    def upgrade(self, session: Any, name: Any, *, timeout: float | None) -> bool | None:
        granted = mssql.MSSQL().upgrade(session, name, timeout, owner=self._owner)
        if granted:
            self.mode, self._grants = mssql.EXCLUSIVE, self._grants + 1
        return granted

    def release(self, session: Any, name: Any, *, shared: bool, recover: Callable[[], None]) -> bool:  # noqa: ARG002 - a failed transaction does not hinder it
        """Undo each grant: the server counts them."""
        return all(mssql.MSSQL().free(session, name, owner=self._owner) for _ in range(self._grants))


class OracleOnCaller:
    """Oracle: for the session, or to the end of its transaction at the latest."""

    def __init__(self, mode: str, *, release_on_commit: bool) -> None:
        self.mode = mode
        self._release_on_commit = release_on_commit

    def guard(self, session: Any) -> None:
        oracle.Oracle().guard(session, unsafe_ok=False)

    def acquire(self, session: Any, name: Any, *, shared: bool, xact: bool, timeout: float | None) -> bool:  # noqa: ARG002 - the mode says so
        return oracle.Oracle().request(session, name, self.mode, timeout, on_commit=self._release_on_commit)

    def upgrade(self, session: Any, name: Any, *, timeout: float | None) -> bool | None:
        granted = oracle.Oracle().upgrade(session, name, timeout)
        if granted:
            self.mode = oracle.EXCLUSIVE
        return granted

    def release(self, session: Any, name: Any, *, shared: bool, recover: Callable[[], None]) -> bool:  # noqa: ARG002 - a failed transaction does not hinder it
        return oracle.Oracle().release(session, name, shared=shared, label=None)
