"""Folders and files with a database's owner, group and mode."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

__all__ = ["draft_of", "filesystem_of", "make_file", "make_folder", "own"]


def make_folder(folder: Path, like: os.stat_result) -> None:
    """Make a folder, whole at once."""
    if folder.is_dir():
        return
    mode = stat.S_IMODE(like.st_mode)
    draft = draft_of(folder)
    draft.mkdir()
    try:
        own(draft, mode | (mode & 0o444) >> 2, like)  # whoever may read the database may enter
        draft.rename(folder)
    except OSError:
        draft.rmdir()
        if not folder.is_dir():  # not just another process that was faster
            raise


def make_file(path: Path, like: os.stat_result) -> None:
    """Make an empty file, never in place of one that is there."""
    draft = draft_of(path)
    draft.touch(exist_ok=False)
    try:
        own(draft, stat.S_IMODE(like.st_mode), like)
        os.link(draft, path, follow_symlinks=False)  # unlike rename, never over a file that is locked
    except FileExistsError:
        pass  # another process was faster
    finally:
        draft.unlink()


def draft_of(path: Path) -> Path:
    """Return where to make what is to appear at a path."""
    return path.with_name(f"{path.name}.{token_hex(8)}.draft")


def own(path: Path, mode: int, like: os.stat_result) -> None:
    """Give the database's mode and group, and as root its owner too, as SQLite does with its journal."""
    owner = like.st_uid if os.geteuid() == 0 else -1
    with suppress(PermissionError):  # not a member of that group: the mode's other bits decide
        os.chown(path, owner, like.st_gid)
    path.chmod(mode)


def filesystem_of(path: Path) -> str:
    """Return the kind of file system that a file is on, '' where the kernel does not tell."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mounts = [(Path(place.replace("\\040", " ")), kind) for _, place, kind, *_ in map(str.split, lines)]
    found = [(len(place.parts), kind) for place, kind in mounts if path.is_relative_to(place)]
    return max(found, key=lambda one: one[0])[1] if found else ""
