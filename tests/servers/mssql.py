"""SQL Server: one that somebody else runs, or a stand-in that speaks its protocol; see `tests/standin`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy as sa

from .base import Factory
from .existing import ExistingServer
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
    """Return an ODBC driver for SQL Server that this machine has, Microsoft's if possible."""
    try:
        pyodbc = importlib.import_module("pyodbc")  # without unixODBC it cannot be imported
    except ImportError:
        return None
    drivers = sorted((name for name in pyodbc.drivers() if "SQL Server" in name), reverse=True)
    return next(iter([*drivers, *(name for name in pyodbc.drivers() if name == "FreeTDS")]), None)


def odbc_url(address: sa.URL) -> sa.URL:
    """Add to a URL for pyodbc or aioodbc the driver, and what this needs."""
    if "driver" in address.query:
        return address._replace(port=None) if "PORT" in address.query else address
    driver = odbc_driver()
    if driver == "FreeTDS":  # does not know the port that SQLAlchemy writes behind the host
        query = {"driver": driver, "PORT": str(address.port), "TDS_Version": "7.4"}
        return address.set(query=query)._replace(port=None)  # `set` leaves out what is None
    return address.update_query_dict({"driver": driver or "", "Encrypt": "no"})


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

    def __init__(self) -> None:
        """Choose its port."""
        super().__init__(sa.URL.create("mssql+pymssql", username="sa", password="standin"), {})

    @classmethod
    def find(cls) -> Factory[SQLServerStandIn] | str:
        """Return how to make one, or the reason why that is impossible."""
        if importlib.util.find_spec("pymssql") is None:
            return MISSING
        return Factory(cls, f"a stand-in, not SQL Server; ODBC by {odbc_driver() or 'nothing'}")

    @property
    def version(self) -> str:
        return "stand-in"

    def url(self, drivername: str, database: str | None = None, user: str | None = None) -> str:
        return url_of(self.address, drivername, database or DATABASE, user)

    def _create(self) -> None:
        """Do nothing: it keeps all in memory."""

    def _command(self) -> list[str]:
        return [sys.executable, "-c", PROGRAM, str(self.port)]
