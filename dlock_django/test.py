"""For the tests of projects that lock: another holder of a key, and what is held."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dlock_core.adapters import UNSET, Unset, shown

from .conf import alias_of, timeout_of
from .locks import is_locked
from .providers import make_provider

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlock_core import Lock
    from dlock_core.adapters import Key

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
    """Fail with AssertionError unless the key is held."""
    if not is_locked(key, using=using):
        raise AssertionError(f"key {shown(key)} is not held on {alias_of(using)!r}")


def assert_not_locked(key: Key, *, using: str | None = None) -> None:
    """Fail with AssertionError if the key is held."""
    if is_locked(key, using=using):
        raise AssertionError(f"key {shown(key)} is held on {alias_of(using)!r}")
