"""What a key is, and where the key of a call comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Key", "KeySource"]

Key: TypeAlias = "str | bytes | int | tuple[str | bytes | int, ...]"
KeySource: TypeAlias = "Key | Callable[..., Key]"
