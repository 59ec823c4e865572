"""Where the view is."""

from django.urls import path

from reports.views import build_report

urlpatterns = [path("reports/<slug:name>/", build_report)]
