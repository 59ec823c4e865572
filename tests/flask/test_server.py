"""A real server: gunicorn with two workers of four threads each, preloaded and not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.servers.sandbox import free_port

from .places import DRIVERS, Place, together, until

ROOT = Path(__file__).parents[2]
CROWD = 200


class Served:
    """A running server, the place of its database, and the journal that its workers write."""

    def __init__(self, place: Place, *, preload: bool) -> None:
        self.place = place
        self.journal = place.folder / "journal"
        self.port = free_port()
        command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--threads", "4", "--log-level", "warning"]
        command += ["--bind", f"127.0.0.1:{self.port}", "--backlog", "1024", "--worker-tmp-dir", str(place.folder)]
        command += ["--worker-connections", "20"]  # lest one worker takes the whole crowd
        command += ["--preload"] if preload else []
        one_each = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", limits=one_each, timeout=30, verify=False)
        environment = {**os.environ, "SERVED_URL": place.url, "SERVED_JOURNAL": str(self.journal)}
        self.process = subprocess.Popen([*command, "tests.flask.served:app"], cwd=ROOT, env=environment)
        answered: set[int] = set()  # until then a worker may be importing, and hold the lock of its warm-up
        until(lambda: self._hears_from(answered) == 2, "both workers to answer", 60)

    def _hears_from(self, answered: set[int]) -> int:
        """Ask once, and tell how many workers have answered by now."""
        with suppress(httpx.TransportError):
            answered.add(self.get("/born").raise_for_status().json()[1])
        return len(answered)

    def get(self, path: str) -> httpx.Response:
        """Ask on a connection of its own."""
        return self.client.get(path)

    def status(self, path: str) -> int:
        """Ask; 0 when the connection broke."""
        try:
            return self.get(path).status_code
        except httpx.TransportError:
            return 0

    def crowd(self, path: Callable[[int], str]) -> tuple[list[httpx.Response], int]:
        """Ask two hundred times at once; return the answers, and how many connections gunicorn lost.

        In such a crowd it loses one now and then, whatever the application is; a lost request is sent again.
        """
        lost = []

        def ask(number: int) -> httpx.Response:
            while True:
                try:
                    return self.get(path(number))
                except httpx.TransportError as error:
                    lost.append(error)

        answers = together(CROWD, ask)
        assert len(lost) < CROWD / 20, lost
        return answers, len(lost)

    def bodies(self) -> int:
        """Return how many bodies ran, after making sure that never two ran at once."""
        lines = self.journal.read_text().split("\n")[:-1]
        assert [re.sub("begin", "end", line) for line in lines[::2]] == lines[1::2]
        return len(lines) // 2

    def workers(self) -> list[int]:
        """Return the processes that answer."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def stop(self) -> None:
        """Stop the server as its operator does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.client.close()


@pytest.fixture(params=[f"{kind}-{how}" for kind in DRIVERS for how in ("preload", "fork")], scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server on each database, with and without `--preload`."""
    kind, _, how = request.param.partition("-")
    place = Place(kind, tmp_path_factory.mktemp("served"))
    server = Served(place, preload=how == "preload")
    yield server
    server.stop()
    place.close()


def test_of_two_hundred_requests_at_once_one_works_at_a_time(served: Served, request: pytest.FixtureRequest) -> None:
    """The others get 409; or are served in turn, where they wait: from threads and from event loops."""
    imported, answering = served.get("/born").json()
    assert (imported == served.process.pid) == ("preload" in request.node.name)
    assert answering in served.workers()

    answers, lost = served.crowd(lambda _: "/try")
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 409}
    before = served.bodies()
    assert statuses[200] <= before <= statuses[200] + lost

    answers, lost = served.crowd(lambda number: "/await" if number % 4 == 0 else "/wait")
    assert Counter(answer.status_code for answer in answers) == {200: CROWD}
    assert {int(answer.text) for answer in answers} == set(served.workers())
    assert CROWD <= served.bodies() - before <= CROWD + lost
    assert served.place.witness.holders() == 0


def test_a_client_that_leaves_after_one_chunk_frees_the_lock_within_a_second(served: Served) -> None:
    """The worker notices when it sends the next chunk."""
    took = []
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
            received = b""
            while b"chunk" not in received:
                received += client.recv(4096)
            assert served.place.witness.holders() == 1
            assert served.status("/stream") == 409
        left = time.monotonic()
        until(lambda: served.place.witness.holders() == 0, "the lock to be free")
        took.append(time.monotonic() - left)
    assert sorted(took)[1] < 1


def test_a_worker_that_is_killed_leaves_no_lock(served: Served) -> None:
    """The next request works, without help."""
    before, bodies = served.workers(), served.bodies()
    assert served.status("/die") == 0
    assert served.get("/wait").status_code == 200
    until(lambda: len(set(served.workers()) - set(before)) == 1, "another worker to come", 60)
    assert served.get("/try").status_code == 200
    assert served.bodies() == bodies + 2
