"""The README is true: its examples run, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, blocks

README = ROOT / "README.md"
EXAMPLES = {
    f"{page.name}-{number}": block.text
    for page in PAGES
    for number, block in enumerate(block for block in blocks(page) if block.language == "python" and not block.file)
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_each_example_runs_as_it_stands(example: str, tmp_path: Path) -> None:
    """In an empty folder, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_are_examples() -> None:
    """The pattern still finds them."""
    assert len(EXAMPLES) >= 4


def test_each_make_command_exists() -> None:
    """No page asks to run what is not there."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in (README, ROOT / "CONTRIBUTING.md"):
        named = re.findall(r"^ {4}make ((?:[a-z]+ )*[a-z]+)", page.read_text(), flags=re.MULTILINE)
        assert named
        assert {target for line in named for target in line.split()} <= targets
