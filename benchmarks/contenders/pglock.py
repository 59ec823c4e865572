"""django-pglock: advisory locks on Django's own connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..address import LIMIT, Address
from .base import Contender

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .base import Seat

__all__ = ["DjangoPglock"]


class _Seat:
    def lock(self, key: str) -> AbstractContextManager[Any]:
        import pglock  # once Django is set up

        lock: AbstractContextManager[Any] = pglock.advisory(key, timeout=LIMIT, side_effect=pglock.Raise)
        return lock

    def acquire(self, key: str, timeout: float) -> bool:
        import pglock  # once Django is set up

        return bool(pglock.advisory(key, timeout=timeout).acquire())

    def close(self) -> None:
        from django.db import connections  # here, since a run may do without it

        connections.close_all()  # of this thread


class DjangoPglock(Contender):
    """Django with one database, in autocommit."""

    name = "django-pglock"
    use = "`with pglock.advisory(key, timeout=30):` on the connection that Django keeps for the thread"
    modules = ("pglock", "pgactivity", "django")
    distribution = "django-pglock"
    kinds = frozenset({"postgresql"})

    def __init__(self, address: Address, driver: str) -> None:
        super().__init__(address, driver)
        import django  # here, since a run may do without it
        from django.conf import settings

        if settings.configured:
            return
        url = address.of(driver)
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": url.host,
            "PORT": url.port,
            "USER": url.username,
            "PASSWORD": url.password or "",
            "NAME": url.database,
        }
        settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["pgactivity", "pglock"])
        django.setup()

    def seat(self) -> Seat:
        return _Seat()
