"""A backend that fetches a password each time, as those for the clouds do."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql import base

fetched = 0


class DatabaseWrapper(base.DatabaseWrapper):
    """PostgreSQL with a token."""

    def get_connection_params(self) -> dict[str, Any]:
        """Fetch a token."""
        global fetched  # noqa: PLW0603 - how often is what the test asks
        fetched += 1
        return {**super().get_connection_params(), "password": f"token-{fetched}"}
