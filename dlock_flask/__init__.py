"""Locks from your database for flask (not built yet)."""
