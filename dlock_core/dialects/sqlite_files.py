"""The folder of lock files beside an SQLite database, and what processes write there about themselves.

Folder and files have the database's owner, group and mode, and appear with them: another user may open them at once.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import threading
import time
import weakref
from contextlib import suppress
from fcntl import LOCK_EX, flock
from io import FileIO
from math import inf
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from ..errors import LockConnectionError, NotPermittedError, UnsafeEnvironmentError

__all__ = ["LINE_BYTES", "NOTES", "FileLocks", "LockFile", "Notes", "mounts"]

log = logging.getLogger("dlock")

NOTES = ".notes"
# Of a line in a file of notes.
LINE_BYTES = 768

WAITER = ".waiter"
# How long a waiter's mark counts, in seconds; it touches it every hundredth.
MARK_SECONDS = 0.1

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
NOT_PLAIN = (errno.ELOOP, errno.EISDIR, errno.ENXIO)

# A forked child closes its copies of these files, which would keep the locks of a dead parent; no fork may come
# between the opening of a file and its entry here. Re-entrant, since a signal handler may fork.
_open_files: weakref.WeakSet[FileIO] = weakref.WeakSet()
_fork_guard = threading.RLock()


def _after_fork_in_child() -> None:
    for handle in list(_open_files):
        with suppress(OSError):
            handle.close()
    _fork_guard.release()


os.register_at_fork(
    before=_fork_guard.acquire, after_in_parent=_fork_guard.release, after_in_child=_after_fork_in_child
)


class LockFile(NamedTuple):
    """An open file of one key."""

    name: str
    path: str
    handle: FileIO
    device: int
    inode: int

    def in_place(self) -> bool:
        """Tell whether its path still leads to it."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return found.st_ino == self.inode and found.st_dev == self.device

    def close(self) -> None:
        _close(self.handle)


class Waiter(NamedTuple):
    """What waits for a key, since when by the clock."""

    since: float
    shared: bool


NO_WAITER = Waiter(inf, shared=False)


class FileLocks:
    """The folder of lock files beside one database."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.folder = database.with_name(f"{database.name}.dlock")
        self.notes = Notes(self)

    def open(self, name: str) -> LockFile:
        """Open the file of a name, made when it is new.

        Raises:
            UnsafeEnvironmentError: This user cannot write there, or something else is in its place.
            LockConnectionError: There is no space, or no file descriptor, for it.
        """
        path = self.folder / name
        try:
            if self.folder.is_symlink():
                raise UnsafeEnvironmentError(f"{self.folder} is a symbolic link; remove it: locks must have one place")
            while True:
                try:
                    handle = _opened(path)
                    break
                except FileNotFoundError:
                    self._make(path)
        except OSError as error:
            raise self._failure(path, error) from error
        found = os.fstat(handle.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            _close(handle)
            raise _planted(path)
        return LockFile(name, str(path), handle, found.st_dev, found.st_ino)

    def _make(self, path: Path) -> None:
        """Make an empty file, never in place of one that is there: it may be locked."""
        self.make_folder()
        draft = self.draft(path)
        try:
            os.link(draft, path, follow_symlinks=False)
        except FileExistsError:
            pass  # another process was faster
        finally:
            draft.unlink()

    def make_folder(self) -> None:
        """Make the folder, which appears with all its rights."""
        if self.folder.is_dir():
            return
        like = self.database.stat()
        mode = stat.S_IMODE(like.st_mode)
        draft = self.folder.with_name(f"{self.folder.name}.{token_hex(8)}.draft")
        draft.mkdir()
        try:
            _own(draft, mode | (mode & 0o444) >> 2, like)  # what may read the database may enter
            draft.rename(self.folder)
        except OSError:
            draft.rmdir()
            if not self.folder.is_dir():  # else another process was faster
                raise

    def draft(self, path: Path) -> Path:
        """Make an empty file with the database's owner, group and mode, which is to appear at a path."""
        draft = path.with_name(f"{path.name}.{token_hex(8)}.draft")
        draft.touch(exist_ok=False)
        try:
            like = self.database.stat()
            _own(draft, stat.S_IMODE(like.st_mode), like)
        except BaseException:
            draft.unlink()
            raise
        return draft

    def next_token(self, name: str) -> int:
        """Count the grants of a name in a file of its own, while holding it; what was counted is on disk."""
        path = self.folder / f"{name}.token"
        token = 1 + (int(path.read_text()) if path.exists() else 0)
        draft = self.draft(path)
        with draft.open("w") as file:
            file.write(str(token))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return token

    def mark(self, name: str, since: float, *, shared: bool) -> None:
        """Ask those that came later to let a waiter go first; a mark counts while it is touched again and again."""
        path = self.folder / f"{name}{WAITER}"
        first = self.waiter(name)
        try:
            if first.since == since:
                os.utime(path)
            elif first.since > since:
                draft = self.draft(path)
                draft.write_text(f"{since} {shared:d}")
                draft.replace(path)
        except OSError as error:  # then luck decides
            log.debug("cannot write what waits in %s: %s", self.folder, error)

    def unmark(self, name: str) -> None:
        """Wait no more; others that do say so at their next try."""
        with suppress(OSError):
            (self.folder / f"{name}{WAITER}").unlink()

    def waiter(self, name: str) -> Waiter:
        """Return what has waited the longest, of those that have waited for long."""
        path = f"{self.folder}/{name}{WAITER}"
        try:
            age = time.time() - os.lstat(path).st_mtime
            if abs(age) < MARK_SECONDS:
                since, shared = Path(path).read_text().split()
                return Waiter(float(since), shared == "1")
        except (OSError, ValueError):
            pass
        return NO_WAITER

    def break_lock(self, name: str) -> None:
        """Take a lock away: its file goes, and the holder finds at its next look that it lost it.

        Raises:
            NotPermittedError: This user may not delete in the folder.
        """
        path = self.folder / name
        try:
            path.unlink(missing_ok=True)
        except PermissionError as error:
            raise NotPermittedError(
                f"this user may not delete {path}: do it as the folder's owner, or end the process that holds it"
            ) from error

    def hazard(self) -> str:
        """Say why other users of this database may have their locks in another place; '' when that is not so."""
        others = "a program that opens it by another path, as in another container, has locks of its own. "
        if any(place == self.database for place, _ in mounts()):
            return f"{self.database} is mounted as a single file: {others}Mount its folder"
        if self.database.stat().st_nlink > 1:
            return f"{self.database} has hard links: {others}Let one be the file, and others symbolic links"
        return ""

    def _failure(self, path: Path, error: OSError) -> Exception:
        if error.errno in NO_DESCRIPTORS:
            return LockConnectionError(
                f"cannot open {path}: {error.strerror}. Each lock held on SQLite needs an open file: see `ulimit -n`"
            )
        if error.errno in NO_SPACE:
            return LockConnectionError(
                f"cannot make {path}: {error.strerror}. SQLite's locks are files there: free space, or inodes (`df -i`)"
            )
        if error.errno in NOT_PLAIN:
            return _planted(path)
        if os.path.lexists(path):
            return UnsafeEnvironmentError(
                f"the lock file {path} cannot be written by this user: {error.strerror}. "
                "Let every user of the database write to that folder and its files"
            )
        return UnsafeEnvironmentError(
            f"cannot make {path}: {error.strerror}. SQLite's locks are files there: "
            "let every user of the database write to that folder"
        )

    def after_fork(self) -> None:
        """Start notes of its own in a forked child."""
        self.notes.close(parent=True)
        self.notes = Notes(self)


class Notes:
    """What the sessions of one provider hold and wait for: a line for each, for people.

    No lock depends on them. The file is locked for as long as its provider lives, which marks off what a dead process
    has left.
    """

    def __init__(self, files: FileLocks) -> None:
        self._files = files
        self._mutex = threading.RLock()
        self._path: Path | None = None
        self._handle: FileIO | None = None
        self._closed = False
        self._lines = 0
        self._free: list[int] = []

    def write(self, line: int | None, text: str) -> int | None:
        """Write a line, a new one without a number, and return its number; None when that cannot be done."""
        try:
            with self._mutex:
                if self._closed:
                    return None
                if self._handle is None:
                    self._open()
                assert self._handle is not None
                if line is None:
                    line = self._free.pop() if self._free else self._lines
                    self._lines = max(self._lines, line + 1)
                os.pwrite(self._handle.fileno(), text.encode("utf-8", "replace") + b"\n", line * LINE_BYTES)
        except (OSError, ValueError) as error:
            log.debug("cannot write what holds a lock in %s: %s", self._files.folder, error)
            return None
        return line

    def free(self, line: int | None) -> None:
        """Let another session have a line."""
        if line is not None and self.write(line, "") is not None:
            self._free.append(line)

    def _open(self) -> None:
        path = self._files.folder / f"{token_hex(8)}{NOTES}"
        draft = self._files.draft(path)
        try:
            self._handle = _opened(draft)
            flock(self._handle, LOCK_EX)
            draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        self._path = path

    def close(self, *, parent: bool = False) -> None:
        """Remove the file; of the parent's in a forked child only the copy is closed."""
        if parent:
            self._mutex = threading.RLock()
        with self._mutex:
            self._closed = True
            if self._path is not None and not parent:
                with suppress(OSError):
                    self._path.unlink()
            if self._handle is not None:
                _close(self._handle)


def _opened(path: Path) -> FileIO:
    with _fork_guard:
        handle = FileIO(path, "r+", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW))
        _open_files.add(handle)
    return handle


def _close(handle: FileIO) -> None:
    with _fork_guard:  # of a file that is half closed, a child could not close its copy
        handle.close()


def _own(path: Path, mode: int, like: os.stat_result) -> None:
    """Give the database's mode and group, and as root its owner too, as SQLite does with its journal."""
    owner = like.st_uid if os.geteuid() == 0 else -1
    with suppress(PermissionError):  # not a member of that group: the mode's other bits decide
        os.chown(path, owner, like.st_gid)
    path.chmod(mode)


def _planted(path: Path) -> UnsafeEnvironmentError:
    return UnsafeEnvironmentError(
        f"{path} is not an empty file of ours (a link, or other data); remove it and find out what made it"
    )


_OCTAL = re.compile(r"\\([0-7]{3})")


def mounts() -> list[tuple[Path, str]]:
    """Return where what kind of file system is mounted, as far as the kernel tells; blanks are octal there."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = [line.split(" ") for line in lines]
    return [(Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), place)), kind) for _, place, kind, *_ in found]
