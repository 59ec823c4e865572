"""Who holds SQLite's locks, for people: beside the side files, never in them.

Each process writes what it holds, and what it waits for, into one file of its own in
`<database>.dlock-holders/`, a line of fixed length for each lock. Nothing depends on these files. An
exclusive `flock` on such a file tells that its process lives; the file of a dead one is deleted by
whoever finds it. (`flock` belongs to the open file, unlike the locks that SQLite takes, so looking
does no harm.)
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import stat
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .sqlite_paths import draft_of, make_folder, own
from .views import Sight

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Notes", "Owners", "sights"]

log = logging.getLogger("dlock")

SLOT = 768
BLANK = b" " * (SLOT - 1) + b"\n"
# Characters of a key that a line has place for, even if each takes four bytes.
KEY_CHARACTERS = 80
# Who waits tries every few milliseconds and says so this often; after a while of silence he has left.
WAIT_REFRESH, WAIT_SILENCE = 0.25, 1.5


class Owners:
    """This process's own file."""

    def __init__(self, folder: Path, database: Path) -> None:
        self._side_files = folder
        self._folder = holders_of(folder)
        self._database = database
        self._start()

    def _start(self) -> None:
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self._free: list[int] = []
        self._slots = 0

    def after_fork(self) -> None:
        """Leave the parent's file to him: his descriptor, open here, would make him look alive for ever."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._start()

    def write(self, slot: int | None, facts: dict[str, object]) -> int | None:
        """Write a line, a new one without a slot, and return its slot; None when it cannot be written."""
        line = json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace")
        try:
            with self._mutex:
                if self._descriptor is None:
                    self._descriptor = self._open()
                if slot is None:
                    slot = self._free.pop() if self._free else self._slots
                    self._slots = max(self._slots, slot + 1)
                os.pwrite(self._descriptor, line.ljust(SLOT - 1) + b"\n", slot * SLOT)
        except OSError as error:  # it is only for people: the lock itself is not concerned
            log.debug("cannot write who holds a lock in %s: %s", self._folder, error)
            return None
        return slot

    def erase(self, slot: int) -> None:
        """Blank a line for the next one."""
        with self._mutex, suppress(OSError):
            if self._descriptor is not None:
                os.pwrite(self._descriptor, BLANK, slot * SLOT)
                self._free.append(slot)

    def _open(self) -> int:
        like = self._database.stat()
        make_folder(self._folder, like)
        sights(self._side_files, None)  # deletes what the dead have left
        path = self._folder / secrets.token_hex(8)
        draft = draft_of(path)
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        own(draft, stat.S_IMODE(like.st_mode), like)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        draft.rename(path)
        return descriptor


class Notes:
    """What one session writes about itself."""

    def __init__(self, owners: Owners, label: str) -> None:
        self._owners = owners
        self._label = label
        self._slot: int | None = None
        self._tried: str | None = None
        self._since = self._written = 0.0

    def tried(self, name: str, *, granted: bool, shared: bool, key: str, files: list[tuple[str, int, int]]) -> None:
        """Write that the session holds a lock, by these files of which identity, or tries it again and again."""
        now = time.time()
        if granted or self._tried != name:
            self._since, self._written = now, 0.0
        waits = self._tried == name and not granted
        self._tried = None if granted else name
        if granted or (waits and now - self._written > WAIT_REFRESH):
            self._written = now
            self._slot = self._owners.write(
                self._slot,
                {
                    "name": name,
                    "waits": waits,
                    "shared": shared,
                    "key": key[:KEY_CHARACTERS],
                    "label": self._label,
                    "pid": os.getpid(),
                    "since": self._since,
                    "files": files,
                    "time": now,
                },
            )

    def erase(self) -> None:
        """Write that the session holds nothing."""
        slot, self._slot, self._tried = self._slot, None, None
        if slot is not None:
            self._owners.erase(slot)


def holders_of(side_files: Path) -> Path:
    """Return the folder of holders' files that belongs to a folder of side files."""
    return side_files.with_name(f"{side_files.name}-holders")


def sights(folder: Path, name: str | None) -> list[Sight]:
    """Read what all living processes wrote, and delete what the dead have left."""
    files = holders_of(folder)
    lines = [line for path in files.glob("*") if not path.suffix for line in _lines(path) if _holds(folder, line)]
    found = [line for line in lines if name in (None, line["name"])]
    holders = [line["name"] for line in lines if not line["waits"]]
    return [_sight(line, others=holders.count(line["name"]) - 1) for line in found]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "rb") as file:
        if _is_dead(descriptor):
            with suppress(OSError):
                path.unlink()
            return
        text = file.read()
    for line in text.splitlines():
        with suppress(ValueError):  # blank, or just being written
            facts = json.loads(line)
            if not facts["waits"] or time.time() - facts["time"] < WAIT_SILENCE:
                yield facts


def _holds(folder: Path, line: dict[str, Any]) -> bool:
    """Tell whether the side files are still those that were locked; never by opening one."""
    try:
        found = [(name, os.lstat(folder / name)) for name, *_ in line["files"]]
    except FileNotFoundError:
        return False
    return bool([[name, seen.st_dev, seen.st_ino] for name, seen in found] == line["files"])


def _is_dead(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sight(line: dict[str, Any], *, others: int) -> Sight:
    return Sight(
        line["name"],
        not line["waits"],
        line["pid"],
        shared=line["shared"],
        label=line["label"],
        since=datetime.fromtimestamp(line["since"], UTC),
        key=line["key"] or None,
        dies_with=others,
    )
