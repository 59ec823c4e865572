"""What a server says that shuts down, before it hangs up: the session is gone, whatever the driver makes of it.

The servers are made to answer with their own errors, as they do when a shutdown meets a statement.
"""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from dlock_core import LockConnectionError, LockLostError
from dlock_core.dialects import postgresql
from tests.contract.house import House, until

POSTGRESQL = {"57P01": "admin_shutdown", "57P02": "crash_shutdown", "57P03": "cannot_connect_now"}
# Server shutdown in progress; connection was killed (MariaDB's).
MYSQL = (1053, 1927)


def _answer(row_server: str, code: str | int) -> sa.TextClause:
    if row_server == "postgresql":
        return sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'going down' USING ERRCODE = '{code}'; END $$")
    return sa.text(f"SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'going down'")


def _cases(house: House) -> list[sa.TextClause]:
    codes: tuple[str | int, ...] = tuple(POSTGRESQL) if house.row.server == "postgresql" else MYSQL
    return [_answer(house.row.server, code) for code in codes]


ON_ALL = pytest.mark.rows(lambda row: row.server in {"postgresql", "mysql", "mariadb"} and row.api != "alock")


def _let_answer(house: House, patch: pytest.MonkeyPatch, statement: str, answer: sa.TextClause) -> None:
    """Put a statement whose answer is known in the place of one of the dialect's."""
    if house.row.server == "postgresql":
        for name in (statement, f"{statement}_SHOWN"):
            texts = getattr(postgresql, name)  # one for each mode
            patch.setattr(postgresql, name, dict.fromkeys(texts, answer))
    else:
        patch.setattr(f"dlock_core.dialects.mysql.{statement}", answer)


@ON_ALL
def test_a_release_that_meets_a_shutdown_is_a_loss(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """D5: SQLAlchemy's own error came instead, which `except LockError` misses."""
    for answer in _cases(house):
        person = house.person()
        assert person.acquire("k", timeout=5)
        with monkeypatch.context() as patch:
            _let_answer(house, patch, "UNLOCK", answer)
            with pytest.raises(LockLostError, match="'k'"):
                person.release()
        until(lambda: house.witness.holders() == 0, "the session to end")


@ON_ALL
def test_an_acquisition_that_meets_a_shutdown_finds_no_connection(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D5: the same; nothing is held, and the next one gets a new session."""
    for answer in _cases(house):
        person = house.person(house.new_provider())
        with monkeypatch.context() as patch:
            _let_answer(house, patch, "TRY", answer)
            with pytest.raises(LockConnectionError, match=r"'k'.*going down"):
                person.acquire("k", timeout=0)
        assert person.acquire("k", timeout=0)
        person.release()


@pytest.mark.rows(lambda row: row.server in {"mysql", "mariadb"})
def test_a_wait_whose_session_is_killed_finds_no_connection(house: House) -> None:
    """By the real KILL CONNECTION, which a shutdown does to each session."""
    stranger, person = house.stranger(), house.person()
    assert stranger.acquire("k")
    wait = person.begin("k", timeout=20)
    until(lambda: house.witness.waiters() == 1, "the wait at the server")
    house.witness._kill("CONNECTION", house.witness.LOCKS, status="PENDING")  # type: ignore[attr-defined]
    with pytest.raises(LockConnectionError, match="'k'"):
        wait.result(10)
    stranger.release()


@pytest.mark.rows(lambda row: row.name in {"postgresql-asyncpg", "postgresql-asyncpg-own"})
def test_asyncpg_s_limit_for_statements_does_not_end_our_waits(house: House) -> None:
    """F3: the application's `command_timeout` ended them in LockConnectionError."""
    person = house.person(house.new_provider(engine_options={"connect_args": {"command_timeout": 0.5}}))
    stranger = house.stranger()
    assert stranger.acquire("k")
    wait = person.begin("k", timeout=10)
    until(lambda: house.witness.waiters() == 1, "the wait at the server")
    with pytest.raises(TimeoutError):
        wait.result(1.5)
    stranger.release()
    assert wait.result(10)
    person.release()
