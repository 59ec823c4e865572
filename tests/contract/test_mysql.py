"""What MySQL and MariaDB alone can be asked, or do to us."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import LockConnectionError
from dlock_core.dialects.mysql import MAX_SECONDS, WAIT_ON_MYSQL
from tests.pace import promptly

from .house import House, until
from .witnesses import MySQLWitness

pytestmark = pytest.mark.rows(lambda row: row.server in ("mysql", "mariadb"))


class StatementLog:
    """The server's own log of statements."""

    def __init__(self, mysql: MySQLWitness) -> None:
        self._mysql = mysql

    def forget(self) -> None:
        """Start anew."""
        self._mysql.connection.exec_driver_sql("TRUNCATE TABLE mysql.general_log")

    def asked(self) -> int:
        """Return how often others asked for a lock."""
        found: int = self._mysql.scalar(
            "SELECT count(*) FROM mysql.general_log WHERE thread_id <> CONNECTION_ID() AND argument LIKE '%GET_LOCK%'"
        )
        return found


@pytest.fixture
def log(mysql: MySQLWitness, set_global: Callable[[str, Any], None]) -> StatementLog:
    """The log, turned on."""
    set_global("log_output", "TABLE")
    set_global("general_log", 1)
    return StatementLog(mysql)


@pytest.mark.parametrize("timeout", [0.25, 1.4, None])
def test_a_wait_is_one_statement_and_as_long_as_it_should_be(
    house: House, mysql: MySQLWitness, log: StatementLog, timeout: float | None
) -> None:
    """We do not poll, not even for the fraction of a second that MySQL's GET_LOCK does not know."""
    holder, waiter = house.stranger(), house.person()
    assert holder.acquire("k")
    assert waiter.acquire("warm")
    waiter.release()
    log.forget()
    started = time.monotonic()
    wait = waiter.begin("k", timeout=timeout)
    if timeout is None:
        until(lambda: mysql.waiters() == 1)
        until(lambda: time.monotonic() > started + 1)
        holder.release()
    assert wait.result(5) == (timeout is None)
    waited = time.monotonic() - started
    assert log.asked() == 2, "a try and a wait"
    if timeout is not None:
        assert timeout <= waited < timeout + 1
    (waiter if timeout is None else holder).release()


def test_a_wait_without_limit_outlasts_the_longest_limit_of_a_statement(
    house: House, mysql: MySQLWitness, log: StatementLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 49 days, shortened here, it asks again."""
    monkeypatch.setattr("dlock_core.dialects.mysql.MAX_SECONDS", 0.1)
    holder, waiter = house.stranger(), house.person()
    assert holder.acquire("k")
    log.forget()
    wait = waiter.begin("k")
    until(lambda: log.asked() >= 5)
    assert not wait.done()
    holder.release()
    assert wait.result(5)
    waiter.release()


@pytest.mark.rows(lambda row: row.server == "mysql" and row.api == "sync")
def test_the_longest_limit_is_one_that_the_server_knows(mysql: MySQLWitness) -> None:
    """A hint that MySQL cannot read is a mere warning, and no limit."""
    values = {"name": "k", "milliseconds": MAX_SECONDS * 1000, "seconds": MAX_SECONDS + 1}
    assert mysql.connection.execute(WAIT_ON_MYSQL, values).scalar_one() == 1
    assert mysql.all("SHOW WARNINGS") == []
    assert mysql.scalar("SELECT RELEASE_LOCK('k')") == 1


LOOKALIKES: list[str | bytes] = [
    *("k", "K", "k ", " k", "k\0", "k\0a", "k\t", "k\\", "k'", 'k"', "k%s", "k:name", "k~"),
    *("e", "é", "É", "e\u0301", "ss", "ß", "i", "İ", "ключ", "КЛЮЧ", "\u03c3", "\u03c2", "1", "\uff11", "🔒", "🔑"),
    *(b"\xff", b"\xfe", "x" * 64, "x" * 65, "x" * 64 + "y"),
]


@pytest.mark.parametrize("sql_mode", ["", "NO_BACKSLASH_ESCAPES,ANSI_QUOTES"])
def test_keys_that_look_alike_are_different_locks(
    house: House, mysql: MySQLWitness, set_global: Callable[[str, Any], None], sql_mode: str
) -> None:
    """Case, accent, blank, NUL and emoji: neither server may take one for the other."""
    set_global("sql_mode", sql_mode)
    people, stranger = [house.person() for _ in LOOKALIKES], house.stranger()
    for person, key in zip(people, LOOKALIKES, strict=True):
        assert person.acquire(key, timeout=0), key
    names = {name for (name,) in mysql.all(f"SELECT object_name {mysql.LOCKS}", status="GRANTED")}
    assert names == {person.locks[0].actual_key for person in people}
    assert not any(stranger.acquire(key, timeout=0) for key in LOOKALIKES)
    for person in people:
        person.release()


@pytest.mark.parametrize("charset", ["latin1", "gbk", "utf8mb4"])
def test_a_key_is_one_lock_in_every_character_set(house: House, charset: str) -> None:
    """MariaDB compares the bytes that come over the wire."""
    keys = ["é", "plain", "a\\b"]
    holder = house.stranger()
    house.url += f"?charset={charset}"
    other = house.stranger()
    for key in keys:
        assert holder.acquire(key, timeout=0)
        assert not other.acquire(key, timeout=0)
        holder.release()


def _limits(kind: str) -> dict[str, Any]:
    """Return limits of one second and less for idle and for running sessions."""
    if kind == "mariadb":
        idle = dict.fromkeys(["idle_transaction_timeout", "idle_readonly_transaction_timeout"], 1)
        return {"wait_timeout": 1, "max_statement_time": 0.1, **idle}
    return {"wait_timeout": 1, "max_execution_time": 100}


def test_limits_of_the_server_do_not_disturb_a_lock(
    house: House, mysql: MySQLWitness, set_global: Callable[[str, Any], None]
) -> None:
    """A bystander's session ends by them; holder and waiter go on."""
    assert house.server is not None
    for name, value in _limits(house.server.kind).items():
        set_global(name, value)
    holder, waiter = house.person(), house.stranger()
    assert holder.acquire("k")
    wait = waiter.begin("k")
    until(lambda: mysql.waiters() == 1)
    engine = sa.create_engine(house.server.url("mysql+pymysql"), poolclass=sa.NullPool)
    with engine.connect() as bystander:
        number = bystander.connection.driver_connection.thread_id()  # type: ignore[union-attr]
        alive = "SELECT count(*) FROM performance_schema.threads WHERE processlist_id = :number"
        until(lambda: mysql.scalar(alive, number=number) == 0)
    assert not wait.done()
    assert (mysql.holders(), mysql.waiters()) == (1, 1)
    holder.release()
    assert wait.result(5)
    waiter.release()


def test_a_holder_has_no_transaction_open(house: House, mysql: MySQLWitness) -> None:
    """A held lock holds back no purge, and shows as a sleeping session."""
    holder = house.person()
    assert holder.acquire("k")
    assert mysql.scalar("SELECT count(*) FROM information_schema.innodb_trx") == 0
    assert mysql.all(f"SELECT processlist_command {mysql.LOCKS}", status="GRANTED") == [("Sleep",)]
    holder.release()


def test_a_killed_wait_is_an_error_and_leaves_nothing(house: House, mysql: MySQLWitness) -> None:
    """MySQL says so, MariaDB answers NULL: both are the same error of ours, which names the key."""
    holder, waiter = house.stranger(), house.person()
    assert holder.acquire("orders")
    wait = waiter.begin("orders", timeout=20)
    until(lambda: mysql.waiters() == 1)
    mysql.cancel_waiters()
    with pytest.raises(LockConnectionError, match=r"'orders'.*killed"):
        wait.result(5)
    until(lambda: mysql.waiters() == 0)
    holder.release()
    assert waiter.acquire("orders", timeout=0)
    waiter.release()


@pytest.mark.rows(lambda row: row.server in ("mysql", "mariadb") and row.api != "sync")
def test_a_cancelled_waiter_holds_up_no_other(house: House, mysql: MySQLWitness) -> None:
    """The server looks for its client once a second, but never lets a dead one keep the lock."""
    holder, first, second = house.stranger(), house.person(), house.stranger()
    assert holder.acquire("k")
    first.begin("k")
    until(lambda: mysql.waiters() == 1)
    wait = second.begin("k", timeout=20)
    until(lambda: mysql.waiters() == 2)
    first.task.cancel()  # type: ignore[attr-defined]
    until(first.task.done)  # type: ignore[attr-defined]
    holder.release()
    started = time.monotonic()
    assert wait.result(5)
    assert promptly(time.monotonic() - started, 0.5)
    second.release()
