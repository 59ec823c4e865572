"""Thousands of signals at random moments of a main thread that takes locks, with a handler that raises."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.contract.house import House, until

SIGNALS = [250, pytest.param(2000, marks=(pytest.mark.slow, pytest.mark.timeout(300)))]  # on each of four drivers
SEED = 20261121


@pytest.mark.rows(
    lambda row: row.name in {"postgresql-psycopg", "postgresql-psycopg2", "mysql-pymysql", "mariadb-mysqlclient"}
)
@pytest.mark.parametrize("signals", SIGNALS)
def test_random_signals_leave_nothing(house: House, signals: int) -> None:
    """Two seconds later no lock is held and no caller waits, while the process lives; it goes on, and ends well."""
    command = [sys.executable, "-m", "tests.fault.signalled", house.url, str(signals), str(SEED)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "over\n"
            since = time.monotonic()
            until(lambda: house.witness.holders() == house.witness.waiters() == 0, "all to be free")
            assert time.monotonic() - since < 2
            process.communicate("\n", timeout=20)
            assert process.returncode == 0
        finally:
            process.kill()
