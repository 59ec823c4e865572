"""Side files: one empty SQLite file per key, whose transactions are the locks.

An exclusive lock is `BEGIN IMMEDIATE` on the key's file, the *gate*. Not `BEGIN EXCLUSIVE`: two
single tries of it at one moment can refuse each other (measured: 14 of 3,000), and the lock would go
to nobody. Readers lock a second file, `<name>.readers`, made when a key is first shared; a writer
that finds one takes it with `BEGIN EXCLUSIVE` behind the gate, where no other writer is.

- On a file that we may read but not write, SQLite silently begins a mere read transaction; the write
  probe `PRAGMA user_version=1` fails there, and ROLLBACK undoes it: the file stays empty.
- POSIX drops a file's locks as soon as *any* descriptor of it is closed in the holder's process. So
  nobody but SQLite may open a side file, we ourselves included, and nobody may delete one.
"""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import stat
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import LockConnectionError, LockLostError, NotPermittedError, UnsafeEnvironmentError
from .base import WithoutServer
from .sqlite_owners import Notes, Owners, sights
from .sqlite_paths import draft_of, filesystem_of, make_file, make_folder, own
from .views import Finding, Look

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .base import Session

__all__ = ["SideFiles"]

# Open files without a lock, kept for the next use of their keys.
SPARE_FILES = 8
# How the kernel calls file systems of other machines.
NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs", "9p", "afs")

GATE = ("BEGIN IMMEDIATE", "PRAGMA user_version=1")
WRITER = ("BEGIN EXCLUSIVE", "PRAGMA user_version=1")
# A read transaction locks nothing until it has read a table.
READER = ("BEGIN", "SELECT count(*) FROM sqlite_master")

# SQLite remembers per process which of its files are locked, and a forked child inherits that memory:
# no fork may happen while a statement of ours changes it. Re-entrant, since a collection of garbage in
# the midst of one may close the files of a forgotten provider.
_fork_guard = threading.RLock()
os.register_at_fork(before=_fork_guard.acquire, after_in_parent=_fork_guard.release, after_in_child=_fork_guard.release)


class SideFile:
    """One open side file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = _check_plain(path)
        self._ready = False
        try:
            with _fork_guard:
                self._connection = sqlite3.connect(
                    f"file:{quote(str(path))}?mode=rw",
                    uri=True,
                    timeout=0,
                    isolation_level=None,
                    check_same_thread=False,
                )
        except sqlite3.OperationalError as error:
            raise _failure(path, error) from error

    @property
    def intact(self) -> bool:
        """Whether the path still leads to the file that we opened; asked without opening it."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self.identity

    def lock(self, statements: tuple[str, str]) -> bool:
        """Try once."""
        try:
            with _fork_guard:
                if not self._ready:  # no journal file beside the side file
                    self._connection.execute("PRAGMA journal_mode=MEMORY")
                    self._ready = True
                for statement in statements:
                    self._connection.execute(statement).fetchall()
        except sqlite3.OperationalError as error:
            self.unlock()
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                return False
            raise _failure(self.path, error) from error
        return True

    def unlock(self) -> None:
        with _fork_guard:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        with _fork_guard:
            self._connection.close()


class SideFiles:
    """The folder of side files beside one database."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._folder = database.with_name(f"{database.name}.dlock")
        self._mutex = threading.Lock()
        self._spare: OrderedDict[str, SideFile] = OrderedDict()
        self._room = SPARE_FILES
        self._pid = os.getpid()
        self._lent: set[SideFile] = set()
        self.owners = Owners(self._folder, database)

    def session(self, label: str, watch: Callable[[Any], None]) -> Session:
        return SideFileSession(self, label, watch)

    def look(self, name: str | None) -> Look:
        return Look(sights(self._folder, name))

    def findings(self) -> list[Finding]:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        kind = filesystem_of(self._database)
        on_network = kind.startswith(NETWORK)
        said = f"{self._folder} is on {kind or 'an unknown file system'}"
        return [
            Finding("server", None, f"SQLite {sqlite3.sqlite_version}, for the processes of this machine"),
            Finding("file system", not on_network, f"{said}{', which cannot be trusted with locks' * on_network}"),
            Finding("open files", None, f"{files} for each process (ulimit -n): one or two for each held lock"),
        ]

    def break_lock(self, name: str) -> None:
        """Take a lock from whoever holds it: its files go, and he finds at his next look that he lost it.

        Raises:
            NotPermittedError: This user may not delete in the folder.
        """
        for path in (self._folder / f"{name}.readers", self._folder / name):
            try:
                path.unlink(missing_ok=True)
            except PermissionError as error:
                raise NotPermittedError(
                    f"this user may not delete {path}: do it as the folder's owner, or end the process that holds it"
                ) from error

    def exists(self, name: str) -> bool:
        return os.path.lexists(self._folder / name)

    def take(self, name: str) -> SideFile:
        """Open the side file of a name, made when it is new."""
        with self._mutex:
            file = self._spare.pop(name, None)
            if file is not None and not file.intact:
                file.close()
                file = None
            if file is None:
                self._make(name)
                file = SideFile(self._folder / name)
            self._lent.add(file)
            return file

    def give(self, file: SideFile) -> None:
        """Unlock a file and keep it open for the next use of its key."""
        file.unlock()
        with self._mutex:
            self._lent.discard(file)
            unwanted = self._spare.pop(file.path.name, None)
            self._spare[file.path.name] = file
            if unwanted is None and len(self._spare) > self._room:
                unwanted = self._spare.popitem(last=False)[1]
        if unwanted is not None:
            unwanted.close()

    def next_token(self, name: str) -> int:
        """Count the grants of a name in a file of its own, while holding it; what was counted is on disk."""
        path = self._folder / f"{name}.token"
        token = 1 + (int(path.read_text()) if path.exists() else 0)
        draft = draft_of(path)
        with draft.open("x") as file:
            own(draft, stat.S_IMODE(self._database.stat().st_mode), self._database.stat())
            file.write(str(token))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return token

    def drop(self, file: SideFile) -> None:
        """Close a file; a lock on it is free."""
        with self._mutex:
            self._lent.discard(file)
        file.close()

    def close(self) -> None:
        """Close the spare files, and keep none from now on."""
        if self._pid != os.getpid():
            return  # after a fork that ran no Python hook, what is open is the parent's
        with self._mutex:
            self._room = 0
            unwanted = list(self._spare.values())
            self._spare.clear()
        for file in unwanted:
            file.close()

    def _make(self, name: str) -> None:
        """Make folder and file with the database's owner, group and mode."""
        if self.exists(name):
            return
        try:
            like = self._database.stat()
            make_folder(self._folder, like)
            make_file(self._folder / name, like)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise _failure(self._folder, error) from error
            raise UnsafeEnvironmentError(
                f"cannot make {name} in {self._folder}: {error.strerror}. SQLite's locks are files there: "
                "let every user of the database write to that folder"
            ) from error

    def after_fork(self) -> None:
        """Close the parent's side files in a child.

        Their locks belong to the parent's process and stay. What must go is SQLite's own memory of
        them, which would refuse this child the same keys for ever.
        """
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self.owners.after_fork()
        for file in [*self._lent, *self._spare.values()]:
            file.close()
        self._lent.clear()
        self._spare.clear()


class SideFileSession(WithoutServer):
    """One holder of one key."""

    fresh = True
    ended = False

    def __init__(self, files: SideFiles, label: str, watch: Callable[[Any], None]) -> None:
        self._files = files
        self._watch = watch
        self._pid = os.getpid()
        self._held: list[SideFile] = []
        self._notes = Notes(files.owners, label)

    def acquire(self, name: str, *, shared: bool, timeout: float | None, label: str | None) -> bool:  # noqa: ARG002
        """Try once, whatever the timeout: SQLite has no queue."""
        while True:
            granted = self._read(name) if shared else self._write(name)
            if all(file.intact for file in self._held):
                files = [(file.path.name, *file.identity) for file in self._held]
                self._notes.tried(name, granted=granted, shared=shared, key=label or "", files=files)
                if granted and not self.watched:
                    self._watch(self)
                return granted
            self.end()  # somebody deleted or replaced a file: what we locked excludes nobody

    def _write(self, name: str) -> bool:
        readers = f"{name}.readers"
        if self._lock(name, GATE) and (not self._files.exists(readers) or self._lock(readers, WRITER)):
            return True
        self._give_all()
        return False

    def _read(self, name: str) -> bool:
        readers = f"{name}.readers"
        if not self._files.exists(readers):
            # Behind the gate, so that a writer who saw no such file has gone.
            if self._lock(name, GATE):
                self._files.give(self._files.take(readers))
                self._give_all()
            elif not self._files.exists(readers):
                return False
        return self._lock(readers, READER)

    def _lock(self, name: str, statements: tuple[str, str]) -> bool:
        file = self._files.take(name)
        try:
            granted = file.lock(statements)
        except BaseException:
            self._files.drop(file)
            raise
        if granted:
            self._held.append(file)
        else:
            self._files.give(file)
        return granted

    def _give_all(self) -> None:
        while self._held:
            self._files.give(self._held.pop())

    def release(self, name: str, *, shared: bool) -> bool:  # noqa: ARG002
        """Unlock; False when somebody deleted or replaced a side file meanwhile."""
        if not self._held:
            raise LockLostError("the side file was closed while it was locked")
        intact = all(file.intact for file in self._held)
        self._notes.erase()
        self._give_all()
        return intact

    def next_token(self, name: str) -> int:
        return self._files.next_token(name)

    def alive(self) -> bool:
        return bool(self._held) and all(file.intact for file in list(self._held))

    @property
    def locks(self) -> int:
        """How many files it holds, for the watch."""
        return len(self._held)

    def hung_up(self) -> bool:
        """Tell whether somebody deleted or replaced a side file."""
        return not all(file.intact for file in list(self._held))

    def end(self) -> None:
        held, self._held = self._held, []
        if self._pid == os.getpid():
            self._notes.erase()
            for file in held:
                self._files.drop(file)

    def interrupt(self) -> None:
        """Do nothing: a single try does not wait."""

    def park(self) -> None:
        """Forget the parent's files, which `SideFiles.after_fork` closes."""
        self._held = []


def _check_plain(path: Path) -> tuple[int, int]:
    """Refuse what somebody may have planted where our side file should be; return its identity."""
    if path.parent.is_symlink():
        raise UnsafeEnvironmentError(f"{path.parent} is a symbolic link; remove it: locks must have one place")
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_size:
        raise UnsafeEnvironmentError(
            f"{path} is not an empty file of ours (a link, or somebody's data); remove it and find out who made it"
        )
    return (found.st_dev, found.st_ino)


def _failure(path: Path, error: Exception) -> Exception:
    if not os.access(path, os.R_OK | os.W_OK):
        return UnsafeEnvironmentError(
            f"the side file {path} cannot be written by this user, so a lock on it would exclude nobody: "
            "let every user of the database write to that folder and its files"
        )
    return LockConnectionError(
        f"SQLite cannot lock the side file {path}: {error}. Each lock held on SQLite needs an open file: "
        "see `ulimit -n`"
    )
