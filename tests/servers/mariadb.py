"""MariaDB from the machine; on Debian the package mariadb-server (or -core) has it.

https://mariadb.com/kb/en/mariadb-install-db/
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import sandbox
from .base import Factory
from .mysql_family import MySQLFamilyServer, version_line, version_number
from .sandbox import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SETTINGS = {
    "innodb_log_file_size": "8M",
    # Off by default here; with it the server shows the holder of a named lock, and its waiters.
    "performance_schema": "ON",
    "performance_schema_instrument": "'wait/lock/metadata/sql/mdl=ON'",
}
MISSING = "MariaDB not found: install the package mariadb-server"


@dataclass(frozen=True)
class Binaries:
    """MariaDB's programs and their version."""

    server: Path
    installer: Path
    version: str


class MariaDB(MySQLFamilyServer):
    """A MariaDB server of the tests' own."""

    kind = "mariadb"

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        """Find the programs; the settings are for the configuration file."""
        found = find_binaries()
        if not found:
            raise ServerError(MISSING)
        self._installer = found.installer
        super().__init__([str(found.server)], found.version, SETTINGS | dict(settings or {}))

    @classmethod
    def find(cls) -> Factory[MariaDB] | str:
        """Return how to make such a server, or the reason why that is impossible."""
        found = find_binaries()
        return Factory(cls, f"MariaDB {found.version} in {found.server.parent}") if found else MISSING

    def _install(self) -> None:
        # "normal" makes a root without password, also for TCP from 127.0.0.1, in place of one for the Unix socket only.
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self._run([str(self._installer), self._defaults, *options])


@functools.cache
def find_binaries() -> Binaries | None:
    """Find MariaDB's server and the program that creates its system tables."""
    server, installer = sandbox.program("mariadbd"), sandbox.program("mariadb-install-db")
    if not server or not installer:
        return None
    return Binaries(server, installer, version_number(version_line([str(server)])))
