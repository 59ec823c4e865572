"""Where a database is, in a form that every process of a benchmark can be given."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import URL, make_url

__all__ = ["LIMIT", "Address"]

# Every wait in a benchmark has a limit, as waits in a program should have; seconds.
LIMIT = 30.0


@dataclass(frozen=True)
class Address:
    """A database, and the Redis that some contenders need.

    Args:
        kind: postgresql, mariadb, mysql or sqlite.
        url: SQLAlchemy's URL, with any driver.
        redis: Redis' URL, None where there is none.
        run: What tells the keys of this run from those of any other.
    """

    kind: str
    url: str
    redis: str | None
    run: str

    def of(self, driver: str) -> URL:
        """Return the URL for one driver."""
        url = make_url(self.url)
        return url if self.kind == "sqlite" else url.set(drivername=f"{url.get_backend_name()}+{driver}")

    def text(self, driver: str) -> str:
        """Return the URL for one driver as text."""
        return self.of(driver).render_as_string(hide_password=False)
