"""What settings a project with Django's admin has beyond those of the test project."""

from __future__ import annotations

from typing import Any

__all__ = ["ADMIN"]

CONTRIB = ("admin", "auth", "contenttypes", "sessions", "messages", "staticfiles")
PROCESSORS = ("auth.context_processors.auth", "messages.context_processors.messages")

ADMIN: dict[str, Any] = {
    "INSTALLED_APPS": [*(f"django.contrib.{name}" for name in CONTRIB), "dlock_django", "shop"],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    *(f"django.contrib.{name}" for name in PROCESSORS),
                ]
            },
        }
    ],
    "ROOT_URLCONF": "shop.admin_urls",
    "STATIC_URL": "/static/",
}
