"""Real database servers for the tests, which these may kill, freeze, cut off and restart.

Each private server listens on 127.0.0.1 at a free port, keeps its files in a temporary folder, and ends with the
process that started it, however that ends. ``DLOCK_TEST_POSTGRESQL_URL``, ``DLOCK_TEST_MARIADB_URL``,
``DLOCK_TEST_MYSQL_URL`` and ``DLOCK_TEST_MSSQL_URL`` name servers to use in place of private ones; the tests that would
have to kill them cannot run there. Without the last one, a stand-in plays SQL Server. Oracle is only tested on the
server that ``DLOCK_TEST_ORACLE_URL`` names.
"""

from __future__ import annotations

import os
from functools import partial

from .base import Factory, Server
from .existing import ExistingServer
from .mariadb import MariaDB
from .mssql import ExistingSQLServer, SQLServerStandIn
from .mysql import MySQL
from .oracle import ExistingOracle, OracleStandIn
from .postgresql import PostgreSQL
from .private import PrivateServer
from .proxy import Proxy
from .sandbox import ServerError, wait_until

__all__ = [
    "ExistingServer",
    "Factory",
    "MariaDB",
    "MySQL",
    "OracleStandIn",
    "PostgreSQL",
    "PrivateServer",
    "Proxy",
    "Server",
    "ServerError",
    "available",
    "wait_until",
]


NO_ORACLE = "there is no Oracle that tests could start: set DLOCK_TEST_ORACLE_URL"


def available() -> dict[str, Factory[Server] | str]:
    """Return for each kind of server how to make one, or the reason why that is impossible."""
    return {
        "postgresql": _named("postgresql") or PostgreSQL.find(),
        "mariadb": _named("mariadb") or MariaDB.find(),
        "mysql": _named("mysql") or MySQL.find(),
        "mssql": _named("mssql", ExistingSQLServer) or SQLServerStandIn.find(),
        "oracle": _named("oracle", ExistingOracle) or NO_ORACLE,
        "oracle-standin": OracleStandIn.find(),
    }


def _named(kind: str, make: type[ExistingServer] = ExistingServer) -> Factory[Server] | None:
    """Return the server that the environment names for a kind."""
    variable = f"DLOCK_TEST_{kind.upper()}_URL"
    url = os.environ.get(variable)
    return Factory(partial(make, kind, url), f"the server of {variable}") if url else None
