"""Lock sessions are opened as Django would: whatever DATABASES can say holds for them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from django.db import connections
from django.test.utils import override_settings
from django.utils.connection import ConnectionDoesNotExist

from dlock_core import LockConnectionError, UnsupportedError
from dlock_core.adapters import holder_of
from dlock_django import get_engine, is_locked, lock
from dlock_django.management.commands.dlock import _verbs
from dlock_django.providers import make_engine, provider
from dlock_django.test import hold_lock
from tests.conftest import server
from tests.contract.witnesses import PostgreSQLWitness

from .databases import entry
from .inside import NAME


@pytest.fixture
def alias_like(postgresql_alias: str) -> Iterator[Any]:
    """What adds another alias of the PostgreSQL server to DATABASES."""
    added: list[str] = []

    def add(**changes: Any) -> str:
        alias = f"added{len(added)}-{id(added)}"
        connections.settings[alias] = connections.configure_settings(
            {"default": {}, alias: {**entry(server("postgresql"), NAME=NAME), **changes}}
        )[alias]
        added.append(alias)
        return alias

    yield add
    for alias in added:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


@pytest.mark.parametrize("use_tz", [True, False])
def test_times_have_their_zone_whatever_django_is_set_to(postgresql_alias: str, use_tz: bool) -> None:
    """Without, the admin's page and `manage.py dlock list` would end in a traceback."""
    with (
        override_settings(USE_TZ=use_tz, TIME_ZONE="Asia/Tokyo"),
        hold_lock("k", using=postgresql_alias),
        provider(postgresql_alias) as locks,
    ):
        [info] = locks.inspect("k")
        assert info.session_since is not None
        assert abs(datetime.now(UTC) - info.session_since) < timedelta(minutes=30)


@pytest.fixture
def asked(postgresql_alias: str) -> Iterator[PostgreSQLWitness]:
    """The PostgreSQL server."""
    found = PostgreSQLWitness(server("postgresql"))
    yield found
    found.close()


def holder(asked: PostgreSQLWitness, column: str) -> Any:
    """Return what the server says about the session that holds."""
    return asked.scalar(
        f"SELECT {column} FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory' AND granted"
    )


def test_django_s_pool_loses_nothing(alias_like: Any) -> None:
    """50 locks come and go beside a pool of two, and both of its places are still there."""
    alias = alias_like(OPTIONS={"pool": {"min_size": 0, "max_size": 2, "timeout": 5}})
    for _ in range(50):
        with lock("k", using=alias):
            pass
    wrappers = [connections[alias].copy() for _ in range(2)]
    for wrapper in wrappers:
        wrapper.ensure_connection()
    with lock("k", using=alias):
        pass
    pool: Any = getattr(connections[alias], "pool", None)
    assert pool.get_stats()["pool_size"] == 2
    for wrapper in wrappers:
        wrapper.close()
    pool.close()
    connections.settings[alias]["OPTIONS"] = {}
    with lock("k", using=alias):  # without a pool no session stays
        pass


def test_a_role_is_assumed_for_locks_too(alias_like: Any, asked: PostgreSQLWitness) -> None:
    """OPTIONS["assume_role"]: the session is the role's."""
    asked.connection.exec_driver_sql("DROP ROLE IF EXISTS clerk")
    asked.connection.exec_driver_sql("CREATE ROLE clerk NOLOGIN")
    alias = alias_like(OPTIONS={"assume_role": "clerk"})
    with get_engine(alias).connect() as connection:
        assert connection.exec_driver_sql("SELECT current_user").scalar_one() == "clerk"
    with lock("k", using=alias):
        assert is_locked("k", using=alias)
    asked.connection.exec_driver_sql("DROP ROLE clerk")


def test_a_service_file_is_read_for_locks_too(
    alias_like: Any, asked: PostgreSQLWitness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPTIONS["service"]: DATABASES names neither host nor database."""
    address = server("postgresql").address
    file = tmp_path / "services"
    file.write_text(
        f"[shop]\nhost={address.host}\nport={address.port}\nuser={address.username}\ndbname={NAME}\n"
        + (f"password={address.password}\n" if address.password else "")
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    alias = alias_like(NAME="", HOST="", PORT="", USER="", PASSWORD="", OPTIONS={"service": "shop"})
    with lock("k", using=alias):
        assert holder(asked, "datname") == NAME


def test_an_option_of_the_driver_holds_for_locks_too(alias_like: Any) -> None:
    """OPTIONS["sslmode"]: the test server has no TLS, so demanding it fails."""
    alias = alias_like(OPTIONS={"sslmode": "require"})
    with pytest.raises(LockConnectionError, match="SSL"), lock("k", using=alias):
        pytest.fail("connected without TLS")


def test_a_backend_that_fetches_a_token_is_asked_for_each_session(alias_like: Any) -> None:
    """A custom backend computes its password when Django connects, and when we do."""
    alias = alias_like(ENGINE="shop.token_backend")
    from shop.token_backend import base

    before = base.fetched
    for _ in range(2):
        with lock("k", using=alias):
            assert is_locked("k", using="postgresql")
    assert base.fetched >= before + 2


def test_receivers_of_connection_created_see_lock_sessions(alias_like: Any) -> None:
    """As they see Django's."""
    from django.db.backends.signals import connection_created

    seen: list[str] = []

    def look(connection: Any, **_: object) -> None:
        seen.append(connection.alias)

    alias = alias_like()
    connection_created.connect(look)
    try:
        with lock("k", using=alias):
            pass
    finally:
        connection_created.disconnect(look)
    assert alias in seen


def test_the_driver_is_the_one_that_django_imported(inside: Path) -> None:
    """Not the one that happens to be installed."""
    assert make_engine("default").dialect.driver == "pysqlite"
    if "postgresql" in connections.settings:
        assert make_engine("postgresql").dialect.driver == "psycopg"


@pytest.mark.parametrize(
    ("backend", "name", "driver"),
    [("django.db.backends.oracle", "oracle", "oracledb"), ("shop.microsoft_backend", "mssql", "pyodbc")],
)
def test_a_backend_without_a_server_here_has_an_engine(
    monkeypatch: pytest.MonkeyPatch, inside: Path, backend: str, name: str, driver: str
) -> None:
    """Whose connections are those that the backend opens."""
    pytest.importorskip(driver, reason=f"{driver} cannot be imported: pyodbc needs unixodbc", exc_type=ImportError)
    settings = connections.configure_settings({"default": {}, name: {"ENGINE": backend, "NAME": "nowhere:1/x"}})
    monkeypatch.setitem(connections.settings, name, settings[name])
    engine = make_engine(name)
    assert (engine.dialect.name, engine.dialect.driver) == (name, driver)
    refusal = RuntimeError("the backend's own")

    def refuse(_wrapper: object) -> None:
        raise refusal

    monkeypatch.setattr(type(connections[name]), "ensure_connection", refuse)
    with pytest.raises(RuntimeError) as caught:
        engine.raw_connection()
    assert caught.value is refusal
    del connections[name]


def test_a_backend_that_we_do_not_know_is_refused(alias_like: Any) -> None:
    """With what to set."""
    alias = alias_like(ENGINE="shop.strange_backend")
    with pytest.raises(UnsupportedError, match=r"'cockroachdb'.*DLOCK_ENGINE_FACTORY"), lock("k", using=alias):
        pytest.fail("locked")


def make_own_engine(alias: str) -> sa.Engine:
    """Make an engine of the project's own."""
    assert alias == "second"
    return sa.create_engine("sqlite://")


def test_a_factory_of_the_project_makes_the_engine(default_alias: str) -> None:
    """By its dotted path, read at use."""
    with override_settings(DLOCK_ENGINE_FACTORY=f"{__name__}.make_own_engine"), lock("k", using="second"):
        assert get_engine("second").url == sa.make_url("sqlite://")
    with lock("k", using="second"):  # and ours again
        assert is_locked("k", using="second")


def test_an_alias_that_is_none_is_django_s_error(default_alias: str) -> None:
    """Which names it."""
    with pytest.raises(ConnectionDoesNotExist, match="nowhere"), lock("k", using="nowhere"):
        pytest.fail("locked")


@pytest.fixture
def away(alias_like: Any) -> str:
    """A database whose server does not answer."""
    alias: str = alias_like(PORT="1")
    return alias


def test_a_database_that_cannot_be_asked_is_our_error_for_every_asker(away: str) -> None:
    """Django's wrapper, which opens the connection, has errors of its own."""
    with pytest.raises(LockConnectionError, match=r"cannot ask .* for its locks: .*refused"):
        is_locked("k", using=away)
    with pytest.raises(LockConnectionError, match=r"cannot open .*refused"), lock("k", using=away):
        pytest.fail("locked")
    with provider(away) as locks:
        assert holder_of(locks, "k") == ""


@pytest.mark.parametrize("verb", [["list"], ["show", "k"], ["terminate", "k"], ["check"]])
def test_the_commands_say_in_one_line_that_a_database_cannot_be_asked(away: str, verb: list[str]) -> None:
    """No traceback."""
    said = CliRunner().invoke(_verbs(), ["--database", away, *verb])
    assert said.exit_code in (1, 2)
    assert "refused" in said.output
    assert isinstance(said.exception, SystemExit)
