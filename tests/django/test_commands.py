"""`manage.py anything --lock`, as real processes on every database and driver."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.contract.witnesses import Witness
from tests.servers import wait_until

from .databases import ONE_OF_EACH, Row
from .site import Running, Site

ROWS = ONE_OF_EACH

KEY = "'command:shop.work'"


def test_a_free_lock_changes_nothing_that_a_command_says(site: Site) -> None:
    """The positional argument is the command's own, stdout too, and stderr is empty."""
    done = site.run("work", "--lock", "file.csv")
    assert (done.process.returncode, done.out, done.err) == (0, "worked on file.csv\n", "")


@pytest.mark.slow
def test_a_held_lock_is_reported_in_one_line_and_exit_code(site: Site) -> None:
    """75, or what is asked for; 0 with --lock-skip, where level 0 says nothing."""
    holder = site.start("work", "--lock", "--do", "stay").wait_in()
    held = site.run("work", "--lock")
    assert (held.process.returncode, held.out) == (75, "")
    assert held.err.startswith(f"CommandLocked: {KEY} is locked by ")
    assert held.err.count("\n") == 1
    assert f":{holder.process.pid}" in held.err
    assert site.run("work", "--lock-exit-code", "3").process.returncode == 3
    skipped = site.run("work", "--lock-skip")
    assert (skipped.process.returncode, skipped.out) == (0, "")
    assert skipped.err.startswith(f"Skipped: {KEY} is locked by ")
    quiet = site.run("work", "--lock-skip", "--verbosity", "0")
    assert (quiet.process.returncode, quiet.out + quiet.err) == (0, "")
    assert site.run("work").process.returncode == 0
    assert holder.finish() == 0


def test_a_command_s_own_end_goes_through(site: Site) -> None:
    """Its error, and its exit code."""
    failed = site.run("work", "--lock", "--do", "fail")
    assert (failed.process.returncode, failed.err) == (1, "CommandError: broken\n")
    assert site.run("work", "--lock", "--do", "leave").process.returncode == 4


def test_a_command_calls_another_but_not_itself(site: Site) -> None:
    """Its own key is a conflict at once, another's is not."""
    assert site.run("work", "--lock", "--do", "another").process.returncode == 0
    itself = site.run("work", "--lock", "--do", "itself")
    assert itself.process.returncode == 75
    waits = site.run("work", "--lock", "--lock-timeout", "20", "--do", "itself")
    assert waits.process.returncode == 75


def test_a_waiter_gets_its_turn_and_says_how_long_it_took(site: Site, asked: Witness, row: Row) -> None:
    """The wait is shown at verbosity 2."""
    holder = site.start("work", "--lock", "--do", "stay").wait_in()
    waiter = site.start("work", "--lock-timeout", "30", "--verbosity", "2", "--do", "stay")
    _wait_for_waiter(waiter, asked, row)
    time.sleep(0.4)  # how long it waits at the least
    assert holder.finish() == 0
    assert waiter.wait_in().finish() == 0
    said = re.match(rf"Locked {KEY} on 'default' after (\d+\.\d) s", waiter.err)
    assert said, waiter.err
    assert float(said[1]) >= 0.4


def test_ctrl_c_ends_a_wait_and_leaves_nothing(site: Site, asked: Witness, row: Row) -> None:
    """The holder goes on undisturbed; `site` asks the server for what is left."""
    holder = site.start("work", "--lock", "--do", "stay").wait_in()
    waiter = site.start("work", "--lock-timeout", "forever", "--verbosity", "2")
    _wait_for_waiter(waiter, asked, row)
    waiter.process.send_signal(signal.SIGINT)
    assert waiter.finish() == -signal.SIGINT  # a shell calls that 130
    assert asked.holders() == 1
    assert holder.finish() == 0


def _wait_for_waiter(waiter: Running, asked: Witness, row: Row) -> None:
    """Wait until a command waits: the server tells, and on SQLite its open lock file."""
    if row.kind == "sqlite":
        wait_until(lambda: _imported(waiter.process.pid), "the waiter", 20)
    else:
        wait_until(lambda: asked.waiters() == 1, "the waiter at the server", 20)


def _imported(pid: int) -> bool:
    """Tell whether a process has come as far as to open a lock file."""
    return any(str(link.readlink()).find(".dlock/") >= 0 for link in Path(f"/proc/{pid}/fd").iterdir() if link.exists())


def test_sigterm_ends_a_command_in_order(site: Site) -> None:
    """As an exit, so that `finally` runs; the lock is free."""
    running = site.start("work", "--lock", "--do", "stay").wait_in()
    running.process.terminate()
    assert running.finish() == 128 + signal.SIGTERM


@pytest.mark.slow
def test_tenants_run_beside_one_another(site: Site) -> None:
    """A key from the options; the flag --no-lock; --lock-key says another."""
    first = site.start("nightly", "--tenant", "a", "--stay").wait_in()
    assert site.run("nightly", "--tenant", "b").process.returncode == 0
    assert site.run("nightly", "--tenant", "a").process.returncode == 75
    assert site.run("nightly", "--tenant", "b", "--lock-key", "nightly:a").process.returncode == 75
    assert site.run("nightly", "--tenant", "a", "--no-lock").process.returncode == 0
    assert first.finish() == 0


def test_any_command_runs_under_a_lock(site: Site) -> None:
    """`dlock run`: one of two runs, its exit code and arguments are its own."""
    first = site.start("dlock", "run", "night", "--", "plain", "5", "--stay").wait_in()
    second = site.run("dlock", "run", "night", "--lock-skip", "--", "plain", "5")
    assert (second.process.returncode, second.out) == (0, "")
    assert second.err.startswith("Skipped: 'night' is locked by ")
    assert site.run("dlock", "run", "night", "--", "plain", "5").process.returncode == 75
    assert first.finish() == 5
    again = site.run("dlock", "run", "night", "--lock-timeout", "5", "--", "plain", "6", "--verbosity", "1")
    assert (again.process.returncode, again.out) == (6, "in plain 6 --verbosity 1\n")


@pytest.mark.slow
def test_the_options_of_every_command_are_dlock_s_too(site: Site) -> None:
    """Those that change the process are applied, or refused where that would be too late."""
    holder = site.start("dlock", "run", "night", "--", "plain", "5", "--stay").wait_in()
    silent = site.run("dlock", "run", "night", "--lock-skip", "-v", "0", "--", "plain", "5")
    assert (silent.process.returncode, silent.out + silent.err) == (0, "")
    assert holder.finish() == 5
    for words in (("run", "--settings=nowhere", "k", "--", "plain", "5"), ("--settings", "nowhere", "list")):
        other = site.run("dlock", *words)
        assert other.process.returncode == 1
        assert "No module named 'nowhere'" in other.err
    late = site.run("dlock", "run", "k", "--", "plain", "--settings=nowhere")
    assert (late.process.returncode, late.out) == (1, "")
    assert "as in dlock run --settings=nowhere k -- " in late.err
    for words in (
        ("run", "--settings=shop.settings", "k", "--", "plain", "5"),
        ("--settings", "shop.settings", "list"),
    ):
        assert site.run("dlock", *words).process.returncode == (5 if words[0] == "run" else 0)


@pytest.mark.slow
def test_two_hosts_migrate_once(
    site: Site, asked: Witness, row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first is in its migration, waits, and finds nothing to do."""
    migrate = ("dlock", "run", "migrate", "--lock-timeout", "60", "--", "migrate", "--no-color")
    assert site.run("migrate", "shop", "zero", "--verbosity", "0").process.returncode == 0
    monkeypatch.setenv("SHOP_GATE", str(tmp_path))
    both = [site.start(*migrate)]
    wait_until((tmp_path / "migrating").exists, "the first to migrate", 30)
    both.append(site.start(*migrate))
    _wait_for_waiter(both[1], asked, row)
    (tmp_path / "open").touch()
    assert [running.finish() for running in both] == [0, 0]
    said = [running.out for running in both]
    assert sum("Applying shop.0001_initial... OK" in text for text in said) == 1
    assert sum("No migrations to apply." in text for text in said) == 1
    assert len((tmp_path / "migrating").read_text().split()) == 1
