"""Questions to a server whose answer shows whether it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

if TYPE_CHECKING:
    from concurrent.futures import Future

# How long we watch that nothing happens.
SILENCE_SECONDS = 0.3


def ask(connection: sa.Connection) -> int:
    """Let the server answer a question."""
    return connection.execute(sa.text("SELECT 42")).scalar_one()  # type: ignore[no-any-return]


def assert_silent(answer: Future[int]) -> None:
    """Check that no answer comes."""
    with pytest.raises(TimeoutError):
        answer.result(SILENCE_SECONDS)
