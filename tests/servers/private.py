"""A server that a test may kill, freeze and restart, because it is the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]
from sqlalchemy.exc import OperationalError

from . import guard, sandbox
from .base import Server
from .sandbox import ServerError, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import sqlalchemy as sa

DATABASE = "dlock"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
LOG_LINES = 20


class PrivateServer(Server):
    """A server in a temporary folder of its own, which does not outlive the process that made it."""

    stop_signal = signal.SIGTERM

    def __init__(self, address: sa.URL, settings: Mapping[str, str]) -> None:
        """Choose a port and a folder; nothing is started or created yet."""
        super().__init__(address.set(host="127.0.0.1", port=sandbox.free_port(), database=DATABASE))
        self.settings = settings
        self.folder = sandbox.base_folder() / f"{self.kind}-{self.port}"
        self.data = self.folder / "data"
        self._account = sandbox.unprivileged_account() if self._refuses_root() else None
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _create(self) -> None:
        """Fill the empty data folder."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line that runs the server in the foreground."""

    @staticmethod
    def _refuses_root() -> bool:
        return False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Return the process id of the server's main process."""
        return self._process.pid if self._process and self.running else None

    def start(self) -> None:
        if self.running:
            return
        if not self.data.exists():
            self._create_or_nothing()
        guard.kill_all(self.folder)  # what is left of a server whose main process alone was killed
        self._process = self._popen(self._command())
        try:
            wait_until(self._answers, f"{self.kind} to start", START_SECONDS)
        except ServerError as error:
            log = self._last_lines()
            self.kill()
            raise ServerError(f"{error}\n{log}") from error

    def stop(self, *, final: bool = False) -> None:
        if self._process and self.running:
            self.thaw()
            self._process.send_signal(self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()
        if final:
            guard.remove(self.folder)

    def kill(self) -> None:
        # Frozen first: else a survivor could still tell its client that the server is going down.
        self.freeze()
        guard.kill_all(self.folder)
        if self._process:
            self._process.wait()

    def freeze(self) -> None:
        if self._process and self.running:
            self._process.send_signal(signal.SIGSTOP)  # first the one that starts the others
        wait_until(self._signal_awake, f"{self.kind} to freeze")

    def thaw(self) -> None:
        for process in guard.processes_in(self.folder):
            with suppress(psutil.Error):
                process.resume()

    def log_text(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def _last_lines(self) -> str:
        return "\n".join(self.log_text().splitlines()[-LOG_LINES:])

    def _signal_awake(self) -> bool:
        """Send SIGSTOP to the processes that are not stopped yet, and tell whether there were none."""
        awake = 0
        for process in guard.processes_in(self.folder):
            with suppress(psutil.Error):
                if process.status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
                    process.suspend()
                    awake += 1
        return awake == 0

    def _answers(self) -> bool:
        if not self.running:
            raise ServerError(f"{self.kind} ended while starting")
        with suppress(OperationalError), self.connect():
            return True
        return False

    def _create_or_nothing(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o755)
        try:
            self._make_own_folder(self.data)
            self._create()
        except BaseException:
            guard.remove(self.folder)
            raise

    def _make_own_folder(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        self._hand_over(path)

    def _hand_over(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _run(self, command: list[str], stdin: str = "") -> None:
        """Run a program in the server's folder, as the server's account, to its end."""
        process = self._popen(command, subprocess.PIPE)
        process.communicate(stdin.encode(), timeout=START_SECONDS)
        if process.returncode:
            raise ServerError(f"{command[0]} failed ({process.returncode})\n{self._last_lines()}")

    def _popen(self, command: list[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        account = self._account
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.data,
                env={"PATH": sandbox.SEARCH_PATH, "HOME": str(self.folder), "LC_ALL": "C", "TZ": "UTC"},
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C in the terminal does not reach it
                user=account and account.pw_uid,
                group=account and account.pw_gid,
                extra_groups=[] if account else None,
            )
