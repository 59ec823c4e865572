"""The open sessions: lent to one at a time, within a limit, and none lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from dlock_core import LockConnectionError
from dlock_core.dialects.base import Session
from dlock_core.sessions.pool import KEEP_IDLE, SessionPool

from .fake_server import FakeServer, FakeSession, until

LIMIT = 3


class Shop:
    """A pool, and all that it reported."""

    def __init__(self) -> None:
        self.server = FakeServer()
        self.lost: list[Session] = []
        self.everything: set[Session] = set()
        self.pool = SessionPool(self.open, self.lost.append, self.everything, LIMIT)

    def open(self, seconds: float = 1) -> Session:
        return cast("Session", self.server.open())

    def take(self, *, within_limit: bool = True) -> Any:
        return self.pool.take(1, within_limit=within_limit)


@pytest.fixture
def shop() -> Shop:
    """An empty pool."""
    return Shop()


def test_a_session_is_opened_when_none_is_idle(shop: Shop) -> None:
    """It belongs to the pool, and to all of the provider."""
    first, second = shop.take(), shop.take()
    assert shop.server.sessions == [first, second]
    assert first in shop.pool
    assert shop.everything == {first, second}


def test_one_that_was_given_back_is_lent_again(shop: Shop) -> None:
    """To one borrower, not to two."""
    session = shop.take()
    shop.pool.give(session)
    assert shop.take() is session
    assert shop.take() is not session


def test_there_are_no_more_than_the_limit(shop: Shop) -> None:
    """An asker within the limit gets none then; one that must have a session gets it."""
    taken = [shop.take() for _ in range(LIMIT)]
    assert shop.take() is None
    assert shop.take(within_limit=False) is not None
    shop.pool.end(taken[0])
    assert shop.take() is None
    shop.pool.give(taken[1])
    assert shop.take() is taken[1]


def test_an_ended_session_makes_room(shop: Shop) -> None:
    """And is not lent any more."""
    taken = [shop.take() for _ in range(LIMIT)]
    shop.pool.end(taken[0])
    assert taken[0] not in shop.pool
    assert shop.everything == set(taken[1:])
    assert shop.take() not in taken


def test_sessions_that_are_being_opened_count(shop: Shop) -> None:
    """Opening takes a while, and many may ask meanwhile."""
    go_on = threading.Event()
    opened = shop.pool._open

    def slowly(seconds: float) -> Session:
        go_on.wait(10)
        return opened(seconds)

    shop.pool._open = slowly
    with ThreadPoolExecutor(LIMIT) as pool:
        taken = [pool.submit(shop.take) for _ in range(LIMIT)]
        until(lambda: shop.pool._opening == LIMIT)
        assert shop.take() is None
        go_on.set()
        assert None not in [future.result(10) for future in taken]
    assert len(shop.server.sessions) == LIMIT


def test_one_that_could_not_be_opened_does_not_count(shop: Shop) -> None:
    """The error passes through, and the next may try."""
    opened = shop.pool._open

    def refuse(seconds: float) -> Session:
        raise LockConnectionError("no")

    shop.pool._open = refuse
    for _ in range(LIMIT + 1):
        with pytest.raises(LockConnectionError):
            shop.take()
    shop.pool._open = opened
    assert None not in [shop.take() for _ in range(LIMIT)]


def test_only_a_few_idle_sessions_are_kept(shop: Shop) -> None:
    """A burst of waits must not leave its sessions at the server."""
    taken = [shop.take() for _ in range(LIMIT)]
    for session in taken:
        shop.pool.give(session)
    assert [session.ended for session in taken] == [False] * KEEP_IDLE + [True] * (LIMIT - KEEP_IDLE)
    assert shop.everything == set(taken[:KEEP_IDLE])


def test_the_end_of_a_session_is_reported(shop: Shop) -> None:
    """After it has ended: one that hears of it may go to the server at once."""
    session = shop.take()
    seen = []
    shop.pool._lost = lambda ended: seen.append((ended, cast("FakeSession", ended).ended))
    shop.pool.end(session)
    assert seen == [(session, True)]


def test_one_that_was_ended_meanwhile_is_not_kept(shop: Shop) -> None:
    """Its borrower gives it back without knowing."""
    session = shop.take()
    shop.pool.end(session)
    shop.pool.give(session)
    assert shop.take() is not session


def test_a_session_opened_for_one_that_left_is_kept_for_others(shop: Shop) -> None:
    """It was worth opening."""
    session = shop.open()
    shop.pool.keep(session)
    assert session in shop.everything
    assert shop.take() is session


def test_a_closed_stock_has_ended_all(shop: Shop) -> None:
    """The lent and the idle, and one that may hold a lock there is lost."""
    lent, idle = shop.take(), shop.take()
    shop.pool.give(idle)
    shop.pool.end_all()
    assert (lent.ended, idle.ended) == (True, True)
    assert set(shop.lost) == {lent, idle}
    assert lent not in shop.pool
    assert shop.everything == set()
    shop.pool.give(lent)
    assert lent not in shop.everything


def test_a_closed_stock_opens_no_session_that_lives(shop: Shop) -> None:
    """Neither for a new request, nor for one that was on its way."""
    shop.pool.end_all()
    with pytest.raises(LockConnectionError, match="was closed"):
        shop.take()
    assert shop.server.sessions == []
    late = shop.server.open()
    shop.pool.keep(cast("Session", late))
    assert late.ended
    assert shop.everything == set()


def test_a_parked_stock_leaves_the_parent_s_sessions_to_the_parent(shop: Shop) -> None:
    """In a forked child nothing is ended, even if the mutex was taken in the moment of the fork."""
    lent, idle = shop.take(), shop.take()
    shop.pool.give(idle)
    shop.pool._mutex.acquire()
    shop.pool.park_all()
    assert [(s.parked, s.ended) for s in (lent, idle)] == [(True, False), (True, False)]
    assert shop.everything == set()
