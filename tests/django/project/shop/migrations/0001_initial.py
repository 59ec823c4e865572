"""The table."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from django.db import migrations, models


def wait_at_gate(_apps: Any, _editor: Any) -> None:
    """Write down which process migrates, and go on when the test says so, in the test that wants that."""
    if folder := os.environ.get("SHOP_GATE"):
        with Path(folder, "migrating").open("a") as journal:
            journal.write(f"{os.getpid()}\n")
        deadline = time.monotonic() + 60
        while not Path(folder, "open").exists() and time.monotonic() < deadline:
            time.sleep(0.01)


class Migration(migrations.Migration):
    """Make it."""

    initial = True
    operations = [  # noqa: RUF012 - as Django writes it
        migrations.RunPython(wait_at_gate, migrations.RunPython.noop),
        migrations.CreateModel(
            "Stock",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=50, unique=True)),
                ("count", models.IntegerField(default=0)),
            ],
        ),
    ]
