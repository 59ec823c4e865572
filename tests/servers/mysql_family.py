"""What MariaDB and MySQL have in common when they serve tests."""

from __future__ import annotations

import os
import re
import subprocess
from abc import abstractmethod
from typing import TYPE_CHECKING

import sqlalchemy as sa

from .private import DATABASE, PrivateServer

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS = {
    "bind_address": "127.0.0.1",
    "skip_name_resolve": "ON",
    "max_connections": "500",
    "innodb_buffer_pool_size": "32M",
    # What was committed must survive SIGKILL, though not a power cut: written at each commit, never flushed.
    "innodb_flush_log_at_trx_commit": "2",
    "loose_innodb_flush_method": "nosync",
}


class MySQLFamilyServer(PrivateServer):
    """A server configured by one file of its own, with a root that needs no password."""

    # Statements for each start, one a line: the server's own way to run some before it listens.
    init_statements: tuple[str, ...] = (f"CREATE DATABASE IF NOT EXISTS {DATABASE};",)

    def __init__(self, command: list[str], version: str, settings: Mapping[str, str]) -> None:
        """Take the command that runs the server, its version, and settings for its configuration file."""
        super().__init__(sa.URL.create("mysql+pymysql", "root"), SETTINGS | dict(settings))
        self._server = command
        self._version = version

    @property
    def version(self) -> str:
        return self._version

    @abstractmethod
    def _install(self) -> None:
        """Create the system tables."""

    @property
    def _defaults(self) -> str:
        """Return the option, always to be the first, that shuts out the machine's configuration."""
        return f"--defaults-file={self.folder / 'server.cnf'}"

    def _create(self) -> None:
        temporary = self.folder / "tmp"
        self._make_own_folder(temporary)
        (self.folder / "init.sql").write_text("\n".join([*self.init_statements, ""]))
        places = {
            "datadir": str(self.data),
            "tmpdir": str(temporary),
            "socket": str(self.folder / "socket"),
            "pid_file": str(self.folder / "pid"),
            "port": str(self.port),
        }
        if os.geteuid() == 0:
            places["user"] = "root"  # both refuse root unless it is asked for
        lines = [f"{name}={value}" for name, value in (places | dict(self.settings)).items()]
        (self.folder / "server.cnf").write_text("\n".join(["[mysqld]", *lines, ""]))
        self._install()

    def _command(self) -> list[str]:
        return [*self._server, self._defaults, f"--init-file={self.folder / 'init.sql'}"]


def version_line(command: list[str]) -> str:
    """Return what a server says about its version, empty if it cannot be run."""
    try:
        return subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def version_number(line: str) -> str:
    """Return the version in a line such as ``mariadbd  Ver 10.11.14-MariaDB-0+deb12u2 for debian-linux-gnu``."""
    match = re.search(r"Ver (\d+(\.\d+)+)", line)
    return match[1] if match else ""
