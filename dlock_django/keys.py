"""What a key is, and where the key of a call comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Key", "KeySource"]

Key: TypeAlias = "str | bytes | int | tuple[str | bytes | int, ...]"
"""A str, bytes or int of 64 bits with sign, or a tuple of them."""
KeySource: TypeAlias = "Key | Callable[..., Key]"
"""A key in whose text `{name}` stands for an argument, or a callable that gets the arguments and returns the key."""
