"""A server that runs already, named by an environment variable."""

from __future__ import annotations

from typing import NoReturn

import sqlalchemy as sa

from .base import Uncontrollable
from .sandbox import ServerError

DEFAULTS = {
    "postgresql": ("postgresql+psycopg", 5432),
    "mariadb": ("mysql+pymysql", 3306),
    "mysql": ("mysql+pymysql", 3306),
    "mssql": ("mssql+pymssql", 1433),
    "oracle": ("oracle+oracledb", 1521),
}


class ExistingServer(Uncontrollable):
    """A server that is not ours."""

    def __init__(self, kind: str, url: str) -> None:
        """Take the kind of the server and a SQLAlchemy URL of it, with any driver."""
        drivername, port = DEFAULTS[kind]
        address = sa.make_url(url)
        super().__init__(address.set(drivername=drivername, port=address.port or port))
        self.kind = kind

    @property
    def version(self) -> str:
        with self.connect() as connection:
            return ".".join(str(part) for part in connection.dialect.server_version_info or ())

    def _refuse(self) -> NoReturn:
        raise ServerError(f"the {self.kind} server is not ours to control: unset DLOCK_TEST_{self.kind.upper()}_URL")
