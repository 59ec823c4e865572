"""SQL Server: one that runs elsewhere, or a stand-in that speaks its protocol; see `tests/standin`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy as sa

from .base import Factory
from .existing import ExistingServer
from .odbc import FREETDS, drivers
from .private import DATABASE, PrivateServer

__all__ = ["ExistingSQLServer", "SQLServerStandIn"]

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
runpy.run_module('tests.standin.sqlserver', run_name='__main__')
"""
MISSING = "pymssql is not installed"


def odbc_driver() -> str | None:
    """Return the ODBC driver for SQL Server of rows that name none: FreeTDS if possible."""
    return FREETDS if FREETDS in drivers() else next(iter(drivers()), None)


def odbc_url(address: sa.URL, driver: str | None = None) -> sa.URL:
    """Add to a URL for pyodbc or aioodbc the driver, and what this needs."""
    if driver is None and "driver" in address.query:
        return address._replace(port=None) if "PORT" in address.query else address
    driver, port = driver or odbc_driver() or "", address.query.get("PORT", address.port)
    others = {name: value for name, value in address.query.items() if name not in ("driver", "PORT", "TDS_Version")}
    if driver == FREETDS:  # does not know the port that SQLAlchemy writes behind the host
        query = {"driver": driver, "PORT": str(port), "TDS_Version": "7.4"}
        return address.set(query=query)._replace(port=None)  # `set` leaves out what is None
    return address.set(query={"Encrypt": "no", **others, "driver": driver}, port=int(str(port)))


def with_driver(url: str, driver: str) -> str:
    """Return the URL of the same place for another ODBC driver."""
    return odbc_url(sa.make_url(url), driver).render_as_string(hide_password=False)


def url_of(address: sa.URL, drivername: str, database: str | None, user: str | None) -> str:
    """Return the URL of the same place for any of the drivers."""
    changed = address.set(drivername=drivername, database=database, username=user)
    if drivername.endswith("pymssql"):
        port = address.query.get("PORT", address.port)
        changed = changed.set(query={}, port=int(str(port)))
    else:
        changed = odbc_url(changed)
    return changed.render_as_string(hide_password=False)


class ExistingSQLServer(ExistingServer):
    """A server that speaks TDS, named by the environment."""

    connect_options: ClassVar[dict[str, Any]] = {"login_timeout": 10}

    def engine_options(self, drivername: str) -> dict[str, Any]:
        return {"supports_comments": False}  # to ask after them ends a transaction on Babelfish

    def url(self, drivername: str, database: str | None = None, user: str | None = None) -> str:
        return url_of(self.address, drivername, database, user)


class SQLServerStandIn(PrivateServer):
    """A program of the tests that speaks TDS and knows application locks; not SQL Server."""

    kind = "mssql"
    connect_options: ClassVar[dict[str, Any]] = {"login_timeout": 10}

    def __init__(self, latency: float = 0.0) -> None:
        """Choose its port; each answer takes so many seconds until a session first asks for a lock."""
        super().__init__(sa.URL.create("mssql+pymssql", username="sa", password="standin"), {})
        self.latency = latency

    @classmethod
    def find(cls) -> Factory[SQLServerStandIn] | str:
        """Return how to make one, or the reason why that is impossible."""
        if importlib.util.find_spec("pymssql") is None:
            return MISSING
        return Factory(cls, f"a stand-in, not SQL Server; ODBC by {' and '.join(drivers()) or 'nothing'}")

    @property
    def version(self) -> str:
        return "stand-in"

    def url(self, drivername: str, database: str | None = None, user: str | None = None) -> str:
        return url_of(self.address, drivername, database or DATABASE, user)

    def _create(self) -> None:
        """Do nothing: it keeps all in memory."""

    def _command(self) -> list[str]:
        return [sys.executable, "-c", PROGRAM, str(self.port), str(self.latency)]
