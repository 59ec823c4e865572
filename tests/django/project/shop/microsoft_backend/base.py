"""What mssql-django says of itself: the vendor and the driver that it imports."""

from __future__ import annotations

import pyodbc  # type: ignore[import-not-found]
from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Says what it is."""

    vendor = "microsoft"
    Database = pyodbc
