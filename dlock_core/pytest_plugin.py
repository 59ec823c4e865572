"""Fixtures for pytest, which finds them by itself where dlock-suite is installed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from .testing import MemoryDatabase, hold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .lock import Lock
    from .provider import LockProvider

__all__ = ["hold_lock", "lock_database"]


@pytest.fixture
def lock_database() -> Iterator[MemoryDatabase]:
    """Give a database in memory for locks; see `dlock_core.testing.MemoryDatabase`."""
    with MemoryDatabase() as database:
        yield database


@pytest.fixture
def hold_lock() -> Iterator[Callable[..., Lock]]:
    """Let somebody else hold a lock until the test ends, by `hold_lock(locks, key, shared=False)`.

    See `dlock_core.testing.hold`.
    """
    with ExitStack() as stack:

        def hold_until_the_end(locks: LockProvider, key: object, *, shared: bool = False) -> Lock:
            return stack.enter_context(hold(locks, key, shared=shared))

        yield hold_until_the_end
