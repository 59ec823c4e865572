"""SQLite, the embedded default: locks between the processes of one machine.

Per key there is an empty side file in a folder beside the database (`sqlite_files.py`); a lock is a
transaction on it, which the operating system frees when the process dies. A database in memory is
shared with no other process, so its locks live in this one (`sqlite_memory.py`).

SQLite does not queue: we poll, and there is no order among processes. Not for network file systems,
whose locks are not to be trusted. https://www.sqlite.org/lockingv3.html
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import keys
from ..failures import connecting
from ..urls import shown_url
from .base import Capabilities
from .sqlite_files import SideFiles
from .sqlite_memory import MemoryLocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, Pool

    from ..keys import Key
    from .base import Session

__all__ = ["SQLite"]


class SQLite:
    """Locks on side files, or within the process for a database in memory."""

    capabilities = Capabilities(
        mechanism="transaction on a side file",
        shared=True,
        server_waits=False,
    )

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._place: SideFiles | MemoryLocks | None = None

    def name(self, prefix: str, key: Key) -> str:
        return keys.file_name(prefix, key)

    def open(self, engine: Engine, pool: Pool, label: str, watch: Callable[[Any], None]) -> Session:
        """Return a session, which asks to be watched while it holds a lock; see `place`."""
        return self.place(engine, pool).session(label, watch)

    def place(self, engine: Engine, pool: Pool) -> SideFiles | MemoryLocks:
        """Return where the locks are; the first call asks SQLite itself where the database is.

        Raises:
            LockConnectionError: The database cannot be opened.
        """
        if self._place is None:
            file = _database_file(engine, pool)
            with self._mutex:
                self._place = self._place or (SideFiles(Path(file)) if file else MemoryLocks.of(engine))
        return self._place

    def close(self) -> None:
        """Close what is open without a lock."""
        if isinstance(self._place, SideFiles):
            self._place.close()

    def after_fork(self) -> None:
        """Start anew in a forked child."""
        self._mutex = threading.Lock()
        if self._place is not None:
            self._place.after_fork()


def _database_file(engine: Engine, pool: Pool) -> str:
    """Return the real path of the main database, '' for one in memory.

    The URL cannot tell: with `creator=` there is none, and a relative one changes with the folder.
    """
    with connecting(f"cannot open {shown_url(engine.url)}", ". Check the path and its rights"):
        pooled = pool.connect()
    connection = pooled.dbapi_connection
    assert connection is not None
    pooled.detach()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA database_list")
        file: str = next((row[2] for row in cursor.fetchall() if row[1] == "main"), "")
        if file and not Path(file).exists():
            cursor.execute("SELECT count(*) FROM sqlite_master")  # makes the file, whose rights we copy
            cursor.fetchall()
        cursor.close()
    finally:
        engine.dialect.do_close(connection)
    return os.path.realpath(file) if file else ""
