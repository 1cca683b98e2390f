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
from queue import SimpleQueue
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
        if script.over.is_set():  # a connection that is left from before
            self.close_connection = True
            return
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
def playing(*steps: Step, port: int = 0) -> Iterator[Script]:
    """Play the steps on a port of loopback, a free one unless it is given."""
    server = Server(("127.0.0.1", port), Handler)
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


def hold(handler: Handler) -> None:
    """Say nothing more, and keep the connection."""
    handler.server.script.over.wait(60)
    handler.close_connection = True


def end(handler: Handler) -> None:
    """Come to the regular end of a stream."""
    handler.wfile.write(b"0\r\n\r\n")


def break_off(handler: Handler) -> None:
    """Close the connection in the middle of a chunk."""
    handler.wfile.write(b"5\r\n{")
    handler.close_connection = True


def streamed(*lines: object, then: Step = hold) -> Step:
    """Answer a watch: each line is a chunk (an object becomes JSON, bytes stay as they are), then what comes last."""

    def step(handler: Handler) -> None:
        begin(handler)
        for line in lines:
            chunk(handler, line)
        then(handler)

    return step


def fed(lines: "SimpleQueue[object]") -> Step:
    """Answer a watch with what is put into the queue, at the time when it is put; a step in it comes last."""

    def step(handler: Handler) -> None:
        begin(handler)
        while not callable(line := lines.get()):
            chunk(handler, line)
        line(handler)

    return step


def begin(handler: Handler) -> None:
    """Send the headers of a stream."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()


def chunk(handler: Handler, line: object) -> None:
    """Send one chunk (RFC 9112, 7.1)."""
    raw = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
    handler.wfile.write(b"%x\r\n%b\r\n" % (len(raw), raw))


def routed(**routes: list[Step]) -> Step:
    """Answer by what is asked: pods, watch_pods, definitions, watch_definitions, other; the last step is repeated."""
    lock = threading.Lock()
    empty = reply(200, {"metadata": {"resourceVersion": "1"}, "items": []})
    plan = {"pods": [empty], "definitions": [empty], "watch_pods": [streamed()], "watch_definitions": [streamed()]}
    plan |= {"other": [reply(404, {})], **routes}

    def step(handler: Handler) -> None:
        steps = plan[route(handler.path)]
        with lock:
            now = steps.pop(0) if len(steps) > 1 else steps[0]
        now(handler)

    return step


def route(path: str) -> str:
    """Return which list of `routed` answers a request for *path*."""
    bare, _, query = path.partition("?")
    kind = {"/api/v1/pods": "pods", "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions": "definitions"}.get(bare)
    return (f"watch_{kind}" if "watch=true" in query else kind) if kind else "other"
