# SPDX-License-Identifier: Apache-2.0
"""What is counted and timed, in Prometheus' words (the only prometheus_client importer)."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


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
        self.repairs = Counter(
            "multus_py_reconciled", "What the reconciler did, by kind", ["kind"], registry=self.registry
        )

    def answered(self, path: str, verb: str, code: int, seconds: float) -> None:
        """Count one request and the time that it took."""
        self._requests.labels(path, verb, str(code)).inc()
        self._seconds.labels(verb).observe(seconds)

    def delegated(self, plugin: str, verb: str, seconds: float, code: int) -> None:
        """Count one run of a delegate."""
        self._delegate_seconds.labels(plugin, verb, "ok" if code == 0 else "error").observe(seconds)

    def gauge(self, name: str, words: str, value: Callable[[], float]) -> None:
        """Show a number that is read when somebody looks."""
        Gauge(f"multus_py_{name}", words, registry=self.registry).set_function(value)

    def serve(self, address: str, port: int) -> None:
        """Serve them over HTTP from a thread of their own."""
        start_http_server(port, address, self.registry)
