"""What every test project has; `DLOCK_DJANGO` (JSON) brings the databases, drivers and what a test changes."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

_given: dict[str, Any] = json.loads(os.environ["DLOCK_DJANGO"])

match _given.pop("DRIVER", None):
    case "psycopg2":
        sys.modules["psycopg"] = None  # type: ignore[assignment]
    case "pymysql":
        import pymysql

        pymysql.version_info = (2, 2, 1, "final", 0)
        pymysql.install_as_MySQLdb()

SECRET_KEY = "tests"
INSTALLED_APPS = ["dlock_django", "shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "shop.urls"
ALLOWED_HOSTS = ["*"]
MIDDLEWARE: list[str] = []
USE_TZ = True

globals().update(_given)
