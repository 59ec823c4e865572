"""Soft time limits are signals: they strike between any two steps of Python, also in our own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from dlock_celery import DLock, get_provider, single_instance
from tests.conftest import server
from tests.contract.witnesses import witness_of
from tests.servers import wait_until

ROUNDS = 1500


def run_with_soft_limit(function: Callable[[], object], seconds: float) -> None:
    """Raise SoftTimeLimitExceeded in a function after so many seconds, at most once."""
    armed = True

    def strike(*_: object) -> None:
        if armed:
            raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        function()
        armed = False
    except SoftTimeLimitExceeded:
        armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# A handler may also raise in a finalizer, where Python reports it and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_a_soft_limit_leaves_no_lock_wherever_it_strikes(database: str, tmp_path: Path) -> None:
    """In the way in, in the body, in the way out: the next run finds the lock free."""
    app = Celery("storm", set_as_current=False)
    url = server("postgresql").url("postgresql+psycopg") if database == "postgresql" else f"sqlite:///{tmp_path}/db"
    DLock(app, url=url)

    @app.task(name=f"storm-{tmp_path}", shared=False)
    @single_instance(on_conflict="raise")
    def nothing() -> None:
        pass

    nothing()
    for number in range(ROUNDS):
        run_with_soft_limit(nothing, 1e-6 + 2e-6 * number)
    nothing()
    get_provider(app).close()
    if database == "postgresql":
        witness = witness_of(server("postgresql"))
        wait_until(lambda: witness.holders() == 0, "all locks to be free")
        witness.close()
