"""Locks from your database for celery (not built yet)."""
