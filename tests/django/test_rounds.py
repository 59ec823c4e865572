"""Two processes at once, over and over."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.servers import wait_until

from .databases import ONE_OF_EACH
from .site import Site

ROWS = ONE_OF_EACH


@pytest.mark.slow
@pytest.mark.timeout(400)  # forty programs that import Django
def test_two_commands_are_never_inside_together(site: Site, tmp_path: Path) -> None:
    """20 rounds of two processes, one of each pair killed with SIGKILL inside; each body looks whether it is alone."""
    log = tmp_path / "log"
    words = ("work", "--lock-timeout", "forever", "--do", "alone", "--log", str(log))
    log.touch()
    for _ in range(20):
        victim, other = site.start(*words), site.start(*words)
        other.send("\n")
        wait_until(partial(_is_inside, victim.process.pid, log), "the victim to be inside", 30)
        victim.kill()
        assert other.finish() == 0, other.err
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines].count("in") == 40
    assert [line.split()[0] for line in lines].count("out") == 20


def _is_inside(pid: int, log: Path) -> bool:
    return f"in {pid}\n" in log.read_text()
