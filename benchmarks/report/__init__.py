"""What becomes of the figures: tables in the terminal, a page and a picture in the docs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .markdown import page
from .plot import plot
from .terminal import print_tables

if TYPE_CHECKING:
    from pathlib import Path

    from ..figures import Figures

__all__ = ["print_tables", "write_docs"]


def write_docs(figures: Figures, folder: Path) -> None:
    """Write the page and the picture."""
    folder.mkdir(exist_ok=True)
    (folder / "benchmarks.md").write_text(page(figures))
    (folder / "benchmarks.svg").write_text(plot(figures))
