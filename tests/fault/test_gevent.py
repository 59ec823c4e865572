"""Greenlets of gevent, which a Timeout or a kill ends in the midst of a statement."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.house import House, until

LOCKS = 50  # as in greenlets.py, which patches whatever imports it

pytestmark = pytest.mark.rows(
    lambda row: row.name in ("postgresql-psycopg", "mysql-pymysql", "mariadb-pymysql")  # drivers that are cooperative
)
ROOT = Path(__file__).parents[2]


@contextmanager
def _program(house: House, sessions: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.fault.greenlets", house.url, sessions]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            yield program
            program.communicate("\n", timeout=20)
            assert program.returncode == 0
        finally:
            program.kill()


def test_a_greenlet_that_is_called_away_costs_no_other_its_lock(house: House) -> None:
    """Each statement on the shared session comes to its end, and what it got is given back."""
    holder = house.stranger()
    assert holder.acquire("wanted")
    with _program(house, "shared") as program:
        assert program.stdout is not None
        assert program.stdout.readline().split() == ["held", str(LOCKS)]
        until(lambda: house.witness.waiters() == 0)
        until(lambda: house.witness.holders() == LOCKS + 1, "what was got in vain to be given back")
    holder.release()


def test_a_greenlet_that_leaves_its_wait_keeps_its_other_locks(house: House) -> None:
    """With a session for each owner, the wait was on the session that holds them."""
    holder = house.stranger()
    assert holder.acquire("wanted")
    with _program(house, "own") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "kept\n"
        until(lambda: house.witness.waiters() == 0)
        assert house.witness.holders() == 2
    holder.release()
