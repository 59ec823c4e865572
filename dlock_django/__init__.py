"""Locks from your database for django (not built yet)."""
