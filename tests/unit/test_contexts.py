"""What a task waits for: nothing that it left behind keeps a lock alive until the garbage collector comes."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy.util import greenlet_spawn

from dlock_core.coordination.contexts import GREENLET, Threaded
from dlock_core.sessions.workers import Workers, see_through

from .fake_server import until


class Thing:
    """Something that a weak reference can watch."""


WAYS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "shield": see_through,
    "wait": lambda function: GREENLET.wait_apart(function, lambda: None),
    "thread": Threaded(Workers()).call,
    "finish": Threaded(Workers()).finish,
}


@pytest.fixture
def _no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_an_error_that_was_seen_keeps_nothing_alive(way: Callable[[Callable[[], Any]], Any]) -> None:
    """Its traceback refers to frames, which must not refer to it: there would be a circle."""
    seen: list[weakref.ref[Thing]] = []

    def fail() -> None:
        thing = Thing()
        seen.append(weakref.ref(thing))
        raise ValueError(str(thing))

    async def use() -> None:
        with suppress(ValueError):
            await greenlet_spawn(way, fail)

    asyncio.run(use())
    until(lambda: seen[0]() is None)  # a worker refers to what it has just done, for a moment
