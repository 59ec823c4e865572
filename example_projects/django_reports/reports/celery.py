"""The Celery app: `celery -A reports.celery worker`."""

import os

from celery import Celery
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "reports.settings")

app = Celery("reports")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["reports"])
settings.QUEUE.mkdir(exist_ok=True)
(settings.HERE / "results").mkdir(exist_ok=True)
