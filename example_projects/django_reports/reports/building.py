"""The work that must not be done twice at a time: it reads, thinks, and writes."""

import os
import time

from reports.models import Report


def build(name: str) -> str:
    """Build a report."""
    report, _ = Report.objects.get_or_create(name=name)
    time.sleep(float(os.environ.get("BUILD_SECONDS", "0.2")))
    report.built += 1
    report.save()
    return str(report)
