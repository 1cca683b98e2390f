# SPDX-License-Identifier: Apache-2.0
"""A loopback HTTP server that plays an API server with a script: one step answers one request."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """One connection; the script decides what happens to it."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PATCH(self) -> None:
        self.answer()

    def answer(self) -> None:
        """Note the request and run the next step; the last one is repeated."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        script = self.server.script
        script.seen.append((self.command, self.path, self.headers.get("Authorization", ""), json.loads(body or "null")))
        step = script.steps[min(len(script.seen), len(script.steps)) - 1]
        step(self)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


Step = Callable[[Handler], None]


@dataclass
class Script:
    """The steps to come, the requests that were seen, and an event that is set when the test is over."""

    steps: list[Step]
    seen: list[tuple[str, str, str, Any]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    url: str = ""


class Server(ThreadingHTTPServer):
    """The server of one script."""

    daemon_threads = True
    block_on_close = False
    script: Script

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a client go quietly: leaving early is what the tests are about."""


@contextmanager
def playing(*steps: Step) -> Iterator[Script]:
    """Play the steps on a port of loopback."""
    server = Server(("127.0.0.1", 0), Handler)
    server.script = script = Script(list(steps), url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        script.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def reply(status: int, body: object = None, **headers: str) -> Step:
    """Answer with a status, a body (JSON unless it is bytes) and headers (`Retry_After` is Retry-After)."""

    def step(handler: Handler) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(raw)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(raw)

    return step


def failure(status: int, reason: str, message: str, **details: object) -> Step:
    """Answer with the Status object of an API server."""
    return reply(
        status, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "details": details}
    )


def silence(handler: Handler) -> None:
    """Take the request and never answer."""
    handler.server.script.over.wait(60)


def drip(handler: Handler) -> None:
    """Answer one byte of a header at a time, for ever, faster than any socket times out."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.script.over.wait(0.02):
        handler.wfile.write(b"a")


def reset(handler: Handler) -> None:
    """Close the connection with a TCP reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.shutdown(socket.SHUT_RD)
    handler.connection.close()
    handler.close_connection = True
