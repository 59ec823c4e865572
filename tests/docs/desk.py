"""A desk with terminals: the programs of a page, as processes in a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from tests.servers import wait_until

from .pages import ROOT


class Program:
    """A running program, what it is given and what it says."""

    def __init__(self, command: list[str] | str, folder: Path, environment: dict[str, str]) -> None:
        self._said = folder / f".said-{len(list(folder.glob('.said-*')))}"
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                shell=isinstance(command, str),
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """All that it has printed so far."""
        return self._said.read_text()

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Wait until it has said something."""
        wait_until(lambda: text in self.said, f"{text!r} in {self.said!r}", seconds)

    def press_enter(self) -> None:
        """Press Enter, as its reader would."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self, seconds: float = 60) -> int:
        """Wait for its end, and return its exit status."""
        return self.process.wait(seconds)

    def clear(self) -> None:
        """Kill it with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.kill()

    def kill(self) -> None:
        """Kill it, and close what it would have read from."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class Desk:
    """Starts programs in one folder, and kills in the end those that are left."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        python_path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"}
        self.environment.update(environment)
        self._programs = ExitStack()

    def start(self, *command: str, **environment: str) -> Program:
        """Start a program; `python` is this Python."""
        words = [sys.executable if word == "python" else word for word in command]
        program = Program(words, self.folder, {**self.environment, **environment})
        self._programs.callback(program.clear)
        return program

    def shell(self, line: str, **environment: str) -> Program:
        """Start a line as a shell would."""
        program = Program(line, self.folder, {**self.environment, **environment})
        self._programs.callback(program.clear)
        return program

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        """Run a program to its end; return its exit status and what it said."""
        program = self.start(*command, **environment)
        return program.end(), program.said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._programs.close()
