"""Names for parameters that are the same in every process, as pytest-xdist needs them."""

from __future__ import annotations

import re

__all__ = ["ADDRESS", "stable"]

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def stable(value: object) -> str:
    """Return the value as Python shows it, without its address in memory."""
    return ADDRESS.sub("", repr(value))
