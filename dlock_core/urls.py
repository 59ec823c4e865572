"""Database URLs for people: never with a password."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["secrets_of", "shown_url"]

# Drivers take passwords in the query too, which SQLAlchemy shows; pyodbc a whole connection string.
_SECRET = re.compile("pass|pwd|odbc_connect", re.IGNORECASE)


def shown_url(url: URL) -> str:
    """Render a URL, its passwords hidden."""
    hidden = {name: "***" for name in url.query if _SECRET.search(name)}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def secrets_of(url: URL) -> list[str]:
    """Return the passwords in a URL."""
    found = [url.password, *(value for name, value in url.query.items() if _SECRET.search(name))]
    return [str(secret) for secret in found if secret]
