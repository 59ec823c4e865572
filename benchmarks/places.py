"""The databases of a run: private servers of the tests' kind, or those that the environment names."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]
import sqlalchemy as sa

from tests.servers import MariaDB, MySQL, PostgreSQL, PrivateServer, available, guard

from .address import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Server

__all__ = ["KINDS", "Place", "missing_places", "open_places"]

KINDS = ("postgresql", "mariadb", "mysql", "sqlite")
DRIVERS = {
    "postgresql": ("psycopg", ("asyncpg", "psycopg")),
    "mariadb": ("pymysql", ("aiomysql", "asyncmy")),
    "mysql": ("pymysql", ("aiomysql",)),
    "sqlite": ("pysqlite", ()),
}
TITLES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "mysql": "MySQL", "sqlite": "SQLite"}
# Some contenders need a connection for each lock.
MAX_CONNECTIONS = {"max_connections": "1400"}
PRIVATE: dict[str, Callable[..., PrivateServer]] = {"postgresql": PostgreSQL, "mariadb": MariaDB, "mysql": MySQL}

CLIENT_PORTS = {
    "postgresql": "SELECT client_port FROM pg_stat_activity WHERE client_port > 0",
    "mysql": "SELECT SUBSTRING_INDEX(host, ':', -1) FROM information_schema.processlist WHERE host LIKE '%:%'",
}


class Place:
    """One database."""

    def __init__(self, kind: str, version: str, address: Address, server: Server | None) -> None:
        self.kind = kind
        self.title = f"{TITLES[kind]} {version}"
        self.address = address
        self.driver, self.async_drivers = DRIVERS[kind]
        self._server = server if isinstance(server, PrivateServer) else None
        self._observer = None if kind == "sqlite" else sa.create_engine(address.of(self.driver), pool_size=1)

    def client_ports(self) -> set[int]:
        """Return the port of each client that the server sees."""
        if self._observer is None:
            return set()
        with self._observer.connect() as connection:
            ports = CLIENT_PORTS["postgresql" if self.kind == "postgresql" else "mysql"]
            return {int(port) for port in connection.exec_driver_sql(ports.replace("%", "%%")).scalars()}

    def memory(self) -> int | None:
        """Return the bytes that the server's processes occupy, shared ones by parts; None for a stranger's server."""
        if self._server is None:
            return None
        return sum(_proportional_bytes(process.pid) for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        return [] if self._server is None else list(guard.processes_in(self._server.folder))

    @property
    def pinnable(self) -> bool:
        """Whether we may say where the server runs."""
        return self._server is not None and (os.cpu_count() or 1) > 1

    @contextmanager
    def pinned(self, *, apart: bool) -> Iterator[None]:
        """Keep client and server on CPUs of their own, or both on one: where they run weighs more than any lock."""
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) == 1:
            yield
            return
        os.sched_setaffinity(0, cpus[:1])
        self._pin_server(cpus[1:] if apart else cpus[:1])
        try:
            yield
        finally:
            os.sched_setaffinity(0, cpus)
            self._pin_server(cpus)

    def _pin_server(self, cpus: list[int]) -> None:
        for process in self._processes():
            with suppress(psutil.Error, OSError):
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, cpus)

    def close(self) -> None:
        """Leave the server."""
        if self._observer is not None:
            self._observer.dispose()


def _proportional_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def missing_places(kinds: tuple[str, ...]) -> dict[str, str]:
    """Tell which databases this machine lacks, and why."""
    return {kind: found for kind, found in available().items() if kind in kinds and isinstance(found, str)}


@contextmanager
def open_places(kinds: tuple[str, ...], redis: str | None, say: Callable[[str], None]) -> Iterator[list[Place]]:
    """Start the servers that there are; they end with us."""
    with ExitStack() as stack:
        places = []
        for kind in kinds:
            if kind not in missing_places(kinds):
                say(f"starting {TITLES[kind]}")
                places.append(_open(kind, redis, stack))
        yield places


def _open(kind: str, redis: str | None, stack: ExitStack) -> Place:
    run = f"dlock-bench:{os.getpid()}:"
    if kind == "sqlite":
        import sqlite3  # here, since only its version is wanted

        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dlock-bench-"))
        address = Address(kind, f"sqlite:///{folder}/database", redis, run)
        return Place(kind, sqlite3.sqlite_version, address, None)
    factory = available()[kind]
    assert not isinstance(factory, str)
    named = os.environ.get(f"DLOCK_TEST_{kind.upper()}_URL")
    server = stack.enter_context(factory() if named else PRIVATE[kind](settings=MAX_CONNECTIONS))
    place = Place(kind, server.version, Address(kind, server.url(server.address.drivername), redis, run), server)
    stack.callback(place.close)
    return place
