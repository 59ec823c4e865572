"""Under a real ASGI server: those that wait for a lock hold up no other."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.contract.witnesses import Witness
from tests.servers import wait_until

from .databases import ONE_OF_EACH, Row
from .site import PROJECT, Site

ROWS = ONE_OF_EACH
WAITERS = 20


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    """The site, served."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "uvicorn", "shop.asgi:application", "--port", port, "--lifespan", "off"]
    process = subprocess.Popen(command, cwd=PROJECT, env=site.environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url), "the server to answer", 30)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/orm/").status_code == 200
    except httpx.TransportError:
        return False


def test_waiting_requests_hold_up_no_other(address: str, site: Site, asked: Witness, row: Row) -> None:
    """20 requests wait for a key that another process holds; a view that uses the ORM answers within a second."""
    holder = site.start("dlock", "run", "busy", "--", "plain", "0", "--stay").wait_in()

    async def crowd() -> tuple[float, list[int]]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=100)) as client:
            waiting = [asyncio.create_task(client.get(f"{address}/waiting/")) for _ in range(WAITERS)]
            await asyncio.sleep(0)
            if row.kind != "sqlite":
                await asyncio.to_thread(wait_until, lambda: asked.waiters() == 1, "the head of the queue", 20)
            slowest = 0.0
            for _ in range(5):
                asked_at = time.monotonic()
                assert (await client.get(f"{address}/orm/")).status_code == 200
                slowest = max(slowest, time.monotonic() - asked_at)
            assert not any(task.done() for task in waiting)
            await asyncio.to_thread(holder.finish)
            return slowest, [(await task).status_code for task in waiting]

    slowest, statuses = asyncio.run(crowd())
    assert statuses == [200] * WAITERS
    assert slowest < 1
