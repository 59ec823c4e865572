"""What a report leaves behind."""

from django.db import models


class Report(models.Model):
    """How often a report was built."""

    name = models.CharField(max_length=50, unique=True)
    built = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}, built {self.built} times"
