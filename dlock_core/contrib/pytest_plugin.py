"""Fixtures for pytest, which finds them where dlock-suite is installed; they import nothing until they are used."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..lock import Lock
    from ..provider import LockProvider
    from .testing import MemoryDatabase

__all__ = ["hold_lock", "lock_database"]


@pytest.fixture
def lock_database() -> Iterator[MemoryDatabase]:
    """Give a database in memory for locks; see `dlock_core.contrib.testing.MemoryDatabase`."""
    from .testing import MemoryDatabase

    with MemoryDatabase() as database:
        yield database


@pytest.fixture
def hold_lock() -> Iterator[Callable[..., Lock]]:
    """Hold a lock as another process would, until the test ends, by `hold_lock(locks, key, shared=False)`.

    See `dlock_core.contrib.testing.hold`.
    """
    from .testing import hold

    with ExitStack() as stack:

        def hold_until_the_end(locks: LockProvider, key: object, *, shared: bool = False) -> Lock:
            return stack.enter_context(hold(locks, key, shared=shared))

        yield hold_until_the_end
