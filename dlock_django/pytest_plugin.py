"""Fixtures for pytest: write `pytest_plugins = ["dlock_django.pytest_plugin"]` into conftest.py."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from .test import hold_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dlock_core import Lock
    from dlock_core.adapters import Key

__all__ = ["dlock_hold"]


@pytest.fixture
def dlock_hold() -> Iterator[Callable[..., Lock]]:
    """Hold keys until the test ends, as another process would: `dlock_hold("nightly", using="default")`."""
    with ExitStack() as stack:

        def hold(key: Key, *, using: str | None = None, shared: bool = False) -> Lock:
            return stack.enter_context(hold_lock(key, using=using, shared=shared))

        yield hold
