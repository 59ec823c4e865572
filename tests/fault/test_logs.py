"""Keys are anyone's text: in logs they stay one line, at the server they stay data."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import LockLostError, LockProvider, LockTimeoutError
from tests.contract.house import House, until

WICKED = "k\n2026-01-01 ERROR dlock: root logged in\r\x1b[2J\x00\u2028'; DROP TABLE users; -- %s %(name)s :name {0}"
sync_rows = pytest.mark.rows(
    lambda row: row.name in {"postgresql-psycopg2", "mysql-mysqlclient", "mariadb-pymysql", "sqlite-file"}
)


def traced(connection: Any, statements: list[str]) -> Any:
    """Let a driver's connection remember the statements it is given, without their parameters."""

    class Traced(type(connection.cursor())):  # type: ignore[misc]
        def execute(self, statement: str, *rest: Any, **options: Any) -> Any:
            statements.append(statement)
            return super().execute(statement, *rest, **options)

    setattr(connection, "cursorclass" if hasattr(connection, "cursorclass") else "cursor_factory", Traced)
    return connection


@sync_rows
def test_a_wicked_key_cannot_forge_a_line_of_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Nor one of an error: all of a lock's life is logged, and each record is one line without controls."""
    caplog.set_level(logging.DEBUG, "dlock")
    holder, other = house.stranger(), house.person()
    assert holder.acquire(WICKED)
    with pytest.raises(LockTimeoutError) as timeout:
        other.within(WICKED, lambda _: None, timeout=0.01)
    house.witness.break_lock()
    if house.row.is_server:
        until(lambda: holder.locks[0].lost)
    with pytest.raises(LockLostError) as lost:
        holder.release()
    texts = [record.getMessage() for record in caplog.records] + [str(timeout.value), str(lost.value)]
    assert any("acquired" in text for text in texts)
    assert any("lost" in text for text in texts)
    assert [text for text in texts if not text.isprintable()] == []
    assert all("logged in" not in text.partition("k\\n")[0] for text in texts)


@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg2", "mysql-mysqlclient", "mariadb-pymysql"})
def test_keys_reach_the_server_as_parameters_only(house: House) -> None:
    """Whatever a lock's life sends, as a driver sees it that traces its statements."""
    statements: list[str] = []
    plain = sa.create_engine(house.url)

    def creator() -> Any:
        arguments, options = plain.dialect.create_connect_args(plain.url)
        return traced(plain.dialect.connect(*arguments, **options), statements)

    engine = sa.create_engine(house.url, creator=creator)
    with LockProvider(engine) as locks:
        for key in (WICKED, "Plain-Key", ("a", WICKED, 7)):
            with locks.lock(key, fencing=True, timeout=5):
                assert not locks.lock(key).acquire(False)
            blocker = house.stranger()
            assert blocker.acquire(key)
            assert not locks.lock(key).acquire(timeout=0.05)
            blocker.release()
    engine.dispose()
    plain.dispose()
    assert sum("lock" in statement.lower() for statement in statements) > 10
    assert [one for one in statements if any(word in one for word in ("DROP", "logged in", "Plain", "plain"))] == []
