"""Django within the tests' own process, on every database that this machine has."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import django
from django.core.management import call_command
from django.test.utils import setup_test_environment

from tests.conftest import AVAILABLE

from .administered import ADMIN
from .databases import ENGINES, entry, prepare, sqlite_entry
from .site import PROJECT

__all__ = ["SERVERS", "set_up"]

NAME = "dlock_django_inside"
SERVERS = [kind for kind in ENGINES if not isinstance(AVAILABLE[kind], str)]


def set_up(folder: Path) -> None:
    """Configure Django once, and make the tables; `default` is SQLite."""
    driver = None if importlib.util.find_spec("MySQLdb") else "pymysql"
    databases: dict[str, Any] = {
        "default": sqlite_entry(folder),
        "second": sqlite_entry(folder, NAME=str(folder / "second.db")),
        "memory": sqlite_entry(folder, NAME=":memory:"),
    }
    for kind in SERVERS:
        databases[kind] = entry(prepare(kind, NAME), NAME=NAME)
    os.environ["DLOCK_DJANGO"] = json.dumps({"DATABASES": databases, "DRIVER": driver, **ADMIN})
    os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
    sys.path.insert(0, str(PROJECT))
    django.setup()
    del os.environ["DJANGO_SETTINGS_MODULE"]  # Celery workers of later tests would take it for theirs
    setup_test_environment()
    for alias in ("default", "second", *SERVERS):
        call_command("migrate", database=alias, verbosity=0)
