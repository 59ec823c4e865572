"""What each driver must do: a command holds its lock to the end, and not longer."""

from __future__ import annotations

from tests.contract.witnesses import Witness

from .databases import ALL_ROWS
from .site import Site

ROWS = ALL_ROWS


def test_a_killed_command_leaves_nothing(site: Site) -> None:
    """After SIGKILL the next one runs as soon as the server has noticed."""
    site.start("work", "--lock", "--do", "stay").wait_in().kill()
    done = site.run("work", "--lock", "--lock-timeout", "10")
    assert (done.process.returncode, done.err) == (0, "")


def test_a_command_keeps_its_lock_when_django_reconnects(site: Site, asked: Witness) -> None:
    """close_old_connections() with CONN_MAX_AGE=0 closes Django's connection, not ours."""
    running = site.start("work", "--lock", "--do", "reconnect").wait_in()
    assert asked.holders() == 1
    assert site.run("work", "--lock").process.returncode == 75
    assert running.finish() == 0, running.err


def test_a_command_that_forks_keeps_its_lock(site: Site, asked: Witness) -> None:
    """Children of a pool and single ones come and go inside the lock."""
    running = site.start("work", "--lock", "--do", "fork").wait_in()
    assert asked.holders() == 1
    assert site.run("work", "--lock").process.returncode == 75
    assert running.finish() == 0, running.err
