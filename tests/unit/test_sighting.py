"""The socket of a driver that shows none is what opened while it connected, if that is one."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dlock_core.sighting import Sighting, same_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")


@pytest.fixture
def port() -> Iterator[int]:
    """A port where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_one_connection_that_was_opened_is_found(port: int) -> None:
    """Files, pipes and sockets of other kinds do not count."""
    with ExitStack() as stack, Sighting(in_turn=True) as sighting:
        for other in socket.socketpair():
            stack.enter_context(other)
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert sighting.found() == connection.fileno()


@pytest.mark.parametrize("count", [0, 2])
def test_none_and_two_are_not_guessed(port: int, count: int) -> None:
    """A stranger's socket would be watched, and closed, in place of ours."""
    with ExitStack() as stack, socket.create_connection(("127.0.0.1", port)), Sighting(in_turn=True) as sighting:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert sighting.found() is None


def test_threads_of_ours_connect_in_turn(port: int) -> None:
    """So that each finds his own."""
    found: list[bool] = []

    def connect() -> None:
        for _ in range(20):
            with Sighting(in_turn=True) as sighting, socket.create_connection(("127.0.0.1", port)) as connection:
                found.append(sighting.found() in (connection.fileno(), None))
                found.append(sighting.found() is not None)

    threads = [threading.Thread(target=connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[::2])
    assert any(found[1::2])


def test_a_descriptor_that_means_something_else_by_now_is_not_the_socket(port: int) -> None:
    """In a forked child it must not be replaced."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        handle = socket.socket(fileno=os.dup(connection.fileno()))
        assert same_file(connection.fileno(), handle)
        with socket.create_connection(("127.0.0.1", port)) as another:
            assert not same_file(another.fileno(), handle)
        assert not same_file(9999, handle)
        assert not same_file(None, handle)
        handle.close()
