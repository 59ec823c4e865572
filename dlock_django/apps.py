"""The app: brings `manage.py dlock`, the system checks, and the admin's page "Locks". No table, so no migration."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["DlockConfig"]


class DlockConfig(AppConfig):
    """The app; put "dlock_django" into INSTALLED_APPS."""

    name = "dlock_django"
    label = "dlock"
    verbose_name = "Locks"

    def ready(self) -> None:
        from . import checks  # its functions register themselves, when the apps are there

        assert checks
