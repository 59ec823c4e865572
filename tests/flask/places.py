"""Where the tests of the extension run: one database, its witness, strangers, and applications on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import flask
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from werkzeug.test import TestResponse

from dlock_core import LockProvider
from dlock_flask import DLock
from tests.conftest import server
from tests.contract.witnesses import FileWitness, Witness, witness_of
from tests.servers import wait_until

__all__ = ["DRIVERS", "Place", "Site", "together", "until"]

DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "mariadb": "mariadb+pymysql",
    "mysql": "mysql+pymysql",
    "sqlite": "sqlite",
}


def until(condition: Callable[[], object], what: str = "it", seconds: float = 10) -> None:
    """Wait until a condition holds."""
    wait_until(lambda: bool(condition()), what, seconds)


class Site:
    """One application with Flask-SQLAlchemy and locks."""

    def __init__(self, app: flask.Flask, db: SQLAlchemy, dlock: DLock) -> None:
        self.app = app
        self.db = db
        self.dlock = dlock

    def get(self, path: str, **options: Any) -> TestResponse:
        """Ask with a client of its own, as a browser of its own would."""
        return self.app.test_client().get(path, **options)

    def close(self) -> None:
        """End its sessions."""
        with self.app.app_context():
            self.dlock.close()
            for engine in self.db.engines.values():
                out = getattr(engine.pool, "checkedout", int)()  # a StaticPool has but one connection
                assert out == 0, "a connection is out of the application's pool"
                engine.dispose()


class Place:
    """One database."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.server = None if kind == "sqlite" else server(kind)
        self.url = self.server.url(DRIVERS[kind]) if self.server else f"sqlite:///{folder / 'app.db'}"
        self.witness: Witness = witness_of(self.server) if self.server else FileWitness(folder / "app.db")
        self._undo = ExitStack()

    def site(self, dlock: DLock | None = None, **config: Any) -> Site:
        """Make an application on this database."""
        app = flask.Flask("shop")
        app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=self.url)
        app.config.update(config)
        db = SQLAlchemy(app)
        dlock = dlock or DLock()
        dlock.init_app(app)
        site = Site(app, db, dlock)
        self._undo.callback(site.close)
        return site

    def stranger(self, *, url: str | None = None, prefix: str = "") -> LockProvider:
        """Let another in that knows nothing of the application, like another process."""
        return self._undo.enter_context(LockProvider(sa.create_engine(url or self.url), prefix=prefix))

    @contextmanager
    def held(self, key: object, *, prefix: str = "") -> Iterator[None]:
        """Let a stranger hold a key."""
        with self.stranger(prefix=prefix).lock(key):
            yield

    def free(self, key: object) -> bool:
        """Ask as a stranger whether a key can be had now."""
        with self.stranger() as locks:
            lock = locks.lock(key)
            taken = lock.acquire(timeout=0)
            lock.close()
        return taken

    def restart(self) -> None:
        """Restart the server, and look at it anew."""
        assert self.server is not None
        self.witness.close()
        self.server.restart()
        self.witness = witness_of(self.server)

    def close(self) -> None:
        """Ask the witness whether anything is left."""
        try:
            until(lambda: self.witness.holders() == 0, "the last lock to be free")
            until(lambda: self.witness.waiters() == 0, "the last waiter to leave")
            self._undo.close()
        finally:
            self.witness.end_idle()  # a failure here must not reach into the next test
            self.witness.close()


def together(count: int, ask: Callable[[int], Any]) -> list[Any]:
    """Ask so many times at once, and return what came."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        return ask(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
