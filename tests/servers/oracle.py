"""Oracle: one that runs elsewhere, or a stand-in for oracledb in this process; see `tests/standin`."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import sqlalchemy as sa
from sqlalchemy.dialects.oracle.oracledb import OracledbAdaptDBAPI

from tests.standin.oracle import OracleServer, module_of

from .base import Factory, Uncontrollable
from .existing import ExistingServer
from .sandbox import ServerError

__all__ = ["ExistingOracle", "OracleStandIn"]


class ExistingOracle(ExistingServer):
    """A database named by the environment."""

    connect_options: ClassVar[dict[str, Any]] = {"tcp_connect_timeout": 10}


class OracleStandIn(Uncontrollable):
    """Locks in this process behind a module like oracledb; not Oracle."""

    kind = "oracle-standin"
    version = "stand-in"

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(sa.URL.create("oracle+oracledb", "dlock", "standin", "standin", query={"service_name": "x"}))
        self.server = OracleServer()

    @classmethod
    def find(cls) -> Factory[OracleStandIn]:
        """Return how to make one."""
        return Factory(cls, "a stand-in for oracledb, not Oracle")

    def engine_options(self, drivername: str) -> dict[str, Any]:
        module = module_of(self.server)
        return {"module": OracledbAdaptDBAPI(module) if drivername.endswith("_async") else module}

    def _refuse(self) -> NoReturn:
        raise ServerError("a stand-in in this process cannot be ended")
