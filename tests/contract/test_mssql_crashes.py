"""What crashes a process in an ODBC driver: a close under a statement, or beside a cancel. It must not happen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import server
from tests.servers import Server, wait_until
from tests.servers.mssql import SQLServerStandIn, with_driver
from tests.servers.odbc import FREETDS, MICROSOFT
from tests.servers.required import require

from .conftest import require_odbc
from .witnesses import witness_of

COUNT = 200
LATENCY = 0.03
over_every_driver = pytest.mark.parametrize("odbc", [FREETDS, MICROSOFT])


@pytest.fixture(scope="module")
def slow_server() -> Iterator[SQLServerStandIn]:
    """A server where it takes a third of a second to open a session."""
    require(SQLServerStandIn.find())
    with SQLServerStandIn(LATENCY) as slow:
        yield slow


def cancel_often(database: Server, drivername: str, odbc: str, what: str) -> str:
    """Run the program, see that it lives to its end and leaves nothing, and return what it complained of."""
    require_odbc(odbc)
    url = with_driver(database.url(drivername), odbc)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.contract.cancelled", url, what, str(COUNT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{COUNT}\n"
    witness = witness_of(database)
    wait_until(lambda: (witness.holders(), witness.waiters()) == (0, 0), "the program's locks and waits to end")
    witness.close()
    return done.stderr


@over_every_driver
@pytest.mark.parametrize("drivername", ["mssql+pyodbc", "mssql+aioodbc"])
def test_cancelled_waits_do_not_crash_the_process(drivername: str, odbc: str) -> None:
    """The cancel of a driver runs in one thread, and its connection is closed in another, but never beside it."""
    assert cancel_often(server("mssql"), drivername, odbc, "waits") == ""


@over_every_driver
@pytest.mark.parametrize("drivername", ["mssql+pyodbc", "mssql+aioodbc"])
def test_cancelled_openings_do_not_crash_the_process(slow_server: SQLServerStandIn, drivername: str, odbc: str) -> None:
    """Also when the event loop ends meanwhile, which cancels even what we have put out of a cancel's reach."""
    assert cancel_often(slow_server, drivername, odbc, "openings") == ""


@over_every_driver
def test_cancelled_inspections_do_not_crash_the_process(slow_server: SQLServerStandIn, odbc: str) -> None:
    """They have connections of their own, which SQLAlchemy closes, and complains when that is cancelled too."""
    cancel_often(slow_server, "mssql+aioodbc", odbc, "inspections")
