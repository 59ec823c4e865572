"""The watch: a session that the server ends is noticed at once, and nothing else is taken for that."""

from __future__ import annotations

import logging
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import LockConnectionError, LockLostError
from dlock_core.sessions.session import SqlSession
from dlock_core.sessions.watch import TICK
from tests.conftest import AVAILABLE, server
from tests.contract.house import AnyProvider, House, until
from tests.contract.persons import AnyLock
from tests.contract.rows import ROWS
from tests.contract.witnesses import MySQLWitness, PostgreSQLWitness
from tests.servers import MySQL, PostgreSQL, Server
from tests.servers.required import require

from .sessions import encrypted, statements

ROUNDS = 20
# What is promised is a twentieth of it; a busy machine must not make a test fail.
TOO_LATE = 1.0
QUIET_SECONDS = 1.5

ON_SERVER = pytest.mark.rows(lambda row: row.server in {"postgresql", "mysql", "mariadb"})
# Each family of servers, a blocking, an async and a threaded driver: enough where the driver has no part in it.
SOME = {
    "postgresql-psycopg",
    "postgresql-asyncpg",
    "postgresql-psycopg-alock",
    "mysql-pymysql",
    "mysql-asyncmy",
    "mariadb-mysqlclient",
    "mariadb-aiomysql",
    "postgresql-psycopg-own",
}
ON_SOME = pytest.mark.rows(lambda row: row.name in SOME)
ON_POSTGRESQL = pytest.mark.rows(lambda row: row.server == "postgresql")


def _loss(house: House, provider: AnyProvider, heard: list[tuple[float, AnyLock]]) -> float:
    """Have the server end the session under a lock, and return how long its holder believed in it."""
    person = house.person(provider)
    assert person.acquire("k", timeout=5)
    ended = time.monotonic()
    house.witness.break_lock()
    until(lambda: heard, "the loss to be reported")
    at, lock = heard.pop()
    assert lock is person.locks[0]
    assert lock.lost
    assert not lock.held
    with pytest.raises(LockLostError, match="'k'"):
        person.do(lock.release)
    return at - ended


def _median_of_losses(house: House, record: Callable[[str, object], None], **engine_options: Any) -> float:
    heard: list[tuple[float, AnyLock]] = []
    provider = house.new_provider(
        on_lost=lambda lock: heard.append((time.monotonic(), lock)), engine_options=engine_options
    )
    median = statistics.median(_loss(house, provider, heard) for _ in range(ROUNDS))
    record("milliseconds until lost", round(median * 1000, 1))
    print(f"lost after {median * 1000:.1f} ms, median of {ROUNDS}")
    return median


@ON_SERVER
def test_a_session_that_the_server_ends_is_lost_at_once(
    house: House, record_property: Callable[[str, object], None]
) -> None:
    """Nothing asks; the provider's on_lost is called with the lock, which knows already."""
    assert _median_of_losses(house, record_property) < TOO_LATE


@pytest.fixture(scope="module")
def tls_server() -> Iterator[Callable[[str], Server]]:
    """What gives a server that speaks TLS; MySQL always does."""
    started: dict[str, PostgreSQL] = {}

    def give(kind: str) -> Server:
        if kind != "postgresql":
            return server(kind)
        if not started:
            require(PostgreSQL.find())
            started[kind] = PostgreSQL(tls=True)
            started[kind].start()
        return started[kind]

    yield give
    for each in started.values():
        each.stop(final=True)


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


TLS: dict[str, dict[str, Any]] = {
    "postgresql-psycopg": {"sslmode": "require"},
    "postgresql-psycopg2": {"sslmode": "require"},
    "postgresql-psycopg-async": {"sslmode": "require"},
    "postgresql-asyncpg": {"ssl": "require"},
    "mysql-pymysql": {"ssl": {"check_hostname": False}},
    "mysql-mysqlclient": {"ssl": True},
    "mysql-aiomysql": {"ssl": _context()},
    "mysql-asyncmy": {"ssl": _context()},
}


@pytest.mark.parametrize("name", TLS)
def test_a_session_under_tls_is_lost_at_once(
    name: str, tls_server: Callable[[str], Server], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Nothing is read, so nothing need be deciphered."""
    row = next(row for row in ROWS if row.name == name)
    house = House(row, tls_server(row.server), tmp_path)
    options = {"connect_args": TLS[name]}
    person = house.person(house.new_provider(engine_options=options))
    assert person.acquire("secret")
    assert encrypted(house)
    person.release()
    assert _median_of_losses(house, record_property, **options) < TOO_LATE
    house.close()


@ON_SOME
def test_on_lost_of_the_lock_comes_first_and_errors_are_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Each is called once, with the lock; an error of the one does not keep the other from being called."""
    heard: list[tuple[str, AnyLock]] = []

    def fail(lock: AnyLock) -> None:
        heard.append(("lock", lock))
        raise ZeroDivisionError("in on_lost")

    provider = house.new_provider(on_lost=lambda lock: heard.append(("provider", lock)))
    person = house.person(provider)
    assert person.acquire("k", on_lost=fail)
    with caplog.at_level(logging.ERROR, "dlock"):
        house.witness.break_lock()
        until(lambda: len(heard) == 2, "both to be reported")
    lock = person.locks[0]
    assert heard == [("lock", lock), ("provider", lock)]
    assert [record.message for record in caplog.records] == [
        "lost the lock of key 'k': its session ended",
        "on_lost for key 'k' failed",
    ]
    with pytest.raises(LockLostError):
        person.do(lock.close)
    assert len(heard) == 2


@ON_SOME
def test_every_lock_of_a_lost_session_is_reported(house: House) -> None:
    """Ten locks on one session, or on one owner's: all ten are lost, and the other provider's is not."""
    heard: list[AnyLock] = []
    provider, stranger = house.new_provider(on_lost=heard.append), house.stranger()
    person = house.person(provider)
    for number in range(10):
        assert person.acquire(number)
    house.witness.break_lock()
    assert stranger.acquire("other")
    until(lambda: len(heard) == 10, "ten to be reported")
    assert set(heard) == set(person.locks)
    assert provider.held_locks() == []
    assert stranger.locks[0].held
    stranger.release()
    for number in range(10):
        assert person.acquire(number, timeout=5)
        person.release()


@ON_SOME
def test_a_session_that_ends_just_after_the_grant_gives_no_lock(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch was faster than the note of the grant: no loss would be reported, so the lock is asked for again."""
    person = house.person()
    assert person.acquire("warm")
    person.release()
    grants: list[SqlSession] = []
    acquire = SqlSession.acquire

    def acquire_and_end(session: SqlSession, *arguments: Any, **options: Any) -> bool:
        granted = acquire(session, *arguments, **options)
        if granted:
            grants.append(session)
        if len(grants) == 1:
            house.provider._coordinator._dead(session)
        return granted

    monkeypatch.setattr(SqlSession, "acquire", acquire_and_end)
    assert person.acquire("k", timeout=5)
    assert len(grants) == 2
    assert not grants[1].ended
    assert house.witness.holders() == 1
    person.release()


@ON_SOME
def test_no_statement_is_sent_while_a_lock_is_held(house: House) -> None:
    """The server has heard nothing since the grant, and yet a loss would be noticed.

    On PostgreSQL a statement names a lock that is held for a second, unless keys are not to be shown.
    """
    person = house.person(house.new_provider(show_keys=False))
    assert person.acquire("k")
    before = statements(house)
    assert before
    time.sleep(QUIET_SECONDS)  # what is tested is that nothing happens
    assert statements(house) == before
    assert person.locks[0].held
    person.release()


def _listen(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("LISTEN chatter")
    cursor.close()
    connection.commit()


@ON_POSTGRESQL
def test_what_the_server_says_of_itself_is_no_loss(house: House) -> None:
    """NOTIFY, a changed setting that is reported to all sessions, NOTICE, and statements beside it."""
    witness = house.witness
    assert isinstance(witness, PostgreSQLWitness)
    heard: list[AnyLock] = []
    provider = house.new_provider(on_lost=heard.append)
    sa.event.listen(house.engines[-1], "connect", _listen)
    person = house.person(provider)
    assert person.acquire("k")
    try:
        for number in range(20):
            witness.connection.exec_driver_sql(f"NOTIFY chatter, '{number}'")
            witness.connection.exec_driver_sql(f"ALTER SYSTEM SET TimeZone = 'Etc/GMT-{number % 12}'")
            witness.scalar("SELECT pg_reload_conf()")
            assert person.acquire(("beside", number))
            person.release()
        time.sleep(TICK)  # the watch's own round must find nothing either
    finally:
        witness.connection.exec_driver_sql("ALTER SYSTEM RESET TimeZone")
        witness.scalar("SELECT pg_reload_conf()")
    assert heard == []
    assert person.locks[0].held
    person.release()


@ON_SOME
def test_traffic_and_a_heartbeat_are_no_loss(house: House) -> None:
    """A heartbeat each second among many statements: no loss is reported."""
    heard: list[AnyLock] = []
    provider = house.new_provider(on_lost=heard.append, heartbeat=1)
    person = house.person(provider)
    assert person.acquire("k")
    session = provider._coordinator.entries.held()[0].session
    assert session is not None
    for number in range(300):
        assert person.acquire(("beside", number))
        person.release()
    before = session.proof  # type: ignore[attr-defined]
    until(lambda: session.proof > before, "a heartbeat")  # type: ignore[attr-defined]
    assert heard == []
    assert person.locks[0].held
    person.release()


@ON_SOME
def test_a_session_whose_socket_is_out_of_reach_is_found_by_its_heartbeat(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers may hide their sockets, and not every platform tells of a hang-up."""
    monkeypatch.setattr("dlock_core.sessions.session.duplicate_socket", lambda *_: None)
    heard: list[AnyLock] = []
    person = house.person(house.new_provider(on_lost=heard.append, heartbeat=1))
    assert person.acquire("k")
    house.witness.break_lock()
    until(lambda: heard == person.locks, "the heartbeat to miss its answer")
    with pytest.raises(LockLostError):
        person.do(person.locks[0].release)


def _watches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dlock-watch"]


@ON_SOME
def test_where_no_hang_up_can_be_seen_a_stirring_socket_is_asked_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a platform is played here. With the default heartbeat a loss took forty seconds to show."""
    monkeypatch.delattr("select.POLLRDHUP")
    monkeypatch.delattr("select.epoll")
    heard: list[AnyLock] = []
    person = house.person(house.new_provider(on_lost=heard.append))
    assert person.acquire("k")
    session: Any = person.locks[0]._ticket.session  # type: ignore[union-attr]
    if isinstance(house.witness, PostgreSQLWitness) and house.row.drivername.endswith("psycopg"):
        cursor = session._connection.cursor()
        cursor.execute("LISTEN chatter")
        cursor.close()
        asked = session.proof
        house.witness.connection.exec_driver_sql("NOTIFY chatter")
        until(lambda: session.proof > asked, "a question")
    assert heard == []
    assert person.locks[0].held
    house.witness.break_lock()
    ended = time.monotonic()
    until(lambda: heard == person.locks, "the loss to be reported")
    assert time.monotonic() - ended < 2 * TICK + TOO_LATE
    with pytest.raises(LockLostError):
        person.do(person.locks[0].release)


@ON_SOME
def test_the_watch_runs_only_while_sessions_are_open(house: House) -> None:
    """One thread for a provider, however many locks; none before its first session, nor soon after its last one."""
    for _ in range(2):
        provider = house.new_provider()
        person = house.person(provider)
        until(lambda: not _watches(), "the watch to end")
        assert person.acquire("a")
        assert person.acquire("b")
        assert len(_watches()) == 1
        person.release()
        person.release()
        house.close_provider(provider)
    until(lambda: not _watches(), "the watch to end")


@ON_SOME
def test_a_session_that_the_server_ends_while_it_is_idle_is_not_lent_again(house: House) -> None:
    """Nothing is reported, since nothing was lost; the next request need not find out."""
    heard: list[AnyLock] = []
    provider = house.new_provider(on_lost=heard.append)
    person = house.person(provider)
    assert person.acquire("k")
    session = provider._coordinator.entries.held()[0].session
    assert session is not None
    person.release()
    assert not session.ended
    house.witness.end_idle()
    until(lambda: session.ended, "the watch to end it")
    assert person.acquire("k", timeout=0)
    person.release()
    assert heard == []


@ON_SOME
def test_a_thread_that_cannot_be_started_leaves_nothing_unwatched(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4: the acquisition that met it says so, and the next one is watched again."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "dlock-watch":
            raise RuntimeError("can't start new thread")
        start(thread)

    person = house.person()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(LockConnectionError, match=r"'k'.*can't start new thread"):
            person.acquire("k")
    assert house.witness.holders() == 0
    assert person.acquire("k", timeout=5)
    house.witness.break_lock()
    until(lambda: person.locks[-1].lost, "the loss to be reported")


MANY = 1000


@pytest.fixture(scope="module")
def wide_server() -> Iterator[Server]:
    """A server that lets a thousand sessions in."""
    settings = {"max_connections": "1100"}
    if not isinstance(AVAILABLE["mysql"], str):
        with MySQL(settings=settings) as wide:
            yield wide
        return
    with PostgreSQL(settings=settings) as wide:
        yield wide


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:ResourceWarning:asyncio")
def test_a_thousand_watched_sessions_cost_one_idle_thread(
    wide_server: Server, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each is lost at once by itself."""
    name = "mysql-aiomysql" if wide_server.kind == "mysql" else "postgresql-asyncpg"
    house = House(next(row for row in ROWS if row.name == name), wide_server, tmp_path)
    heard: list[AnyLock] = []
    provider = house.new_provider(on_lost=heard.append, share_sessions=False, max_sessions=MANY)
    people = [house.person(provider) for _ in range(MANY)]
    for number, person in enumerate(people):
        assert person.acquire(number)
    assert house.witness.sessions() - house.sessions_before == MANY
    assert len(_watches()) == 1
    used = time.process_time()
    time.sleep(3 * TICK)  # what is measured is what idling costs
    used = (time.process_time() - used) / (3 * TICK)
    record_property("share of a core for a thousand idle sessions", round(used, 4))
    print(f"a thousand sessions: {used:.2%} of a core")
    assert used < 0.3
    people[7].do(people[7].locks[0].release)
    assert heard == []
    house.witness.break_lock()
    until(lambda: len(heard) == MANY - 1, "all to be reported")
    house.close()


@ON_SOME
def test_a_provider_closed_under_a_lock_tells_of_no_loss_at_the_server(house: House) -> None:
    """Closing is the user's own will; the lock says that it is lost, and the watch ends."""
    provider = house.new_provider()
    person = house.person(provider)
    assert person.acquire("k")
    house.close_provider(provider)
    assert person.locks[0].lost
    until(lambda: not _watches(), "the watch to end")


@pytest.mark.rows(lambda row: row.name == "mysql-pymysql")
def test_a_killed_statement_is_no_loss(house: House) -> None:
    """KILL QUERY on an idle session ends nothing."""
    person = house.person()
    assert person.acquire("k")
    witness = house.witness
    assert isinstance(witness, MySQLWitness)
    witness._kill("QUERY", witness.LOCKS, status="GRANTED")
    time.sleep(TICK)  # the watch's own round must find nothing either
    assert person.locks[0].held
    person.release()
