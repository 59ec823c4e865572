"""No table: a name under which Django's permissions and its admin know locks."""

from __future__ import annotations

from django.db import models

__all__ = ["Lock"]


class _NoRows(models.Manager["Lock"]):
    """What `dumpdata` and others find: nothing, and they need no table for it."""

    def get_queryset(self) -> models.QuerySet[Lock]:
        return super().get_queryset().none()


class Lock(models.Model):
    """A lock, of which this database has no row: locks are looked up at the server itself."""

    key: models.CharField[str, str] = models.CharField(max_length=255, primary_key=True)

    objects = _NoRows()

    class Meta:
        """No table, and two permissions."""

        managed = False
        default_permissions = ("view",)
        permissions = (("terminate_lock", "Can terminate locks"),)
        base_manager_name = "objects"

    def __str__(self) -> str:
        return self.key
