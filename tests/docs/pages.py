"""What the pages show: examples to run as they stand, files by name, and lines for a shell."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
# A line that ends in "`name`:" right before a block says that the block is that file.
BLOCK = re.compile(
    r"(?:`(?P<file>[\w./-]+)`:\n\n)?^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; `file` is None for an example that is complete in itself."""

    file: str | None
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found = BLOCK.finditer(page.read_text())
    return [Block(one["file"], one["language"], textwrap.dedent(one["text"])) for one in found]


def files(page: str) -> dict[str, str]:
    """Return the files that a page shows, by name."""
    return {block.file: block.text for block in blocks(DOCS / page) if block.file is not None}


def write_files(page: str, folder: Path) -> None:
    """Make the files that a page shows."""
    for name, text in files(page).items():
        folder.joinpath(name).write_text(text)


def commands(page: str) -> list[str]:
    """Return the lines that a page shows for a shell: those indented by four, outside of fenced blocks."""
    outside = BLOCK.sub("", DOCS.joinpath(page).read_text())
    return [line.partition("  # ")[0].strip() for line in re.findall(r"^ {4}(\S.*)$", outside, flags=re.MULTILINE)]
