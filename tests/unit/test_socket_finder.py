"""The socket of a driver that shows none is what opened while it connected, if that is one."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dlock_core.sessions.sockets import finder_of_socket, same_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")


@pytest.fixture
def port() -> Iterator[int]:
    """A port where another process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_one_connection_that_was_opened_is_found(port: int) -> None:
    """Files, pipes and sockets of other kinds do not count."""
    with ExitStack() as stack, finder_of_socket("127.0.0.1", port, in_turn=True) as found:
        for other in socket.socketpair():
            stack.enter_context(other)
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert found() == connection.fileno()


@pytest.mark.parametrize("count", [0, 2])
def test_none_and_two_are_not_guessed(port: int, count: int) -> None:
    """A stranger's socket would be watched, and closed, in place of ours."""
    with (
        ExitStack() as stack,
        socket.create_connection(("127.0.0.1", port)),
        finder_of_socket("127.0.0.1", port, in_turn=True) as found,
    ):
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert found() is None


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize("host", [None, "127.0.0.1", "192.0.2.1", "name.invalid"])
def test_a_connection_to_elsewhere_is_a_stranger_s(port: int, host: str | None, in_turn: bool) -> None:
    """Another thread opens it, while the driver takes one that it has, or goes by a way of its own."""
    opened: list[socket.socket] = []

    def stranger() -> None:
        opened.append(socket.create_connection(("127.0.0.1", port)))

    with finder_of_socket(host, port + 1 if host == "127.0.0.1" or not in_turn else port, in_turn=in_turn) as found:
        thread = threading.Thread(target=stranger)
        thread.start()
        thread.join()
        assert found() is None
    opened[0].close()


@pytest.mark.parametrize(("host", "in_turn"), [("localhost", True), ("localhost", False), ("127.0.0.1", False)])
def test_a_name_is_looked_up_in_threads_only(port: int, host: str, in_turn: bool) -> None:
    """An event loop must not wait for the name service; there the port decides."""
    with (
        finder_of_socket(host, port, in_turn=in_turn) as found,
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        assert found() == connection.fileno()


def test_threads_of_ours_connect_in_turn(port: int) -> None:
    """So that each finds its own."""
    results: list[bool] = []

    def connect() -> None:
        for _ in range(20):
            with (
                finder_of_socket("127.0.0.1", port, in_turn=True) as found,
                socket.create_connection(("127.0.0.1", port)) as connection,
            ):
                results.append(found() in (connection.fileno(), None))
                results.append(found() is not None)

    threads = [threading.Thread(target=connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[::2])
    assert any(results[1::2])


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
