"""What a database user without rights sees: useful answers and clear refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from dlock_core import LockConnectionError, LockProvider, NotPermittedError
from dlock_core.inspection import postgresql
from tests.conftest import server
from tests.servers import MariaDB, Server, wait_until


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is closed at the end."""
    with ExitStack() as stack:
        yield stack


class Scene:
    """The owner of a lock, and a plain user that looks."""

    def __init__(self, stack: ExitStack, running: Server, driver: str, *make_user: str, user: str = "plain") -> None:
        admin = sa.create_engine(running.url(driver), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self.admin = stack.enter_context(admin.connect())
        for statement in make_user:
            self.admin.exec_driver_sql(statement)
        self.owner = stack.enter_context(LockProvider(running.url(driver), adapter="billing"))
        self.plain = stack.enter_context(LockProvider(running.url(driver, user=user)))


def postgresql_scene(stack: ExitStack) -> Scene:
    """PostgreSQL with a role that may only connect."""
    scene = Scene(
        stack, server("postgresql"), "postgresql+psycopg", "DROP ROLE IF EXISTS plain", "CREATE ROLE plain LOGIN"
    )
    stack.callback(scene.admin.exec_driver_sql, "DROP ROLE plain")
    stack.callback(scene.plain.close)
    return scene


def mysql_scene(stack: ExitStack, running: Server) -> Scene:
    """MySQL or MariaDB with a user that may only connect."""
    return Scene(
        stack,
        running,
        "mysql+pymysql",
        "DROP USER IF EXISTS plain@'%%', plain@'127.0.0.1'",
        "CREATE USER plain@'127.0.0.1'",
        f"GRANT SELECT ON {running.address.database}.* TO plain@'127.0.0.1'",
    )


def test_every_role_of_postgresql_sees_the_holder(stack: ExitStack) -> None:
    """The session's own words are for all to read."""
    scene = postgresql_scene(stack)
    with scene.owner.lock("nightly-report"):
        (info,) = scene.plain.inspect("nightly-report")
        assert (info.adapter, info.user, info.session_since) == ("billing", "postgres", None)


def test_a_role_of_postgresql_learns_what_it_lacks_to_end_a_session(stack: ExitStack) -> None:
    """And the lock stays."""
    scene = postgresql_scene(stack)
    with scene.owner.lock("nightly-report") as lock:
        (info,) = scene.plain.inspect("nightly-report")
        with pytest.raises(NotPermittedError, match="GRANT pg_signal_backend TO"):
            scene.plain.terminate(info)
        assert lock.held
        assert len(scene.plain.inspect("nightly-report")) == 1


def test_a_view_that_a_role_of_postgresql_may_not_read_is_named(stack: ExitStack) -> None:
    """As our own error, not the driver's."""
    scene = postgresql_scene(stack)
    scene.admin.exec_driver_sql("REVOKE SELECT ON pg_catalog.pg_locks FROM PUBLIC")
    stack.callback(scene.admin.exec_driver_sql, "GRANT SELECT ON pg_catalog.pg_locks TO PUBLIC")
    with pytest.raises(NotPermittedError, match="permission denied for view pg_locks"):
        scene.plain.inspect()


def test_an_error_that_a_server_answers_with_is_one_of_ours(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is about."""
    scene = postgresql_scene(stack)
    monkeypatch.setattr(postgresql, "LOOK", sa.text("SELECT nonsense, :name"))
    with pytest.raises(LockConnectionError, match=r"cannot ask .* for its locks: .*nonsense"):
        scene.owner.inspect()


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_a_user_without_rights_sees_the_holder_of_a_key(stack: ExitStack, kind: str) -> None:
    """A user that can name a lock may ask for its holder."""
    scene = mysql_scene(stack, server(kind))
    with scene.owner.lock("nightly-report"):
        (info,) = scene.plain.inspect("nightly-report")
        assert (info.key, info.other_locks) == ("nightly-report", None)
        assert info.session == scene.admin.exec_driver_sql("SELECT IS_USED_LOCK('nightly-report')").scalar()
    assert scene.plain.inspect("nightly-report") == []


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_a_user_without_rights_learns_that_the_list_is_hidden(stack: ExitStack, kind: str) -> None:
    """Never an empty list; and what this process knows is in the error."""
    scene = mysql_scene(stack, server(kind))
    with scene.owner.lock("nightly-report"), scene.plain.lock("own"):
        with pytest.raises(
            NotPermittedError, match=r"GRANT SELECT ON performance_schema|metadata_lock_info"
        ) as refused:
            scene.plain.inspect()
        assert [info.key for info in refused.value.found] == ["own"]


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_a_user_without_rights_learns_what_it_lacks_to_end_a_session(stack: ExitStack, kind: str) -> None:
    """The lock stays."""
    scene = mysql_scene(stack, server(kind))
    with scene.owner.lock("nightly-report") as lock:
        (info,) = scene.plain.inspect("nightly-report")
        with pytest.raises(NotPermittedError, match="CONNECTION_ADMIN"):
            scene.plain.terminate(info, whole_session=True)
        assert lock.held


@pytest.fixture(scope="module")
def bare_mariadb() -> Iterator[Server]:
    """MariaDB as it is installed: without the performance schema."""
    if isinstance(found := MariaDB.find(), str):
        pytest.skip(found)
    with MariaDB(settings={"performance_schema": "OFF"}) as running:
        yield running


def test_mariadb_as_installed_shows_waiters_and_what_to_install(stack: ExitStack, bare_mariadb: Server) -> None:
    """The process list shows those that wait, and with them which lock to ask for."""
    scene = mysql_scene(stack, bare_mariadb)
    other = stack.enter_context(LockProvider(bare_mariadb.url("mysql+pymysql")))
    with scene.owner.lock("nightly-report"):
        wanted = other.lock("nightly-report", timeout=30)
        waiting = other._coordinator.workers.submit(wanted.acquire)
        looking = stack.enter_context(LockProvider(bare_mariadb.url("mysql+pymysql")))

        def found() -> NotPermittedError:
            with pytest.raises(NotPermittedError, match="INSTALL SONAME 'metadata_lock_info'") as refused:
                looking.inspect()
            return refused.value

        wait_until(lambda: bool(found().found), "the waiter to be seen", 10)
        (info,) = found().found
        assert (info.key, len(info.waiters)) == ("nightly-report", 1)
    assert waiting.result(10)
    wanted.release()


def test_mariadb_with_its_plugin_shows_all_holders(stack: ExitStack, bare_mariadb: Server) -> None:
    """It is shipped with the server."""
    scene = mysql_scene(stack, bare_mariadb)
    scene.admin.exec_driver_sql("INSTALL SONAME 'metadata_lock_info'")
    stack.callback(scene.admin.exec_driver_sql, "UNINSTALL SONAME 'metadata_lock_info'")
    looking = stack.enter_context(LockProvider(bare_mariadb.url("mysql+pymysql")))
    with scene.owner.lock("a"), scene.owner.lock("b"):
        assert {(info.key, info.other_locks, info.user) for info in looking.inspect()} == {
            ("a", 1, "root"),
            ("b", 1, "root"),
        }
        with pytest.raises(NotPermittedError, match="GRANT PROCESS") as refused:
            scene.plain.inspect()
        assert {info.key for info in refused.value.found} == {"a", "b"}
