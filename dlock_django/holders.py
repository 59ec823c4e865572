"""Who holds a lock, in words for people."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from dlock_core import LockError

from .providers import provider

if TYPE_CHECKING:
    from .keys import Key

__all__ = ["holder_of"]

log = logging.getLogger("dlock")


def holder_of(key: Key, using: str) -> str:
    """Return who holds a key, '' when the database does not tell; never an error, and no long wait."""
    try:
        with provider(using) as locks:
            return "; ".join(info.party for info in locks.inspect(key))
    except (LockError, SQLAlchemyError) as error:
        log.debug("cannot tell who holds key %r: %s", key, error)
        return ""
