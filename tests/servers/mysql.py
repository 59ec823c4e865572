"""MySQL, from the folder that ``.ci/mysql-root`` fills, or a ``mysqld`` of the machine that is no MariaDB.

Debian's stable releases have no MySQL, and the one of Debian sid needs a newer libc than theirs. So its files lie in a
folder of their own, and that folder's dynamic loader runs it: this needs no chroot and no rights.
https://dev.mysql.com/doc/refman/en/data-directory-initialization.html
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import sandbox
from .base import Factory
from .mysql_family import MySQLFamilyServer, version_line, version_number
from .sandbox import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS = {
    "performance_schema": "ON",
    "mysqlx": "OFF",
    "disable_log_bin": "ON",
    "innodb_redo_log_capacity": "16M",
    "secure_file_priv": "NULL",  # Debian's default is a folder that only its package creates
}
MISSING = "MySQL not found: run .ci/mysql-root, which unpacks it into the cache folder"


@dataclass(frozen=True)
class Binaries:
    """MySQL's server, and what it must know about the place of its files."""

    command: list[str]
    version: str
    place: str
    settings: Mapping[str, str] = field(default_factory=dict)


class MySQL(MySQLFamilyServer):
    """A MySQL server of the tests' own."""

    kind = "mysql"
    # Without name resolution root@localhost, the only root there is at first, would not match a TCP connection.
    init_statements = (
        *MySQLFamilyServer.init_statements,
        "CREATE USER IF NOT EXISTS root@'127.0.0.1';",
        "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;",
    )

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        """Find the server; the settings are for its configuration file."""
        found = find_binaries()
        if not found:
            raise ServerError(MISSING)
        super().__init__(found.command, found.version, {**SETTINGS, **found.settings, **(settings or {})})

    @classmethod
    def find(cls) -> Factory[MySQL] | str:
        """Return how to make such a server, or the reason why that is impossible."""
        found = find_binaries()
        return Factory(cls, f"MySQL {found.version} in {found.place}") if found else MISSING

    def _install(self) -> None:
        self._run([*self._server, self._defaults, "--initialize-insecure"])


@functools.cache
def find_binaries() -> Binaries | None:
    """Find MySQL in the cache folder, else on the machine."""
    return _unpacked(_cache_folder() / "dlock" / "mysql-root") or _installed()


def _cache_folder() -> Path:
    named = os.environ.get("DLOCK_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else Path.home() / ".cache"


def _unpacked(root: Path) -> Binaries | None:
    server = root / "usr/sbin/mysqld"
    loader = next(root.glob("usr/lib*/ld-linux*.so.*"), None)
    libraries = next(root.glob("usr/lib/*-linux-gnu*"), None)
    if not (server.exists() and loader and libraries):
        return None
    command = [str(loader), "--library-path", str(libraries), str(server)]
    settings = {
        "basedir": str(root / "usr"),
        "plugin_dir": str(root / "usr/lib/mysql/plugin"),
        "lc_messages_dir": str(root / "usr/share/mysql"),
        "character_sets_dir": str(root / "usr/share/mysql/charsets"),
    }
    return Binaries(command, version_number(version_line(command)), str(root), settings)


def _installed() -> Binaries | None:
    server = sandbox.program("mysqld")
    line = version_line([str(server)]) if server else ""
    if not server or not line or "MariaDB" in line:
        return None
    return Binaries([str(server)], version_number(line), str(server.parent))
