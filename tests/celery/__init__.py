"""Tests of dlock_celery, with real brokers and real workers."""
