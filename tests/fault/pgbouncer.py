"""A real PgBouncer of the tests' own, before a PostgreSQL server."""

from __future__ import annotations

import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.servers import Server, wait_until
from tests.servers.base import Addressed
from tests.servers.sandbox import base_folder, free_port, program, unprivileged_account

__all__ = ["PgBouncer"]


class PgBouncer(Addressed):
    """Pools sessions of a server; `mode` is PgBouncer's own word for how."""

    def __init__(self, server: Server, mode: str, **settings: str) -> None:
        port = free_port()
        super().__init__(server.address.set(host="127.0.0.1", port=port))
        self.folder = base_folder() / f"pgbouncer-{port}"
        self._settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": "4",
            "ignore_startup_parameters": "extra_float_digits",
            "server_reset_query": "DISCARD ALL",
            **settings,
        }
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def installed() -> Path | None:
        """Return the program, if the machine has it."""
        return program("pgbouncer")

    def __enter__(self) -> Self:
        self.folder.mkdir()
        config = self.folder / "pgbouncer.ini"
        target = f"host={self._server.host} port={self._server.port} user=postgres"
        settings = "\n".join(f"{name} = {value}" for name, value in self._settings.items())
        config.write_text(f"[databases]\n* = {target}\n[pgbouncer]\n{settings}\n")
        account = unprivileged_account()
        self._process = subprocess.Popen(
            [str(self.installed()), "-q", str(config)],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            extra_groups=[] if account else None,
        )
        wait_until(self._answers, "PgBouncer to start")
        return self

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
            return True
        return False

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
