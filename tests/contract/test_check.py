"""What an inspection costs the server's log, and a check on a slow link."""

from __future__ import annotations

import pytest

from dlock_core import LockProvider
from dlock_core.contrib.testing import MemoryDatabase
from tests.conftest import server
from tests.servers.postgresql import PostgreSQL


def test_a_list_leaves_no_error_in_postgresql_s_log_where_the_table_of_names_is_missing() -> None:
    """The table is optional; a lock of another process has no name without it."""
    running = server("postgresql")
    if not isinstance(running, PostgreSQL):
        pytest.skip("its log cannot be read")
    url = running.url("postgresql+psycopg", database="postgres")
    with LockProvider(url, show_keys=False) as holder, LockProvider(url) as looking, holder.lock("k"):
        before = running.log_text()
        assert [info.key for info in looking.inspect()] == [None]
        assert "ERROR" not in running.log_text().removeprefix(before)


def test_a_slow_link_is_measured_and_not_taken_for_a_dead_server() -> None:
    """At 0.7 s for each lock the median comes of fewer of them."""
    with MemoryDatabase() as database:
        locks = database.provider()
        database.delay(0.35)
        found = {finding.name: finding for finding in locks.check()}
        database.delay(0)
    assert found["lock"].ok is True
    assert found["latency"].ok is False
    assert float(found["latency"].detail.partition(" ")[0]) >= 700
