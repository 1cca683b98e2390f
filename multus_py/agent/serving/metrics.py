# SPDX-License-Identifier: Apache-2.0
"""What is counted and timed, in Prometheus' words (the only prometheus_client importer)."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import MetricsHandler

from multus_py.agent.serving.silent_connections import SilentConnections
from multus_py.cni.call import VERBS
from multus_py.cni.errors import CniError, Code

_PEERS, _PEER_SECONDS = 32, 10  # connections at once, and the time that one has
_LONGEST = 64  # characters of a label
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class _Words:
    """Values for labels, which are kept for the life of the process: *known* ones, then the first *limit*."""

    def __init__(self, limit: int, known: Iterable[str] = ()) -> None:
        self._limit = limit
        self._known = set(known)

    def one(self, word: str) -> str:
        """Return the value, or "other" when the limit is reached."""
        if word not in self._known:
            if len(self._known) >= self._limit or len(word) > _LONGEST:
                return "other"
            self._known.add(word)
        return word


class Metrics:
    """One registry for one daemon."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "multus_py_requests", "Requests by path, verb and CNI error code (0: success)", ["path", "verb", "code"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "multus_py_request_seconds", "Time to answer", ["verb"], buckets=_SECONDS, registry=self.registry
        )
        self._delegate_seconds = Histogram(
            "multus_py_delegate_seconds", "Time of one delegate", ["plugin", "verb", "outcome"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._plugins = _Words(64)
        self._codes = _Words(64, (str(int(code)) for code in (0, *Code)))
        self.repairs = Counter(
            "multus_py_reconciled", "What the reconciler did, by kind", ["kind"], registry=self.registry
        )

    @contextmanager
    def measured(self, path: str, verb: str) -> Iterator[None]:
        """Count one request, its error code and the time that the block took."""
        verb = verb if verb in VERBS else "?"
        started, code = time.monotonic(), 0
        try:
            yield
        except CniError as error:
            code = int(error.code)
            raise
        except Exception:
            code = int(Code.INTERNAL)
            raise
        finally:
            self._requests.labels(path, verb, self._codes.one(str(code))).inc()
            self._seconds.labels(verb).observe(time.monotonic() - started)

    def delegated(self, plugin: str, verb: str, seconds: float, code: int) -> None:
        """Count one run of a delegate."""
        self._delegate_seconds.labels(self._plugins.one(plugin), verb, "ok" if code == 0 else "error").observe(seconds)

    def gauge(self, name: str, words: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read at each scrape."""
        Gauge(f"multus_py_{name}", words, registry=self.registry).set_function(value)

    def serve(self, address: str, port: int) -> None:
        """Serve them over HTTP from a thread of their own."""
        server = _Server(address, port, self.registry)
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Server(ThreadingHTTPServer):
    """A thread for each connection, few at once: any peer that reaches the port may connect and send nothing."""

    def __init__(self, address: str, port: int, registry: CollectorRegistry) -> None:
        self.address_family, _, _, _, place = socket.getaddrinfo(
            address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._peers = SilentConnections(_PEERS, _PEER_SECONDS)
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": _PEER_SECONDS})
        super().__init__((str(place[0]), port), handler)

    def service_actions(self) -> None:
        """Close connections that send no request in time; called twice a second."""
        self._peers.close_late()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread for one connection."""
        self._peers.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._peers.remove(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a peer that closed the connection."""
