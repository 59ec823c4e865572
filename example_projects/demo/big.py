"""Spell a worker's name in letters five rows high."""

from __future__ import annotations

__all__ = ["big"]

_LETTERS = {
    " ": ("  ",) * 5,
    "W": ("#   #", "#   #", "# # #", "## ##", "#   #"),
    "0": ("###", "# #", "# #", "# #", "###"),
    "1": (" # ", "## ", " # ", " # ", "###"),
    "2": ("###", "  #", "###", "#  ", "###"),
    "3": ("###", "  #", "###", "  #", "###"),
    "4": ("# #", "# #", "###", "  #", "  #"),
    "5": ("###", "#  ", "###", "  #", "###"),
    "6": ("###", "#  ", "###", "# #", "###"),
    "7": ("###", "  #", "  #", "  #", "  #"),
    "8": ("###", "# #", "###", "# #", "###"),
    "9": ("###", "# #", "###", "  #", "###"),
}


def big(name: str, *, ascii_only: bool = False) -> str:
    """Return five lines that spell `name`: a W and a number, or several of these."""
    dot = "##" if ascii_only else "██"
    letters = [_LETTERS[letter] for letter in name]
    lines = (" ".join(rows) for rows in zip(*letters, strict=True))
    return "\n".join(line.replace(" ", "  ").replace("#", dot) for line in lines)
