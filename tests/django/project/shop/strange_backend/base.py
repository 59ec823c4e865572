"""A backend for a database that merely resembles one that we know."""

from __future__ import annotations

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Says what it is."""

    vendor = "cockroachdb"
