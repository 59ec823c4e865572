"""How each library is used, behind one face: by the thread that made it, on what its documentation gives a lock."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

import redis
import sqlalchemy as sa
from sqlalchemy_dlock.factory import create_sadlock

from dlock_core import LockProvider

__all__ = ["LIBRARIES", "Library", "make"]

LEASE = 1.0


class Library(Protocol):
    """One thread's way to lock."""

    def use(self) -> None:
        """Use the application's own connection, and keep it as the application does."""
        ...

    def acquire(self, key: str, timeout: float | None) -> bool:
        """Take a lock; None waits without limit, 0 tries once."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...

    def look(self) -> str:
        """Tell what the lock's object believes: "held", "lost", or "silent" when it has nothing to say."""
        ...


class Dlock:
    """`LockProvider` on the application's engine."""

    shared: dict[str, Any] = {}  # noqa: RUF012 - one engine and one provider for the process, as documented
    options: dict[str, Any] = {}  # noqa: RUF012 - none

    def __init__(self, url: str, name: str) -> None:
        if not self.shared:
            self.shared["engine"] = sa.create_engine(url)
            self.shared["locks"] = LockProvider(self.shared["engine"], **self.options)

    def use(self) -> None:
        self.connection = self.shared["engine"].connect()
        self.connection.execute(sa.text("SELECT 1"))

    def acquire(self, key: str, timeout: float | None) -> bool:
        self.lock = self.shared["locks"].lock(key)
        return bool(self.lock.acquire(timeout=timeout))

    def release(self) -> None:
        self.lock.release()

    def look(self) -> str:
        return "lost" if self.lock.lost else "held"


class DlockWithLease(Dlock):
    """The same, with a lease that the server keeps."""

    options = {"lease": LEASE}  # noqa: RUF012


class Sadlock:
    """sqlalchemy-dlock on a connection that the thread keeps."""

    shared: dict[str, Any] = {}  # noqa: RUF012 - one engine for the process

    def __init__(self, url: str, name: str) -> None:
        engine = self.shared.setdefault("engine", sa.create_engine(url, pool_size=50))
        self.connection = engine.connect()

    def use(self) -> None:
        self.connection.execute(sa.text("SELECT 1"))

    def acquire(self, key: str, timeout: float | None) -> bool:
        self.lock: Any = create_sadlock(self.connection, key)
        return bool(self.lock.acquire(timeout != 0, timeout or None))

    def release(self) -> None:
        self.lock.release()

    def look(self) -> str:
        return "held" if self.lock.locked else "lost"


class DjangoPglock:
    """django-pglock on Django's connection of the thread, as a context manager."""

    def __init__(self, url: str, name: str) -> None:
        set_up_django(url)

    def use(self) -> None:
        from django.db import connection  # Django must be set up before

        connection.ensure_connection()

    def acquire(self, key: str, timeout: float | None) -> bool:
        import pglock  # Django must be set up before

        self.lock = pglock.advisory(key, timeout=timeout)
        return bool(self.lock.__enter__())

    def release(self) -> None:
        self.lock.__exit__(None, None, None)

    def look(self) -> str:
        return "silent"  # it has no attribute that would tell


class DlockDjango:
    """`dlock_django.lock`, on a session of its own."""

    def __init__(self, url: str, name: str) -> None:
        set_up_django(url)

    def use(self) -> None:
        from django.db import connection  # Django must be set up before

        connection.ensure_connection()

    def acquire(self, key: str, timeout: float | None) -> bool:
        from dlock_core import LockTimeoutError
        from dlock_django import lock  # Django must be set up before

        self.lock = lock(key, timeout=timeout)
        with suppress(LockTimeoutError):
            self.held: Any = self.lock.__enter__()
            return True
        return False

    def release(self) -> None:
        self.lock.__exit__(None, None, None)

    def look(self) -> str:
        return "lost" if self.held.lost else "held"


class RedisPy:
    """redis-py's Lock, with an expiry or without."""

    shared: dict[str, Any] = {}  # noqa: RUF012 - one client for the process
    expiry: float | None = 0.3

    def __init__(self, url: str, name: str) -> None:
        self.client: redis.Redis = self.shared.setdefault(
            "client", redis.Redis.from_url(url, client_name=name, socket_timeout=None)
        )

    def use(self) -> None:
        self.client.ping()

    def acquire(self, key: str, timeout: float | None) -> bool:
        self.lock = self.client.lock(key, timeout=self.expiry, blocking_timeout=timeout)
        return bool(self.lock.acquire(blocking=timeout != 0))

    def release(self) -> None:
        self.lock.release()

    def owned(self) -> bool:
        return bool(self.lock.owned())

    def look(self) -> str:
        return "silent"  # `owned` asks the server, and nothing tells without asking


class RedisPyForEver(RedisPy):
    """The same without an expiry, which is its default."""

    expiry = None


def set_up_django(url: str) -> None:
    """Configure Django for a server or a file, in this process."""
    import django  # here, since most need it not
    from django.conf import settings

    if settings.configured:
        return
    address = sa.make_url(url)
    postgresql = address.get_backend_name() == "postgresql"
    database = {
        "ENGINE": f"django.db.backends.{'postgresql' if postgresql else 'sqlite3'}",
        "HOST": address.host or "",
        "PORT": address.port or "",
        "USER": address.username or "",
        "PASSWORD": address.password or "",
        "NAME": address.database,
    }
    settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["dlock_django", "pgactivity", "pglock"])
    django.setup()


LIBRARIES: dict[str, type[Library]] = {
    "dlock": Dlock,
    "dlock with a lease": DlockWithLease,
    "dlock_django": DlockDjango,
    "sqlalchemy-dlock": Sadlock,
    "django-pglock": DjangoPglock,
    "redis-py": RedisPy,
    "redis-py without expiry": RedisPyForEver,
}


def make(library: str, url: str, name: str) -> Library:
    """Make what a thread locks with; `name` is how Redis shall know the process."""
    kind: Any = LIBRARIES[library]
    made: Library = kind(url, name)
    return made
