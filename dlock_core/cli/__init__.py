"""The `dlock` command line; needs the extra `dlock-suite[cli]`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the `dlock` command line and exit with its status."""
    # Imported here: the core installs without click and rich, and whoever lacks
    # them should read what to install, not a traceback.
    try:
        from .group import dlock
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"click", "rich"}:
            raise
        sys.stderr.write(f"{missing} is missing: pip install 'dlock-suite[cli]'\n")
        sys.exit(2)
    dlock(prog_name="dlock")
