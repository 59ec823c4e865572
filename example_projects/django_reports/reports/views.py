"""`POST /reports/sales/`: the same lock as the command's; 409 while that report is being built."""

from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

from dlock_django import lock_view
from reports.building import build


@require_POST
@lock_view("report:{name}", retry_after=5)
def build_report(request: HttpRequest, name: str) -> JsonResponse:  # noqa: ARG001
    """Build a report."""
    return JsonResponse({"report": build(name)})
