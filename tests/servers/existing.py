"""A server that somebody else runs, named by an environment variable."""

from __future__ import annotations

from typing import NoReturn

import sqlalchemy as sa

from .base import Server
from .sandbox import ServerError

DEFAULTS = {
    "postgresql": ("postgresql+psycopg", 5432),
    "mariadb": ("mysql+pymysql", 3306),
    "mysql": ("mysql+pymysql", 3306),
    "mssql": ("mssql+pymssql", 1433),
    "oracle": ("oracle+oracledb", 1521),
}


class ExistingServer(Server):
    """A server that tests may use but not stop, kill or freeze."""

    controllable = False

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

    @property
    def running(self) -> bool:
        return True

    def start(self) -> None:
        """Do nothing: the server runs."""

    def stop(self, *, final: bool = False) -> None:
        """Do nothing at the final stop, else refuse."""
        if not final:
            self._refuse()

    def kill(self) -> None:
        self._refuse()

    def freeze(self) -> None:
        self._refuse()

    def thaw(self) -> None:
        self._refuse()

    def log_text(self) -> str:
        return ""

    def _refuse(self) -> NoReturn:
        raise ServerError(f"the {self.kind} server is not ours to control: unset DLOCK_TEST_{self.kind.upper()}_URL")
