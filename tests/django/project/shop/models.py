"""One table."""

from __future__ import annotations

from django.db import models


class Stock(models.Model):
    """How many there are of something."""

    name: models.CharField[str, str] = models.CharField(max_length=50, unique=True)
    count: models.IntegerField[int, int] = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.count} {self.name}"
