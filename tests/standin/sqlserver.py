"""A program that pretends to be SQL Server: `python -m tests.standin.sqlserver PORT LATENCY`."""

from __future__ import annotations

import itertools
import queue
import socket
import socketserver
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from . import wire
from .locks import Client
from .tsql import Batch, Login, Server, SqlError
from .wire import tokens

SPIDS = itertools.count(51)
SERVER = Server()
LATENCY = float(sys.argv[2])
"""Seconds that an answer takes as long as a session is being opened: until it first asks for a lock."""


class Session(socketserver.StreamRequestHandler):
    """One client: this thread hears it, another works for it."""

    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Make the session."""
        super().setup()
        self.login = Login(SERVER, Client(next(SPIDS)), self.hang_up)
        self.latency = LATENCY
        self.prepared: dict[int, tuple[str, str]] = {}
        self.work: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()

    def handle(self) -> None:
        """Hear the client until it hangs up, also while it waits."""
        worker = threading.Thread(target=self.serve, daemon=True)
        with suppress(OSError):
            for kind, body in wire.Reader(self.rfile).messages():  # type: ignore[arg-type]
                if kind == wire.PRELOGIN:
                    self.send(tokens.prelogin())
                elif kind == wire.LOGIN:
                    SERVER.logins[self.login.client.number] = self.login
                    time.sleep(self.latency)
                    version = min(struct.unpack_from("<I", body, 4)[0], 0x74000004)
                    self.send(tokens.logged_in(version))
                    worker.start()
                elif kind == wire.ATTENTION:
                    SERVER.locks.cancel(self.login.client)
                    self.work.put((kind, body))
                else:
                    self.work.put((kind, body))
        SERVER.logins.pop(self.login.client.number, None)
        SERVER.locks.end(self.login.client)
        self.work.put(None)

    def serve(self) -> None:
        """Answer one message after the other."""
        with suppress(OSError):
            while (message := self.work.get()) is not None:
                kind, body = message
                before = self.login.trancount
                if b"s\0p\0_\0g\0e\0t\0a\0p\0p\0l\0o\0c\0k\0" in body:
                    self.latency = 0
                time.sleep(self.latency)
                answer = self.answer(kind, body)
                if bool(before) != bool(self.login.trancount):
                    answer = tokens.transaction(begins=not before) + answer
                if self.login.client.cut:
                    return
                self.send(answer)

    def answer(self, kind: int, body: bytes) -> bytes:
        """Return the answer to one message; what was cancelled has none but the confirmation."""
        if kind == wire.ATTENTION:
            self.login.client.cancelled = False
            return tokens.done(status=wire.ATTENTION_SEEN)
        if kind == wire.TRANSACTION:
            ends, begins = wire.transaction(body)
            if ends:
                self.login.end_transaction()
            self.login.trancount = int(begins or (self.login.trancount > 0))
            return tokens.done()
        if kind == wire.RPC:
            return self.call(wire.Call.parse(body))
        found, failed = self.run(wire.without_headers(body).decode("utf-16-le"), {}, 0xFD)
        return found + tokens.done(status=wire.ERROR if failed else 0)

    def call(self, call: wire.Call) -> bytes:
        """Run a remote procedure call."""
        handle = None
        if call.procedure == "sp_unprepare":
            return tokens.called(None, failed=False)
        if call.procedure == "[sys].sp_datatype_info_100":  # Microsoft's driver, for pyodbc: which types there are
            return tokens.rows([], kind=0xFF, more=True) + tokens.called(None, failed=False)
        if call.procedure == "sp_execute":
            declared, statement = self.prepared[call.values[0]]
            found, failed = self.run(statement, wire.named(declared, call.values[1:]), 0xFF)
            return found + tokens.called(None, failed=failed)
        if call.procedure in ("sp_prepare", "sp_prepexec"):
            handle = len(self.prepared) + 1
            self.prepared[handle] = (call.values[1], call.values[2])
            call.values.pop(0)
        if call.procedure == "sp_prepare":
            return tokens.called(handle, failed=False)
        found, failed = self.run(*call.named, 0xFF)
        return found + tokens.called(handle, failed=failed)

    def run(self, sql: str, values: dict[str, Any], kind: int) -> tuple[bytes, bool]:
        """Run a batch, and tell whether it failed."""
        SERVER.statements.append(sql)
        found = b""
        try:
            for rows in Batch(self.login, sql, values).run():
                if self.login.client.cancelled:
                    return b"", False
                found += tokens.rows(rows, kind=kind, more=True)
        except SqlError as error:
            return found + tokens.error(error.number, str(error), error.severity), True
        return found, False

    def send(self, body: bytes) -> None:
        """Send a message."""
        self.request.sendall(wire.packets(body))

    def hang_up(self) -> None:
        """Let the server end the session."""
        SERVER.locks.end(self.login.client)
        with suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)


class Port(socketserver.ThreadingTCPServer):
    """The port, where each client has a thread."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    Port(("127.0.0.1", int(sys.argv[1])), Session).serve_forever()
