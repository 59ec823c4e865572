"""What a user sees of a database that cannot be reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import LockConnectionError, LockProvider

# Nothing listens there.
NOBODY = "127.0.0.1:1/app"
QUESTIONS: dict[str, Callable[[LockProvider], Any]] = {
    "acquire": lambda locks: locks.lock("k").acquire(timeout=1),
    "inspect": lambda locks: locks.inspect("k"),
}
every_question = pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)


@every_question
@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "mysql+pymysql"])
def test_a_server_that_is_away_is_one_error(driver: str, ask: Callable[[LockProvider], Any]) -> None:
    """Whatever is asked: it says where, and what the driver said, and has no password in it."""
    where = r"cannot .*@127\.0\.0\.1:1/app.*: .*refused"
    with (
        LockProvider(f"{driver}://ada:secret@{NOBODY}") as locks,
        pytest.raises(LockConnectionError, match=where) as caught,
    ):
        ask(locks)
    assert "secret" not in str(caught.value)
    assert "sqlalche.me" not in str(caught.value)


def _engine(error: Exception) -> sa.Engine:
    def creator() -> Any:
        raise error

    return sa.create_engine("postgresql+psycopg://", creator=creator)


@every_question
def test_what_a_creator_raises_is_the_same_error(ask: Callable[[LockProvider], Any]) -> None:
    """It may fetch a token first, say, or be a framework's."""
    engine = _engine(RuntimeError("no token today"))
    with LockProvider(engine) as locks, pytest.raises(LockConnectionError, match=r"cannot .*: no token today"):
        ask(locks)


@every_question
def test_what_a_creator_asserts_goes_through(ask: Callable[[LockProvider], Any]) -> None:
    """It is no failure of the database: Django's tests refuse so what they do not know."""
    engine = _engine(AssertionError("not in this test"))
    with LockProvider(engine) as locks, pytest.raises(AssertionError, match="not in this test"):
        ask(locks)
