"""Locked commands from Python: `call_command`, classes and their mistakes."""

from __future__ import annotations

import io
import signal
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.test.utils import override_settings

from dlock_core import LockLostError
from dlock_django import CommandLocked, CommandLockLost, LockedCommand, LockedCommandMixin, is_locked
from dlock_django.test import hold_lock
from tests.contract.witnesses import Witness
from tests.servers import wait_until


class Simple(LockedCommand):
    """Does what a test wants."""

    requires_system_checks = ()
    deed = staticmethod(lambda: None)

    def handle(self, **options: Any) -> None:
        """Do it."""
        assert not [name for name in options if "lock" in name], "our options reached the command"
        self.deed()


def make(deed: Any, base: type[LockedCommand] = Simple, **attributes: Any) -> LockedCommand:
    """Make a command."""
    made: LockedCommand = type("Made", (base,), {"deed": staticmethod(deed), **attributes})()
    return made


def test_a_held_lock_is_an_error_that_can_be_caught(alias: str) -> None:
    """With key, holder and exit code; it is a CommandError."""
    command = make(lambda: pytest.fail("ran"))
    with hold_lock("k", using=alias), pytest.raises(CommandLocked, match="'k' is locked by django on ") as caught:
        call_command(command, lock=True, lock_key="k", lock_database=alias)
    assert isinstance(caught.value, CommandError)
    assert (caught.value.key, caught.value.returncode) == ("k", 75)
    assert "session" in caught.value.holder


def test_options_of_call_command_are_those_of_the_shell(alias: str) -> None:
    """`lock=False` is `--no-lock`; a misspelt one is a TypeError."""
    locked: list[bool] = []
    command = make(lambda: locked.append(is_locked("k", using=alias)), lock_key="k", lock_database=alias)
    call_command(command, lock=True)
    call_command(command, lock_timeout=5)
    call_command(command)
    command.lock_by_default = True
    call_command(command)
    call_command(command, lock=False)
    call_command(command, no_lock=True)
    assert locked == [True, True, False, True, False, False]
    with pytest.raises(TypeError, match="lock_tmeout"):
        call_command(command, lock_tmeout=5)
    with pytest.raises(CommandError, match="decide for one"):
        call_command(command, no_lock=True, lock_timeout=5)


def test_a_command_that_lost_its_lock_does_not_end_well(alias: str, server_of: Witness) -> None:
    """It has exit code 74; its own error goes first."""

    def fail() -> None:
        server_of.break_lock()
        raise CommandError("broken")

    said = io.StringIO()

    def lose() -> None:
        server_of.break_lock()
        if alias != "default":  # SQLite has nothing that could tell before the end
            wait_until(lambda: said.getvalue().startswith("Lost the lock 'k': another process may run"), "the news", 10)

    with pytest.raises(CommandLockLost, match="lost") as caught:
        call_command(make(lose), lock=True, lock_key="k", lock_database=alias, stderr=said)
    assert caught.value.returncode == 74
    with pytest.raises(CommandError, match="broken"):
        call_command(make(fail), lock=True, lock_database=alias)


def test_a_loss_that_the_body_tells_is_the_body_s(default_alias: str) -> None:
    """Only our own lock makes a CommandLockLost."""

    def fail() -> None:
        raise LockLostError("inner")

    with pytest.raises(LockLostError, match="inner"):
        call_command(make(fail), lock=True)


def test_the_default_key_names_app_and_command(default_alias: str) -> None:
    """So that two apps may have a command of one name."""
    with hold_lock("command:shop.work"), pytest.raises(CommandLocked):
        call_command("work", lock=True)


def test_a_class_decides_on_its_own_conflict(default_alias: str) -> None:
    """Exit code and skipping as attributes; --lock-skip goes to stderr."""
    said = io.StringIO()
    with hold_lock("k"):
        with pytest.raises(CommandLocked) as caught:
            call_command(make(lambda: None, lock_by_default=True, lock_key="k", lock_exit_code=9))
        assert caught.value.returncode == 9
        with override_settings(DLOCK_CONFLICT_EXIT_CODE=8), pytest.raises(CommandLocked) as caught:
            call_command(make(lambda: None, lock_by_default=True, lock_key="k"))
        assert caught.value.returncode == 8
        skips = make(lambda: pytest.fail("ran"), lock_by_default=True, lock_key="k", lock_on_conflict="skip")
        call_command(skips, stderr=said)
    assert said.getvalue().startswith("Skipped: 'k' is locked by ")


def test_a_key_can_be_computed(default_alias: str) -> None:
    """By get_lock_key, which sees the command's own options."""
    command = make(
        lambda: None, lock_by_default=True, get_lock_key=lambda self, options: ("level", options["verbosity"])
    )
    with hold_lock(("level", 2)):
        with pytest.raises(CommandLocked):
            call_command(command, verbosity=2)
        call_command(command, verbosity=1)


def test_a_key_that_is_none_is_one_line(default_alias: str) -> None:
    """And so is whatever else is wrong with the lock; nothing runs."""
    with pytest.raises(CommandError, match="empty; give it at least one character"):
        call_command(make(lambda: pytest.fail("ran")), lock=True, lock_key="")
    with pytest.raises(CommandError, match="has nothing for tenant"):
        call_command(make(lambda: pytest.fail("ran"), lock_key="a:{tenant}"), lock=True)
    with pytest.raises(CommandError, match="nowhere"):
        call_command(make(lambda: pytest.fail("ran")), lock=True, lock_database="nowhere")


@pytest.mark.parametrize(
    "word", ["timeout=-1", "timeout=nan", "timeout=1m", "exit-code=256", "exit-code=-1", "exit-code=x"]
)
def test_a_wrong_value_is_refused(default_alias: str, word: str) -> None:
    """By the parser, before anything runs, with what to give."""
    option, _, value = word.partition("=")
    with pytest.raises(CommandError, match=f"Error: argument --lock-{option}: {value}: give "):
        call_command(make(lambda: pytest.fail("ran")), f"--lock-{word}")


def test_the_mixin_must_come_first(default_alias: str) -> None:
    """Behind BaseCommand it would never be asked."""
    with pytest.raises(TypeError, match="before the other base classes"):
        type("Wrong", (BaseCommand, LockedCommandMixin), {})


def test_a_flag_of_the_command_s_own_is_reported(default_alias: str) -> None:
    """Two meanings of --lock cannot be."""

    def add_arguments(self: Any, parser: CommandParser) -> None:
        parser.add_argument("--lock")

    with pytest.raises(CommandError, match="a flag of its own"):
        call_command(make(lambda: None, add_arguments=add_arguments))


def test_a_flag_of_the_command_s_own_is_reported_in_one_line_with_what_to_do(
    default_alias: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line, where Django would show a traceback."""

    def add_arguments(self: Any, parser: CommandParser) -> None:
        parser.add_argument("--lock")

    with pytest.raises(SystemExit) as ended:
        make(lambda: None, add_arguments=add_arguments).run_from_argv(["manage.py", "old"])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Rename it, or leave the mixin and run `manage.py dlock run KEY -- old`" in line


def test_a_handler_of_sigterm_stays(default_alias: str) -> None:
    """The program's own, during and after the command; the default comes back."""

    def own(*_: object) -> None: ...

    seen: list[Any] = []
    command = make(lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    call_command(command, lock=True)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, own)
    try:
        call_command(command, lock=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert seen[0] not in (own, signal.SIG_DFL)
    assert seen[1] is own


def test_dlock_run_works_from_python(default_alias: str) -> None:
    """The command's own exit goes through."""
    with pytest.raises(SystemExit) as caught:
        call_command("dlock", "run", "night", "--", "plain", "5", stdout=io.StringIO())
    assert caught.value.code == 5
    with hold_lock("night"), pytest.raises(CommandLocked):
        call_command("dlock", "run", "night", "--", "plain", "5")
