"""The views, and Django's admin."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from shop.urls import urlpatterns as views

urlpatterns = [path("admin/", admin.site.urls), *views]
