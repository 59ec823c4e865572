"""Settings; DATABASE_URL names the database, `app.db` in the current folder without it."""

import os
from pathlib import Path

from sqlalchemy import make_url

HERE = Path.cwd()
ENGINES = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql", "sqlite": "sqlite3"}

_url = make_url(os.environ.get("DATABASE_URL", f"sqlite:///{HERE / 'app.db'}"))

DATABASES = {
    "default": {
        "ENGINE": f"django.db.backends.{ENGINES[_url.get_backend_name()]}",
        "NAME": _url.database,
        "USER": _url.username or "",
        "PASSWORD": _url.password or "",
        "HOST": _url.host or "",
        "PORT": str(_url.port or ""),
    },
    # What each machine does for itself is locked on the machine.
    "machine": {"ENGINE": "django.db.backends.sqlite3", "NAME": HERE / "machine.db"},
}

INSTALLED_APPS = ["dlock_django", "reports"]
DLOCK_PREFIX = "reports"

SECRET_KEY = os.environ.get("SECRET_KEY", "only for this example")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "reports.urls"
MIDDLEWARE: list[str] = []
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

# A broker that needs no server.
QUEUE = HERE / "queue"
CELERY_BROKER_URL = "filesystem://"
CELERY_BROKER_TRANSPORT_OPTIONS = {"data_folder_in": str(QUEUE), "data_folder_out": str(QUEUE)}
CELERY_RESULT_BACKEND = f"file://{HERE / 'results'}"
