"""Which kinds of server a run of the tests needs, and what becomes of a test whose server is missing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import pytest

from .base import Factory, Server
from .mariadb import MariaDB
from .mysql import MySQL
from .postgresql import PostgreSQL

if TYPE_CHECKING:
    from collections.abc import Callable

    from .private import PrivateServer

S = TypeVar("S", bound=Server)

FINDERS: dict[str, Callable[[], Factory[PrivateServer] | str]] = {
    "postgresql-machine": lambda: PostgreSQL.find("machine"),
    "postgresql-wheel": lambda: PostgreSQL.find("wheel"),
    "mariadb": MariaDB.find,
    "mysql": MySQL.find,
}


def require(found: Factory[S] | str) -> Factory[S]:
    """Return a factory that was found; else skip with the reason, or fail if CI should have the server.

    CI installs PostgreSQL and MariaDB, and tries to unpack MySQL.
    """
    if not isinstance(found, str):
        return found
    if os.environ.get("CI") == "true" and not found.startswith("MySQL"):
        pytest.fail(found)
    pytest.skip(found)
