# SPDX-License-Identifier: Apache-2.0
"""The daemon's socket: HTTP over a unix socket with multus-cni's paths, bodies and status codes."""

import json
import os
import socket
import socketserver
import struct
import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Protocol

from multus_py.agent.serving.silent_connections import SilentConnections
from multus_py.cni import result as results
from multus_py.cni import serve
from multus_py.cni.errors import CniError, Code, to_cni_error
from multus_py.state import spool

# Our own shim asks for the very text of standard output; multus-cni's wants the result of 1.1.0 under "Result".
OUR_SHIM = "X-Multus-Py-Shim"
BODY_LIMIT = 24 * 1024 * 1024  # bytes: a config of 16 MiB in base64, and an environment
_READ_TIMEOUT = 30  # seconds for a shim to say what it wants, and again to take the answer
_SILENT = 256  # connections whose request was not read yet
_SIZE_DIGITS = 20  # of a Content-Length: Python reads no number of thousands
_QUEUE = 1024
_UNBOUNDED = ("STATUS", "VERSION")  # verbs that need no slot
_METHODS = {"/cni": ("POST",), "/delegate": ("POST",), "/healthz": ("GET", "POST"), "/readyz": ("GET", "POST")}


class Service(Protocol):
    """What the socket needs of the daemon."""

    def ready(self) -> bool:
        """Tell whether ADD, CHECK, STATUS and GC are served."""

    def cni(self, env: dict[str, str], stdin: bytes) -> dict[str, Any] | None:
        """Answer a runtime's call; the result of ADD is in the caller's version."""

    def delegate(self, env: dict[str, str], stdin: bytes, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Attach or detach one more network of a running pod."""


class NotReady(CniError):
    """The daemon does not serve this verb yet."""


@dataclass(frozen=True)
class Reply:
    """A status and a body."""

    status: HTTPStatus
    body: bytes = b""


def listen(path: Path, service: Service, connections: int) -> "Server":
    """Bind the socket at *path* (0600 in a folder of 0700); an existing one is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        return Server(str(path), service, connections)
    finally:
        os.umask(mask)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A thread for each connection; at most *connections* calls at once, begun when their request was read."""

    daemon_threads = True
    request_queue_size = _QUEUE
    block_on_close = False

    def __init__(self, path: str, service: Service, connections: int) -> None:
        self.service = service
        self.silent = SilentConnections(_SILENT, _READ_TIMEOUT)
        self._places = threading.BoundedSemaphore(connections)
        self._open = 0
        self._closed = threading.Condition()
        super().__init__(path, _Handler)

    def place(self, verb: str) -> AbstractContextManager[object]:
        """Hold a place for a call of this *verb* for the time of the block."""
        return nullcontext() if verb in _UNBOUNDED else self._places

    def service_actions(self) -> None:
        """Close connections that send no request in time; called twice a second."""
        self.silent.close_late()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002  the base class's shape
        """Let root and our own user in (SO_PEERCRED: unix(7))."""
        credentials = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return struct.unpack("3i", credentials)[1] in (0, os.geteuid())

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread for one connection."""
        self.silent.add(request)
        with self._closed:
            self._open += 1
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._left(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._left(request)

    def _left(self, request: Any) -> None:
        self.silent.remove(request)
        with self._closed:
            self._open -= 1
            self._closed.notify_all()

    def finish(self, seconds: float) -> None:
        """Stop: unlink the socket, answer within *seconds* every connection that was made before, then close."""
        Path(str(self.server_address)).unlink(missing_ok=True)
        self.shutdown()
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                request, address = self.get_request()
                if self.verify_request(request, address):
                    self.process_request(request, address)
                else:
                    self.shutdown_request(request)
        with self._closed:
            self._closed.wait_for(lambda: not self._open, seconds)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a shim that went away go."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _READ_TIMEOUT
    server_version = "multus-py"

    def do_GET(self) -> None:
        self._send(self._reply("GET"))

    def do_POST(self) -> None:
        self._send(self._reply("POST"))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: each attachment has its own line."""

    def _reply(self, method: str) -> Reply:
        methods = _METHODS.get(self.path)
        if methods is None:
            return Reply(HTTPStatus.NOT_FOUND)
        if method not in methods:
            return Reply(HTTPStatus.METHOD_NOT_ALLOWED, b"Method not allowed\n")
        return self._call() if self.path in ("/cni", "/delegate") else self._health()

    def _health(self) -> Reply:
        well = self.path == "/healthz" or self.server.service.ready()
        return Reply(HTTPStatus.OK if well else HTTPStatus.INTERNAL_SERVER_ERROR)

    def _call(self) -> Reply:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal():
            return Reply(HTTPStatus.LENGTH_REQUIRED)
        if len(size) > _SIZE_DIGITS or int(size) > BODY_LIMIT:
            return Reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        stdin = b""
        try:
            body = self._body(int(size))
            self.server.silent.remove(self.connection)
            env, stdin = spool.request(body)
            with self.server.place(env.get("CNI_COMMAND", "")):
                result = self._dispatch(env, stdin, body)
            return self._answer(result)
        except CniError as error:
            unready = isinstance(error, NotReady) and self.headers.get(OUR_SHIM)
            status = HTTPStatus.SERVICE_UNAVAILABLE if unready else HTTPStatus.BAD_REQUEST
            return Reply(status, _json(error.to_json(serve.version_of(stdin))))
        except Exception as error:  # noqa: BLE001  the boundary: the runtime gets an error that it can read
            serve.log_unexpected_error(error)
            return Reply(HTTPStatus.BAD_REQUEST, _json(to_cni_error(error).to_json(serve.version_of(stdin))))

    def _body(self, size: int) -> bytes:
        body = b""
        with suppress(TimeoutError):
            body = self.rfile.read(size)
        if len(body) < size:
            raise CniError(Code.DECODE, "the request is not whole", f"it has {_READ_TIMEOUT} s to come")
        return body

    def _dispatch(self, env: dict[str, str], stdin: bytes, body: bytes) -> dict[str, Any] | None:
        if self.path == "/cni":
            return self.server.service.cni(env, stdin)
        asked = json.loads(body).get("interfaceAttributes") or {}
        if not isinstance(asked, dict):
            raise CniError(Code.DECODE, "the request's 'interfaceAttributes' must be an object")
        return self.server.service.delegate(env, stdin, asked)

    def _answer(self, result: dict[str, Any] | None) -> Reply:
        if result is None:
            return Reply(HTTPStatus.OK)
        if self.headers.get(OUR_SHIM):
            return Reply(HTTPStatus.OK, _json(result) + b"\n")
        return Reply(HTTPStatus.OK, _json({"Result": results.write(results.read(result), "1.1.0")}))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()
