"""The ODBC drivers for SQL Server: FreeTDS of the machine, and Microsoft's from PyPI, which need not be installed.

unixODBC reads its list of drivers from the folder that ODBCSYSINI names. The tests, and the programs that they start,
get a list of their own: the machine's, and Microsoft's driver.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

__all__ = ["FREETDS", "MICROSOFT", "drivers"]

FREETDS = "FreeTDS"
MICROSOFT = "ODBC Driver 18 for SQL Server"
MACHINES = {"aarch64": "arm64"}
FAMILIES = {"debian_ubuntu": "debian_version", "suse": "SuSE-release", "rhel": "redhat-release"}


@functools.cache
def drivers() -> tuple[str, ...]:
    """Return the names of the ODBC drivers for SQL Server that can be used here."""
    library = _microsoft()
    if library is not None:
        _register(library)
    try:
        pyodbc = importlib.import_module("pyodbc")  # without unixODBC it cannot be imported
    except ImportError:
        return ()
    return tuple(sorted(name for name in pyodbc.drivers() if name == FREETDS or "SQL Server" in name))


def _microsoft() -> Path | None:
    """Return the driver's file in the package from PyPI, for this system."""
    found = importlib.util.find_spec("mssql_python_odbc")
    if found is None or found.origin is None or sys.platform != "linux":
        return None
    machine = MACHINES.get(platform.machine(), platform.machine())
    family = next((name for name, mark in FAMILIES.items() if Path("/etc", mark).exists()), "debian_ubuntu")
    folder = Path(found.origin).parent / "libs" / "linux" / family / machine / "lib"
    return next(folder.glob("libmsodbcsql-*.so.*"), None)


def _register(library: Path) -> None:
    """Give unixODBC a list of drivers that has Microsoft's too; it reads the list when it is first used."""
    listed = Path(os.environ.get("ODBCSYSINI", "/etc"), "odbcinst.ini")
    before = listed.read_text() if listed.exists() else ""
    if f"[{MICROSOFT}]" in before:
        return
    folder = Path(tempfile.mkdtemp(prefix="dlock-odbc-"))
    atexit.register(_remove, os.getpid(), folder)
    (folder / "odbcinst.ini").write_text(f"{before}\n[{MICROSOFT}]\nDriver={library}\n")
    os.environ["ODBCSYSINI"] = str(folder)


def _remove(pid: int, folder: Path) -> None:
    if os.getpid() == pid:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
