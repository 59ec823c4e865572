"""For the tests of projects that lock: somebody else who holds a key, and what is held."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from .conf import UNSET, Unset, alias_of, timeout_of
from .locks import is_locked
from .providers import make_provider

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlock_core import Lock

    from .keys import Key

__all__ = ["assert_locked", "assert_not_locked", "hold_lock"]


@contextmanager
def hold_lock(
    key: Key, *, using: str | None = None, timeout: float | Unset | None = UNSET, shared: bool = False
) -> Iterator[Lock]:
    """Hold a key during the block as another process would, so that the code under test finds it held.

    Arguments as for `lock`.

    Raises:
        LockTimeoutError: It was not free in time.
    """
    with (
        make_provider(alias_of(using)) as stranger,
        stranger.lock(key, timeout=timeout_of(timeout), shared=shared) as held,
    ):
        yield held


def assert_locked(key: Key, *, using: str | None = None) -> None:
    """Fail with AssertionError unless somebody holds the key."""
    if not is_locked(key, using=using):
        raise AssertionError(f"nobody holds key {key!r} on {alias_of(using)!r}")


def assert_not_locked(key: Key, *, using: str | None = None) -> None:
    """Fail with AssertionError if anybody holds the key."""
    if is_locked(key, using=using):
        raise AssertionError(f"somebody holds key {key!r} on {alias_of(using)!r}")
