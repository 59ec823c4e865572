"""The proxy fails as networks do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from . import PrivateServer, Proxy
from .questions import ask, assert_silent

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


def test_a_proxy_that_is_cut_is_a_black_hole_until_restored(
    server: PrivateServer, background: ThreadPoolExecutor
) -> None:
    """Bytes sent into the hole arrive after it is mended."""
    with Proxy(server) as proxy, proxy.connect() as connection:
        assert ask(connection) == 42
        proxy.cut()
        answer = background.submit(ask, connection)
        try:
            assert_silent(answer)
        finally:
            proxy.restore()
        assert answer.result(10) == 42


def test_a_proxy_that_drops_breaks_connections_and_takes_new_ones(server: PrivateServer) -> None:
    """A reset connection is an error for its client; the next one works."""
    with Proxy(server) as proxy:
        with proxy.connect() as connection:
            assert proxy.connections == 1
            proxy.drop()
            assert proxy.connections == 0
            with pytest.raises(DBAPIError):
                ask(connection)
        with proxy.connect() as connection:
            assert ask(connection) == 42


def test_a_proxy_refuses_when_its_server_is_down(server: PrivateServer) -> None:
    """A proxy does not pretend that there is a server."""
    with Proxy(server) as proxy:
        server.kill()
        with pytest.raises(OperationalError):
            proxy.connect()
