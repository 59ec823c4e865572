"""Opening a session ends in time, wherever the server or the network falls silent."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from dlock_core import LockConnectionError
from tests.contract.house import House, until
from tests.servers import Proxy

DRIVERS = ("psycopg", "psycopg2", "asyncpg", "pymysql", "mysqldb", "aiomysql", "asyncmy")
ON_EACH_DRIVER = pytest.mark.rows(
    lambda row: row.server in {"postgresql", "mariadb"} and row.drivername.endswith(DRIVERS) and row.share_sessions
)
TIMEOUT, PATIENCE = 0.5, 1.0
# A call ends after its timeout and the patience; what is more is a busy machine.
SLACK = 2.0
PIECES = range(9)
CROWD = 10


# A driver that is called away from its handshake closes its transport in the loop's next turn, which may not come.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One second in place of ten."""
    monkeypatch.setattr("dlock_core.sessions.timeouts.PATIENCE", PATIENCE)
    monkeypatch.setattr("dlock_core.sessions.watch.PATIENCE", PATIENCE)
    yield
    gc.collect()


@pytest.fixture
def proxies(house: House) -> Iterator[list[Proxy]]:
    """Networks to the house's server, one for each number of pieces; the last one is sound."""
    assert house.server is not None
    with ExitStack() as stack:
        yield [stack.enter_context(Proxy(house.server)) for _ in PIECES]


def through(house: House, proxy: Proxy) -> Any:
    """Let a stranger in whose way to the server is this network."""
    house.url = proxy.url(house.row.drivername)
    return house.stranger()


def outcome(wait: Future[bool], began: float) -> tuple[object, float]:
    """Return what became of an acquisition, and after how many seconds."""
    try:
        result: object = wait.result(30)
    except LockConnectionError as error:
        result = error
    return result, time.monotonic() - began


def gets(person: Any) -> bool:
    """Tell whether an acquisition works again."""
    return outcome(person.begin("again", timeout=5), 0)[0] is True


@ON_EACH_DRIVER
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
def test_an_acquisition_ends_in_time_wherever_the_server_falls_silent(
    house: House, proxies: list[Proxy], warm: bool
) -> None:
    """At each piece of the handshake, of SQLAlchemy's first questions, of ours; and the provider works afterwards."""
    people = [through(house, proxy) for proxy in proxies]
    for person, proxy, pieces in zip(people, proxies, PIECES, strict=True):
        if warm:
            assert person.acquire("warm", timeout=10)
            person.release()
            proxy.drop()
        proxy.hush(pieces)
    began = time.monotonic()
    waits = [person.begin(f"k{number}", timeout=TIMEOUT) for number, person in enumerate(people)]
    outcomes = [outcome(wait, began) for wait in waits]
    assert max(seconds for _, seconds in outcomes) < TIMEOUT + 2 * PATIENCE + SLACK
    assert all(isinstance(result, LockConnectionError) for result, _ in outcomes[:2])
    for person, proxy, (result, _) in zip(people, proxies, outcomes, strict=True):
        proxy.restore()
        if result is True:
            person.release()
        else:
            until(partial(gets, person), "a session")
            person.release()


@ON_EACH_DRIVER
@pytest.mark.parametrize("warm", [False, True], ids=["new", "warm"])
def test_a_crowd_on_a_frozen_network_ends_together(house: House, proxies: list[Proxy], warm: bool) -> None:
    """Each by its own timeout, not one after the other."""
    house.url = proxies[0].url(house.row.drivername)
    provider = house.new_provider()
    crowd = [house.person(provider) for _ in range(CROWD)]
    if warm:
        assert crowd[0].acquire("warm", timeout=10)
        crowd[0].release()
    proxies[0].cut()
    began = time.monotonic()
    waits = [person.begin(f"k{number}", timeout=TIMEOUT) for number, person in enumerate(crowd)]
    outcomes = [outcome(wait, began) for wait in waits]
    assert all(isinstance(result, LockConnectionError) for result, _ in outcomes)
    assert max(seconds for _, seconds in outcomes) < TIMEOUT + 2 * PATIENCE + SLACK
    proxies[0].restore()
