# SPDX-License-Identifier: Apache-2.0
"""The way to an API server: the kubeconfig as it is now, and the connections that were opened with it.

TLS, proxies and every kind of credentials come from the kubernetes package. Only its configuration and its connection
pool are used: the generated API classes know one release of Kubernetes, while the paths that we ask for are the same
from 1.20 on.
"""

import importlib
import json
import logging
import os
import socket
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

from multus_py.cni.errors import CniError, Code
from multus_py.kube import manifests
from multus_py.kube.http import Reply, Request, Retryable, Untrusted, interpret_reply, unreachable
from multus_py.kube.store import Unavailable

COMPONENT = "multus-py"
Stamp = tuple[int, ...]
REPLY_LIMIT = 64 * 1024 * 1024  # bytes of a reply, or of one line of a watch, that we are ready to read
CONNECT_LIMIT = 5.0  # seconds for the connection of a watch
_PACKAGES = ("kubernetes.client.rest", "kubernetes.config", "urllib3.connection", "urllib3.connectionpool")
_door = threading.Lock()  # held by who imports the packages


class Unauthorized(CniError):
    """The API server does not know us: HTTP 401, with credentials that were read just now."""


class _Sockets:
    """The open sockets of an account, those of a session before included.

    A thread that waits for an answer can only be woken by shutting its socket down, and urllib3 hands the socket out to
    nobody while it waits for the headers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: WeakSet[socket.socket] = WeakSet()
        self._over = False

    def add(self, one: socket.socket) -> None:
        """Remember a socket that was just opened; break it at once when all were broken meanwhile."""
        with self._lock:
            self._open.add(one)
        if self._over:
            self.cut()

    def cut(self) -> None:
        """Break all of them."""
        self._over = True
        with self._lock:
            for each in self._open:
                with suppress(OSError):  # it was closed meanwhile
                    each.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class _Session:
    """The kubeconfig as it was when it was read, and the connections opened with it."""

    configuration: Any
    pool: Any  # urllib3's pool manager, made by the kubernetes package
    complaints: tuple[str, ...] = ()
    stamp: Stamp = ()  # of the file

    def send(self, request: Request, seconds: float) -> Reply:
        """Send one request and read the reply; *seconds* bound every single wait for the network."""
        # An address that does not answer must leave time for a retry; a slow reply may take all of it.
        raw = self._sent(request, max(seconds / 3, min(1.0, seconds)), seconds)
        try:
            return Reply(raw.status, raw.headers, self._body(request, raw))
        finally:
            raw.release_conn()

    @contextmanager
    def watch(self, request: Request, silence: float) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        """Send one request; give the reply, and, when it is a good one, its lines as they come in place of a body."""
        raw = self._sent(request, CONNECT_LIMIT, silence)
        try:
            body = b"" if 200 <= raw.status < 300 else self._body(request, raw)
            yield Reply(raw.status, raw.headers, body), self._lines(request, raw)
        finally:
            raw.close()  # what was not read to its end must not go back to the pool
            raw.release_conn()

    def _sent(self, request: Request, connect: float, read: float) -> Any:
        """Send the request and return urllib3's response, whatever its status."""
        import urllib3

        with self._told(request):
            return self.pool.request(
                request.method,
                self.configuration.host + request.path,
                body=None if request.body is None else json.dumps(request.body),
                headers=self._headers(request),
                timeout=urllib3.Timeout(connect=connect, read=read),
                retries=False,
                redirect=False,
                preload_content=False,
            )

    def _body(self, request: Request, raw: Any) -> bytes:
        with self._told(request):
            return bytes(raw.read(REPLY_LIMIT))

    def _lines(self, request: Request, raw: Any) -> Iterator[bytes]:
        """Yield each complete line; what is left at the end without a newline is no line."""
        rest, pieces = b"", raw.stream(65536)
        while True:
            with self._told(request):
                piece = next(pieces, None)
            if piece is None:
                return
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
            if len(rest) > REPLY_LIMIT:
                raise Retryable(f"cannot {request.doing}: the API server sends a line of more than {REPLY_LIMIT} bytes")

    @contextmanager
    def _told(self, request: Request) -> Iterator[None]:
        """Turn the errors of the packages into ours."""
        import urllib3
        from kubernetes.config import ConfigException

        host = self.configuration.host
        try:
            yield
        except urllib3.exceptions.LocationValueError as cause:
            raise CniError(
                Code.INVALID_CONFIG, f"cannot {request.doing}: {host!r} is not the address of an API server", str(cause)
            ) from cause
        except urllib3.exceptions.HTTPError as cause:
            raise unreachable(request, host, cause) from cause
        except (ConfigException, OSError, ValueError) as cause:
            raise CniError(
                Code.INVALID_CONFIG,
                f"cannot {request.doing}: cannot set up the connection to {host}: {cause}",
                "check the certificates and the token that the kubeconfig names",
            ) from cause

    def token(self) -> str:
        """Return the bearer token, "" without one."""
        from kubernetes.config import ConfigException

        try:
            # A token file is read again now and then.
            setting = self.configuration.auth_settings().get("BearerToken")
        except (ConfigException, OSError, ValueError):
            return ""
        return str(setting["value"]).strip().removeprefix("Bearer ") if setting and setting["value"] else ""

    def _headers(self, request: Request) -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": request.content_type, "User-Agent": COMPONENT}
        for setting in self.configuration.auth_settings().values():
            # A token file often ends with a newline, which no header may hold.
            headers[setting["key"]] = str(setting["value"]).strip()
        return headers


class Client:
    """The API server that *kubeconfig* names (a path) and our account there; None: the cluster whose pod we are.

    The kubeconfig is read at the first request, and again when the file was replaced, or when the credentials or the
    server's certificate are refused.
    """

    def __init__(self, kubeconfig: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._sockets = _Sockets()
        self._over = False

    def send(self, request: Request, until: float) -> Mapping[str, Any]:
        """Send one request, with fresh credentials once when those we have are refused, and interpret the reply.

        *until* (monotonic) bounds every single wait for the network.
        """
        with self._opened(request.doing) as session:
            reply = session.send(request, _left(until))
        if reply.status == 401:
            with self._opened(request.doing, refused=session) as session:
                reply = session.send(request, _left(until))
        try:
            return interpret_reply(request, reply, self._name, session.complaints)
        except CniError as error:
            if reply.status == 401:
                raise Unauthorized(error.code, error.msg, error.details) from error
            raise

    @contextmanager
    def watch(self, request: Request, silence: float) -> Iterator[Iterator[bytes]]:
        """Send one request and give the lines of the reply as they come; *silence* (seconds) bounds each wait."""
        with self._opened(request.doing) as session, session.watch(request, silence) as (reply, lines):
            if reply.status != 401:
                yield self._lines(request, reply, lines, session)
                return
        with self._opened(request.doing, refused=session) as session, session.watch(request, silence) as (reply, lines):
            yield self._lines(request, reply, lines, session)

    def expiry(self) -> float:
        """Return when the token that we send expires, in Unix seconds; 0 when it never does or is not a JWT."""
        session = self._session
        return _expiry(session.token()) if session else 0.0

    def close(self) -> None:
        """Close the connections: pending requests end, later ones are `Unavailable`."""
        with self._lock:
            self._over = True
            self._sockets.cut()
            if self._session:
                self._session.pool.clear()

    def _lines(self, request: Request, reply: Reply, lines: Iterator[bytes], session: _Session) -> Iterator[bytes]:
        if not 200 <= reply.status < 300:
            interpret_reply(request, reply, self._name, session.complaints)
        return lines

    @property
    def _name(self) -> str:
        return self._kubeconfig or "the pod's service account"

    @contextmanager
    def _opened(self, doing: str, refused: _Session | None = None) -> Iterator[_Session]:
        """Give the session; a new one, the kubeconfig read again, when the one we have was *refused*.

        One whose server turns out to be untrusted is not used again: the authority's certificate may be renewed.
        """
        with self._lock:
            if self._over:
                raise Unavailable(f"cannot {doing}: the connection was closed by us")
            session = self._session = self._current(doing, refused)
        try:
            yield session
        except Untrusted:
            with self._lock:
                self._session = None if self._session is session else self._session
            raise

    def _current(self, doing: str, refused: _Session | None) -> _Session:
        """Return the session of the kubeconfig as it is now; the one before, when the new file cannot be read."""
        before = self._session
        stamp = _stamp(self._kubeconfig)
        if before and before is not refused and stamp in ((), before.stamp):
            return before
        try:
            fresh = _open(self._kubeconfig, doing, self._sockets)
        except CniError:
            if before is None or before is refused:
                raise
            return before  # it is being written; the next request reads it again
        if before:
            before.pool.clear()
        return replace(fresh, stamp=stamp)


def _stamp(path: str | None) -> Stamp:
    """Return what changes with the file; () when it does not exist."""
    try:
        status = os.stat(path) if path else None  # noqa: PTH116  a string all the way, as the package takes it
    except OSError:
        return ()
    return (status.st_ino, status.st_mtime_ns, status.st_size) if status else ()


def _expiry(token: str) -> float:
    """Return the claim "exp" of a JSON Web Token (RFC 7519, 4.1.4), which is not verified here."""
    try:
        body = json.loads(urlsafe_b64decode(token.split(".")[1] + "=="))
        return float(body["exp"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0.0


def _left(until: float) -> float:
    # Never zero, which would mean "do not wait" to a socket.
    return max(until - time.monotonic(), 0.01)


def load_packages() -> None:
    """Import what requests need, if it is not imported yet: 0.3 s.

    One thread at a time: two that begin with different modules of the package wait for each other, and what the
    interpreter then does about it leaves one of them with half of the package.
    """
    with _door:
        for name in _PACKAGES:
            importlib.import_module(name)


def _open(kubeconfig: str | None, doing: str, sockets: _Sockets) -> _Session:
    load_packages()
    from kubernetes.client import Configuration
    from kubernetes.client.rest import RESTClientObject
    from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

    configuration, where = Configuration(), kubeconfig or "the service account of this pod"
    try:
        with _overheard() as complaints:
            if kubeconfig is None:
                load_incluster_config(client_configuration=configuration)
            else:
                _require_yaml(kubeconfig)
                # Refreshed credentials are not written back: the file is not ours.
                load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)
        if not str(configuration.host).startswith(("http://", "https://")):
            raise ValueError(f"{configuration.host!r} is not the address of an API server, https://host:port")  # noqa: TRY301
        pool = RESTClientObject(configuration).pool_manager
        _note_sockets(pool, sockets)
        return _Session(configuration, pool, tuple(complaints))
    except (ConfigException, OSError, ValueError, TypeError, AttributeError, LookupError) as cause:
        raise CniError(
            Code.INVALID_CONFIG,
            f"cannot {doing}: the credentials in {where} cannot be read: {cause}",
            "name a kubeconfig that kubectl can use" if kubeconfig else "set 'kubeconfig' when this is not a pod",
        ) from cause


def _note_sockets(pool: Any, sockets: _Sockets) -> None:
    """Have the *pool* note every socket that it opens."""
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


def _require_yaml(kubeconfig: str) -> None:
    with open(kubeconfig, "rb") as file:  # noqa: PTH123  a string all the way, as the package takes it
        found = list(manifests.documents(file.read(), is_json=False))
    if problems := [f"line {document.line}: {document.problem}" for document in found if document.problem]:
        raise ValueError("; ".join(problems))


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """Collect what the package logs while it loads a kubeconfig: it reports a failed command in no other way."""
    messages: list[str] = []
    me = threading.get_ident()

    def overhear(record: logging.LogRecord) -> bool:
        ours = record.thread == me
        if ours:
            messages.append(record.getMessage())
        return not ours

    root = logging.getLogger()
    root.addFilter(overhear)
    try:
        yield messages
    finally:
        root.removeFilter(overhear)
