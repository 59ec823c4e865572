"""Single sessions of MySQL and MariaDB, below the providers: deadlocks, own locks, and servers to refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pymysql
import pytest
import sqlalchemy as sa
from sqlalchemy.util import greenlet_spawn

from dlock_core import DeadlockError, LockProvider, UnsafeEnvironmentError
from dlock_core.dialects.mysql import MySQL as Locks
from dlock_core.sessions.pool import open_session
from dlock_core.sessions.session import SqlSession
from tests.conftest import server
from tests.servers import MariaDB, MySQL, Server
from tests.servers.sandbox import free_port

from .house import House, until
from .persons import ThreadPerson
from .witnesses import MySQLWitness

GALERA = sorted(Path("/").glob("usr/lib*/galera*/libgalera_smm.so"))

pytestmark = pytest.mark.rows(lambda row: row.server in ("mysql", "mariadb"))


class Sessions:
    """Sessions of our own, used as the providers use them."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._locks = Locks()
        self._engine = house.engines[0]
        self._threads = [ThreadPerson(house.maker()) for _ in range(2)]

    def run(self, number: int, function: Callable[[], Any]) -> Future[Any]:
        """Run a function where sessions of this row are used."""
        if not self._engine.dialect.is_async:
            return self._threads[number].submit(function)
        return self._house.loop.begin(greenlet_spawn(function))

    def open(self) -> SqlSession:
        """Open a session."""
        private = self._engine.pool.recreate()
        opening = self.run(
            0, lambda: open_session(self._engine, private, self._locks, None, label="", allow_unsafe=False)
        )
        session: SqlSession = opening.result(5)
        return session

    def acquire(self, number: int, session: SqlSession, name: str, timeout: float | None) -> Future[bool]:
        """Let a session ask."""
        return self.run(number, lambda: session.acquire(name, shared=False, timeout=timeout, label=""))

    def release(self, session: SqlSession, name: str) -> bool:
        """Let a session unlock."""
        answer: bool = self.run(0, lambda: session.release(name, shared=False)).result(5)
        return answer

    def close(self) -> None:
        """Let the threads go."""
        for thread in self._threads:
            thread.leave()


@pytest.fixture
def sessions(house: House) -> Iterator[Sessions]:
    """Sessions beside those of the providers."""
    sessions = Sessions(house)
    yield sessions
    sessions.close()


def test_a_deadlock_of_two_sessions_is_reported_to_one(sessions: Sessions, mysql: MySQLWitness) -> None:
    """The server sees the cycle at once; the victim's end lets the other go on."""
    first, second = sessions.open(), sessions.open()
    assert sessions.acquire(0, first, "x", 0).result(5)
    assert sessions.acquire(0, second, "y", 0).result(5)
    wait = sessions.acquire(0, first, "y", 20)
    until(lambda: mysql.waiters() == 1)
    with pytest.raises(DeadlockError, match="victim"):
        sessions.acquire(1, second, "x", 20).result(5)
    assert not wait.done()
    sessions.run(1, second.end).result(5)
    assert wait.result(5)
    sessions.run(0, first.end).result(5)


def test_a_session_does_not_get_its_own_lock_twice(sessions: Sessions, mysql: MySQLWitness) -> None:
    """The server would count; here one release frees it, and a second one says that it was not ours."""
    session, other = sessions.open(), sessions.open()
    assert sessions.acquire(0, session, "k", 0).result(5)
    assert not sessions.acquire(0, session, "k", 0).result(5)
    for timeout in (None, 5):
        with pytest.raises(DeadlockError, match="itself"):
            sessions.acquire(0, session, "k", timeout).result(5)
    assert not sessions.release(other, "k")
    assert sessions.release(session, "k")
    assert mysql.holders() == 0
    assert not sessions.release(session, "k")
    for each in (session, other):
        sessions.run(0, each.end).result(5)


def test_a_read_only_server_is_refused(house: House, set_global: Callable[[str, Any], None]) -> None:
    """It is a replica: its locks are unknown on the primary."""
    set_global("read_only", 1)
    with pytest.raises(UnsafeEnvironmentError, match=r"'k'.*read_only=ON.*primary"):
        house.person().acquire("k", timeout=0)
    bold = house.person(house.new_provider(allow_unsafe=True))
    assert bold.acquire("k", timeout=0)
    bold.release()


class Splitting(pymysql.Connection):  # type: ignore[misc]
    """What a client sees of a proxy that sends SELECT to another server than all the rest."""

    def __init__(self, **address: Any) -> None:
        super().__init__(**address)
        self.replica: Any = pymysql.connect(**address)

    def query(self, sql: Any, unbuffered: bool = False) -> int:
        """Route by the first word, as the usual rule of such proxies does."""
        text = sql if isinstance(sql, str) else sql.decode()
        if not text.lstrip().upper().startswith("SELECT"):
            return int(super().query(sql, unbuffered))
        found: int = self.replica.query(sql, unbuffered)
        self._result = self.replica._result
        return found

    def close(self) -> None:
        """Close both."""
        self.replica.close()
        super().close()


@pytest.mark.rows(lambda row: row.name in ("mysql-pymysql", "mariadb-pymysql"))
def test_a_proxy_that_splits_reads_from_writes_is_refused(house: House) -> None:
    """GET_LOCK is a SELECT, so each client's locks would be on the replica that it happens to get."""
    assert house.server is not None
    address = house.server.address
    where = {"host": address.host, "port": address.port, "user": address.username, "password": address.password or ""}
    engine = sa.create_engine(house.url, creator=lambda: Splitting(**where, database=address.database))
    with LockProvider(engine) as locks, pytest.raises(UnsafeEnvironmentError, match=r"'k'.*proxy.*primary"):
        locks.lock("k").acquire(timeout=0)
    with LockProvider(engine, allow_unsafe=True) as bold, bold.lock("k", timeout=0):
        pass


def test_every_driver_tells_the_number_that_its_connection_was_promised(house: House, mysql: MySQLWitness) -> None:
    """Otherwise a proxy would go unnoticed."""
    person = house.person()
    assert person.acquire("k")
    (session,) = [one for one in house.provider._coordinator._sessions if isinstance(one, SqlSession)]
    assert session.driver_connection.thread_id() == mysql.scalar("SELECT IS_USED_LOCK('k')")
    person.release()


def _refusal(running: Server) -> str:
    """Return why a running server is refused, after checking that it is not when we insist."""
    with running, LockProvider(running.url("mysql+pymysql")) as locks:
        with pytest.raises(UnsafeEnvironmentError) as caught, locks.lock("k"):
            pytest.fail("entered")
        with LockProvider(running.url("mysql+pymysql"), allow_unsafe=True) as bold, bold.lock("k", timeout=0):
            return str(caught.value)


@pytest.mark.skipif(not GALERA, reason="Galera's library is not on this machine: install the package galera-4")
def test_a_galera_node_is_refused() -> None:
    """Its locks are its own."""
    server("mariadb")  # skips, or fails in CI
    options = f"gmcast.listen_addr=tcp://127.0.0.1:{free_port()}"
    settings = {"wsrep_on": "ON", "wsrep_provider": str(GALERA[0]), "wsrep_cluster_address": "gcomm://"}
    settings |= {"wsrep_provider_options": options, "wsrep_node_address": "127.0.0.1", "binlog_format": "ROW"}
    assert "allow_unsafe=True" in _refusal(MariaDB(settings=settings))


def test_a_member_of_a_replication_group_is_refused() -> None:
    """Its locks are its own."""
    server("mysql")  # skips
    settings = {"plugin_load_add": "group_replication.so", "loose_group_replication_start_on_boot": "OFF"}
    settings |= {"loose_group_replication_group_name": "8a94f357-aab4-11df-86ab-c80aa9420000"}
    assert "allow_unsafe=True" in _refusal(MySQL(settings=settings))
