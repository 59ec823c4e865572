"""The table."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Make it."""

    initial = True
    operations = [  # noqa: RUF012 - as Django writes it
        migrations.CreateModel(
            "Stock",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=50, unique=True)),
                ("count", models.IntegerField(default=0)),
            ],
        )
    ]
