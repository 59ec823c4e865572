"""The garbage collector strikes wherever it likes: at any line, in any thread, in the midst of any statement."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.contract.house import House, until


def drop_providers(house: House, how: str) -> str:
    """Run the program that drops providers, and return what it says, when the server has nothing left of it."""
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-m", "tests.fault.collecting", house.url, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            found = program.stdout.readline()
            until(lambda: house.witness.holders() == 0, "the locks of what was dropped to be free")
            until(lambda: house.witness.sessions() <= house.sessions_before, "the sessions of what was dropped to end")
            program.communicate("\n", timeout=20)
            assert program.returncode == 0
        finally:
            program.kill()
    return found


@pytest.mark.rows(
    lambda row: row.name in {"postgresql-psycopg", "postgresql-psycopg2", "mariadb-pymysql", "sqlite-file"}
)
def test_a_provider_collected_in_any_thread_stops_nothing(house: House) -> None:
    """Not the thread where the collector strikes, its own watch perhaps, nor any later collection."""
    assert drop_providers(house, "moments") == "well\n"


@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg", "mariadb-pymysql", "sqlite-file"})
def test_a_collection_at_every_allocation_stops_nothing(house: House) -> None:
    """Threads take locks, and drop provider and lock in a circle, while each new object makes the collector run."""
    assert drop_providers(house, "allocations") == "well\n"


@pytest.mark.rows(lambda row: row.name in {"postgresql-asyncpg", "mariadb-aiomysql"})
def test_no_task_runs_in_the_midst_of_a_collection(house: House) -> None:
    """An abandoned provider's sessions are ended by their loop, which the collector does not wait for."""
    assert drop_providers(house, "async") == "well\n"
