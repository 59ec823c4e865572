"""What a lock object asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .keys import Key

__all__ = ["Request"]


class Request(NamedTuple):
    """The user's key, the server's name for it, what people read, and how it is wanted."""

    key: Key
    name: int | str
    label: str
    shared: bool
    fencing: bool = False
