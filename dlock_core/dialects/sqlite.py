"""SQLite, the embedded default: locks between the processes of one machine.

Each key has an empty file, named by a hash, in the folder `<database>.dlock/`. A lock is `flock` on that file,
which the operating system frees when the process ends. It belongs to the open file: unlike the locks that SQLite
itself takes, it survives whatever else opens, reads or closes the file. A file that is no longer where its path
leads excludes nothing, so each grant is followed by a look. https://man7.org/linux/man-pages/man2/flock.2.html

Files have no queue: we poll, and there is no order among processes, except that
one that has waited for long, such as a writer among readers, goes first. Not for network file systems, whose locks
are not to be trusted. A database in memory is shared with no other process, and so are its locks.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from json.encoder import encode_basestring as quoted
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from sqlalchemy.engine.base import OptionEngine

from .. import keys
from ..errors import LockConnectionError, LockLostError, UnsafeEnvironmentError
from .base import Capabilities
from .failures import connecting, shown_url
from .sqlite_files import FileLocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, Pool

    from ..keys import Key
    from .sqlite_files import LockFile

__all__ = ["FileSession", "MemoryLocks", "MemorySession", "SQLite"]

# Of a key, for which a note has room.
KEY_CHARACTERS = 80
# When a waiter asks to go first, in seconds.
PATIENCE = 0.2
# How often a waiter says that it still waits, in seconds.
NOTE_REFRESH = 0.25


class SQLite:
    """Locks on files beside the database, or within the process for a database in memory."""

    capabilities = Capabilities(
        mechanism="flock on a file beside the database",
        shared=True,
        server_waits=False,
    )

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._place: FileLocks | MemoryLocks | None = None
        self._checked = False

    def name(self, prefix: str, key: Key) -> str:
        return keys.file_name(prefix, key)

    def open(
        self, engine: Engine, pool: Pool, label: str, *, allow_unsafe: bool = False
    ) -> FileSession | MemorySession:
        """Return a session; see `place`.

        Raises:
            UnsafeEnvironmentError: Other programs may have the locks of this database in another place.
        """
        place = self.place(engine, pool)
        if isinstance(place, MemoryLocks):
            return MemorySession(place, label)
        if not (allow_unsafe or self._checked) and (hazard := place.hazard()):
            raise UnsafeEnvironmentError(hazard)
        self._checked = True
        return FileSession(place, label)

    def place(self, engine: Engine, pool: Pool) -> FileLocks | MemoryLocks:
        """Return where the locks are; the first call asks SQLite itself where the database is.

        Raises:
            LockConnectionError: The database cannot be opened.
        """
        if self._place is None:
            file = _database_file(engine, pool)
            with self._mutex:
                self._place = self._place or (FileLocks(Path(file)) if file else MemoryLocks.of(engine))
        return self._place

    def close(self) -> None:
        """Remove what was written about the holders; the sessions have ended."""
        if isinstance(self._place, FileLocks):
            self._place.notes.close()

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


class WithoutServer:
    """What every session here has in common: no server can be silent, and a single try does not wait."""

    socket = None
    proof = due = inf
    silent = ended = False
    fresh = True
    waiter: object = None

    def expired(self) -> bool:
        return False

    waits = stirs = expired

    def beat(self) -> None:
        pass

    def call_reader(self, function: Callable[[], None]) -> None:
        function()

    def interrupt(self, waiter: object = None) -> None:
        pass


class FileSession(WithoutServer):
    """One holder of one key; it keeps the file open for the next use of the key."""

    def __init__(self, files: FileLocks, label: str) -> None:
        self._files = files
        self._notes = files.notes
        self._label = quoted(label)
        self._pid = os.getpid()
        # A closed descriptor's number may be another file's: no end comes between. Re-entrant for signal handlers.
        self._mutex = threading.RLock()
        self._file: LockFile | None = None
        self._held: LockFile | None = None
        self._line: int | None = None
        self._marked = ""
        self._asker = 0
        self._since = self._noted = 0.0

    @property
    def locks(self) -> int:
        """How many locks it holds, for the watch."""
        return int(self._held is not None)

    def acquire(
        self, name: str, *, shared: bool, timeout: float | None, label: str | None, again: bool = False
    ) -> bool:
        """Try once; a timeout other than 0 only says that it is a part of a wait."""
        with self._mutex:
            now, waits, asker = time.time(), timeout != 0, id(self.waiter)
            if not waits or asker != self._asker or self._file is None or self._file.name != name:
                self._asker, self._since, self._noted = asker, now, 0.0
            granted = self._try(name, LOCK_SH if shared else LOCK_EX, waits=waits)
            if self.ended:
                self._close()
                raise LockConnectionError("this session has ended")
            if granted:
                self._held, self._since = self._file, now
            if granted or not waits:
                self._unmark()
            elif now - self._since > PATIENCE:
                self._marked = name
                self._files.mark(name, self._since, shared=shared)
            if granted or (waits and now - self._noted > NOTE_REFRESH):
                self._noted = now
                self._note(granted=granted, shared=shared, key=label or "")
            elif not waits:
                self._erase()
            return granted

    def _try(self, name: str, mode: int, *, waits: bool) -> bool:
        while True:
            file = self._file
            if file is None or file.name != name:
                self._close()
                file = self._file = self._files.open(name)
            if waits or mode == LOCK_SH:
                first = self._files.waiter(name)
                # A single try takes what is free; but a reader's, too, must not keep a writer out.
                if first.since < self._since and (waits or not first.shared):
                    return False
            try:
                flock(file.handle, mode | LOCK_NB)
                granted = True
            except BlockingIOError:
                granted = False
            except (OSError, ValueError) as error:
                raise LockConnectionError(f"cannot lock {file.path}: {error}") from error
            if file.in_place():
                return granted
            self._close()  # it was deleted or replaced: a lock on it excludes nothing

    def release(self, name: str, *, shared: bool) -> bool:
        """Unlock; False when the file was deleted or replaced meanwhile."""
        with self._mutex:
            file = self._held
            if file is None:
                raise LockLostError("the lock file was closed while it was locked")
            intact = file.in_place()
            self._held = None
            self._erase()
            flock(file.handle, LOCK_UN)
            return intact

    def holds(self, name: str, *, shared: bool) -> bool:
        """Tell whether the file that it locked is still the one that others find."""
        return self.alive()

    def next_token(self, name: str) -> int:
        return self._files.next_token(name)

    def alive(self) -> bool:
        held = self._held
        return held is not None and held.in_place()

    def hung_up(self) -> bool:
        """Tell whether the file was deleted or replaced."""
        held = self._held
        return held is not None and not held.in_place() and held is self._held

    def end(self) -> None:
        self.ended = True  # first: a grant at this moment is not believed
        if self._pid == os.getpid():
            with self._mutex:
                self._close()
                self._unmark()
                self._notes.free(self._line)
                self._line = None

    def _close(self) -> None:
        self._held = None
        if self._file is not None:
            with suppress(OSError, ValueError):  # for copies in children that ran no hook: closing does not unlock
                flock(self._file.handle, LOCK_UN)
            self._file.close()
            self._file = None

    def _unmark(self) -> None:
        if self._marked:
            self._files.unmark(self._marked)
            self._marked = ""

    def park(self) -> None:
        """Close the copy of the parent's file, which stays locked."""
        self._mutex = threading.RLock()
        self._held = None
        if self._file is not None:
            self._file.handle.close()  # not under the mutex of forks, which one without Python's hooks may have copied
            self._file = None

    def _note(self, *, granted: bool, shared: bool, key: str) -> None:
        file = self._file
        assert file is not None
        self._line = self._notes.write(
            self._line,
            f'["{file.name}",{file.device},{file.inode},{granted:d},{shared:d},{self._since:.3f},{self._noted:.3f},'
            f"{self._pid},{self._label},{quoted(key[:KEY_CHARACTERS])}]",
        )

    def _erase(self) -> None:
        if self._line is not None:
            self._notes.write(self._line, "")


class MemoryLocks:
    """What is held in one database: that of an engine or a pool, or one with a URI name that several engines share."""

    _by_owner: ClassVar[WeakKeyDictionary[Engine | Pool, MemoryLocks]] = WeakKeyDictionary()
    _by_name: ClassVar[WeakValueDictionary[str, MemoryLocks]] = WeakValueDictionary()
    _naming = threading.Lock()

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holders: dict[str, tuple[bool, set[MemorySession]]] = {}
        self._tokens: dict[str, int] = {}
        self.fault: Callable[[], object] = lambda: None
        """What happens at every question, for tests."""

    @classmethod
    def of(cls, engine: Engine) -> MemoryLocks:
        """Return the locks of this engine's database."""
        database = engine.url.database or ""
        if database.startswith("file:"):
            return cls.named(database.partition("?")[0])
        while isinstance(engine, OptionEngine):  # the same database with other options
            engine = engine._proxied  # noqa: SLF001 - there is no other way to it
        with cls._naming:
            # Engines can share a pool, and have a new one after `dispose`.
            found = cls._by_owner.get(engine) or cls._by_owner.get(engine.pool) or cls()
            cls._by_owner[engine] = cls._by_owner[engine.pool] = found
        return found

    @classmethod
    def named(cls, name: str) -> MemoryLocks:
        """Return the locks of a database with a URI name, which are there as long as anything has them."""
        with cls._naming:  # two at one moment must get the same
            return cls._by_name.setdefault(name, cls())

    @classmethod
    def after_fork_of_all(cls) -> None:
        """Give a forked child a mutex that no thread of its parent holds."""
        cls._naming = threading.Lock()

    def held(self) -> list[tuple[str, bool, list[MemorySession]]]:
        """Return what is held, whether shared, and by which sessions."""
        with self._mutex:
            return [(name, shared, list(holders)) for name, (shared, holders) in self._holders.items()]

    def break_lock(self, name: str) -> set[MemorySession]:
        """Take a lock away, and return the sessions that held it."""
        with self._mutex:
            return self._holders.pop(name, (False, set()))[1]

    def acquire(self, name: str, session: MemorySession, *, shared: bool) -> bool:
        """Try once."""
        with self._mutex:
            held_shared, holders = self._holders.get(name, (shared, set()))
            if holders and not (shared and held_shared):
                return False
            self._holders[name] = (shared, {*holders, session})
            return True

    def release(self, name: str, session: MemorySession) -> bool:
        """Unlock; False when this session does not hold the name."""
        with self._mutex:
            _, holders = self._holders.get(name, (False, set()))
            if session not in holders:
                return False
            holders.discard(session)
            if not holders:
                del self._holders[name]
            return True

    def holds(self, session: MemorySession) -> bool:
        """Tell whether a session holds anything."""
        with self._mutex:
            return any(session in holders for _, holders in self._holders.values())

    def next_token(self, name: str) -> int:
        """Count the grants of a name, while holding it."""
        with self._mutex:
            self._tokens[name] = self._tokens.get(name, 0) + 1
            return self._tokens[name]

    def free(self, session: MemorySession) -> None:
        """Unlock all that a session holds."""
        for name in list(self._holders):
            self.release(name, session)

    def after_fork(self) -> None:
        """Start empty: a child's database in memory is its own."""
        self._mutex = threading.Lock()
        self._holders.clear()


os.register_at_fork(after_in_child=MemoryLocks.after_fork_of_all)


class MemorySession(WithoutServer):
    """One holder inside this process."""

    def __init__(self, locks: MemoryLocks, label: str) -> None:
        self._locks = locks
        self._pid = os.getpid()
        self.label = label
        self.locks = 0
        self.key: str | None = None
        self.since: datetime | None = None

    def acquire(
        self, name: str, *, shared: bool, timeout: float | None, label: str | None, again: bool = False
    ) -> bool:
        self._locks.fault()
        granted = self._locks.acquire(name, self, shared=shared)
        if self.ended:
            self._locks.free(self)
            raise LockConnectionError("this session has ended")
        if granted:
            self.locks, self.key, self.since = 1, label or None, datetime.now(UTC)
        return granted

    def release(self, name: str, *, shared: bool) -> bool:
        self.locks = 0
        self._locks.fault()
        return self._locks.release(name, self)

    def hung_up(self) -> bool:
        """Tell whether the lock was taken away."""
        return self.locks > 0 and not self._locks.holds(self)

    def holds(self, name: str, *, shared: bool) -> bool:
        self._locks.fault()
        return self._locks.holds(self)

    def next_token(self, name: str) -> int:
        return self._locks.next_token(name)

    def alive(self) -> bool:
        return self._locks.holds(self)

    def end(self) -> None:
        self.ended = True  # first: a grant at this moment is not believed
        if self._pid == os.getpid():
            self._locks.free(self)

    def park(self) -> None:
        """Do nothing: `MemoryLocks.after_fork` has removed the parent's holders."""
