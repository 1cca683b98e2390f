# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server on a unix socket, where the daemon will stand: it records calls and answers as it is told."""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer. *after* is waited for before it is given; *length* False leaves Content-Length out."""

    status: int = 200
    body: bytes = b""
    after: threading.Event | threading.Barrier | None = None
    length: bool = True


@dataclass
class Heard:
    """What one request said."""

    path: str
    headers: Message
    body: bytes

    @property
    def call(self) -> dict[str, Any]:
        """The body as the daemon will read it."""
        return json.loads(self.body)


@dataclass
class Listener:
    """The server's script and its minutes: one reply after the other, the last one again and again."""

    replies: list[Reply]
    heard: list[Heard] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_reply(self, heard: Heard) -> Reply:
        """Note a request and choose its reply."""
        with self.lock:
            self.heard.append(heard)
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 16
    listener: Listener

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a shim that hung up: that is some tests' point."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        """Read it all, then answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        reply = self.server.listener.next_reply(Heard(self.path, self.headers, body))
        if reply.after:
            reply.after.wait(30)
        self.send_response(reply.status)
        if reply.length:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def listening(folder: Path, *replies: Reply) -> Iterator[Listener]:
    """Serve *folder*/multus.sock."""
    listener = Listener(list(replies or [Reply()]))
    with _Server(str(folder / "multus.sock"), _Handler) as server:
        server.listener = listener
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listener
        finally:
            server.shutdown()
            thread.join()
            (folder / "multus.sock").unlink()
