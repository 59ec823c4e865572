"""The tests that such a project has, for Django's own runner."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from django.db import connection
from django.test import SimpleTestCase, TestCase, TransactionTestCase

from dlock_core import LockTimeoutError
from dlock_django import get_engine, lock, locked_atomic, try_lock
from dlock_django.test import assert_locked, assert_not_locked, hold_lock
from shop.models import Stock


class Rows(TestCase):
    """In a transaction of the test's own, which does not count."""

    def test_a_lock_is_free_before_teardown(self) -> None:
        """Also with rows changed under it."""
        with lock("k"), locked_atomic("rows"):
            Stock.objects.create(name="here")
            assert_locked("k")
        assert_not_locked("k")

    def test_a_conflict_is_visible(self) -> None:
        """As from another process, and from a thread."""
        with hold_lock("k"), self.assertRaises(LockTimeoutError), lock("k"):
            self.fail("two holders")
        with lock("k"), ThreadPoolExecutor(1) as pool:
            self.assertFalse(pool.submit(_try).result(30))


def _try() -> bool:
    with try_lock("k") as held:
        return held is not None


class Guarded(SimpleTestCase):
    """No database is allowed here."""

    def test_a_lock_is_a_database(self) -> None:
        """Django's own message says what to do."""
        with self.assertRaisesRegex(AssertionError, "add 'default' to"), lock("k"):
            self.fail("locked")


class OwnDatabase(TransactionTestCase):
    """Each process of a parallel run has a database of its own."""

    def test_a_lock_is_in_the_database_of_its_process(self) -> None:
        """Whatever it is called at that moment."""
        with lock("k"), get_engine("default").connect() as ours:
            found = ours.exec_driver_sql(QUESTIONS[connection.vendor]).all()
        with connection.cursor() as django:
            django.execute(QUESTIONS[connection.vendor])
            self.assertEqual(list(map(list, found)), list(map(list, django.fetchall())))


class OwnDatabaseToo(OwnDatabase):
    """Somewhere else."""


class OwnDatabaseAgain(OwnDatabase):
    """Somewhere else."""


QUESTIONS = {
    "postgresql": "SELECT current_database()",
    "mysql": "SELECT database()",
    "sqlite": "PRAGMA database_list",
}
