"""SQLite: holders and waiters, as the processes themselves have written them beside the lock files."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import time
from contextlib import suppress
from datetime import UTC, datetime
from fcntl import LOCK_NB, LOCK_SH, flock
from typing import TYPE_CHECKING, Any, NamedTuple

from ..dialects.sqlite import MemoryLocks
from ..dialects.sqlite_files import LINE_BYTES, NOTES, mounts
from .base import Finding, LockRow, Snapshot, View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sqlalchemy import Engine

    from ..dialects.sqlite import SQLite
    from ..dialects.sqlite_files import FileLocks
    from .base import Run

__all__ = ["SQLiteView"]

# After so many seconds of silence a waiter has left.
WAIT_SILENCE = 1.5
# How the kernel calls file systems of other machines.
NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs", "9p", "afs")


class SQLiteView(View):
    """Shows the locks of one database, without a question to it."""

    def __init__(self, locks: SQLite, engine: Engine) -> None:
        self._locks = locks
        self._engine = engine

    @property
    def _place(self) -> FileLocks | MemoryLocks:
        return self._locks.place(self._engine, self._engine.pool.recreate())

    def look(self, run: Run, name: Any | None, known: Callable[[], Sequence[Any]]) -> Snapshot:
        place = self._place
        if isinstance(place, MemoryLocks):
            return Snapshot([row for row in _in_memory(place) if name in (None, row.name)])
        notes, missing = [], ""
        try:
            for path in place.folder.iterdir():
                if path.suffix == NOTES:
                    notes += [note for note in _notes(path) if _in_place(place, note)]
        except FileNotFoundError:
            pass  # nothing was ever locked
        except PermissionError as error:
            missing = f"this user may not read {error.filename}; let every user of the database read that folder"
        holders = [note.name for note in notes if note.granted]
        return Snapshot(
            [_row(note, others=holders.count(note.name) - 1) for note in notes if name in (None, note.name)], missing
        )

    def kill(self, run: Run, row: LockRow) -> None:
        self._place.break_lock(str(row.name))

    def findings(self, run: Run) -> list[Finding]:
        place = self._place
        if isinstance(place, MemoryLocks):
            return [Finding("server", None, "a database in memory, for the threads of this process")]
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        kind = _file_system(place.database)
        on_network = kind.startswith(NETWORK)
        hazard = place.hazard()
        said = f"{place.folder} is on {kind or 'an unknown file system'}"
        return [
            Finding("server", None, f"SQLite {sqlite3.sqlite_version}, for the processes of this machine"),
            Finding("file system", not on_network, f"{said}{', which cannot be trusted with locks' * on_network}"),
            Finding("place", not hazard, hazard or "every path to the database leads to the same locks"),
            Finding("open files", None, f"{files} for each process (ulimit -n): one for each held lock"),
        ]


class _Note(NamedTuple):
    """A line that a session wrote, in the order of `FileSession`."""

    name: str
    device: int
    inode: int
    granted: int
    shared: int
    since: float
    noted: float
    pid: int
    label: str
    key: str


def _notes(path: Path) -> Iterator[_Note]:
    """Read what a living process wrote; the file of a dead one is deleted."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "rb") as file:
        with suppress(BlockingIOError):
            flock(file, LOCK_SH | LOCK_NB)
            with suppress(OSError):
                path.unlink()
            return
        text = file.read()
    for start in range(0, len(text), LINE_BYTES):
        with suppress(ValueError):  # blank, or just being written
            note = _Note(*json.loads(text[start : start + LINE_BYTES].partition(b"\n")[0]))
            if note.granted or time.time() - note.noted < WAIT_SILENCE:
                yield note


def _in_place(place: FileLocks, note: _Note) -> bool:
    """Tell whether the lock file is still the one that was locked."""
    try:
        found = os.lstat(place.folder / note.name)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (note.device, note.inode)


def _row(note: _Note, *, others: int) -> LockRow:
    return LockRow(
        note.name,
        bool(note.granted),
        note.pid,
        shared=bool(note.shared),
        label=note.label,
        since=datetime.fromtimestamp(note.since, UTC),
        key=note.key or None,
        other_locks=others,
    )


def _in_memory(locks: MemoryLocks) -> Iterator[LockRow]:
    for name, shared, holders in locks.held():
        for holder in holders:
            yield LockRow(
                name,
                granted=True,
                session=id(holder),
                shared=shared,
                label=holder.label,
                since=holder.since,
                key=holder.key,
                other_locks=len(holders) - 1,
            )


def _file_system(path: Path) -> str:
    """Return the kind of file system that a file is on, '' where the kernel does not tell."""
    found = [(len(place.parts), kind) for place, kind in mounts() if path.is_relative_to(place)]
    return max(found, key=lambda one: one[0])[1] if found else ""
