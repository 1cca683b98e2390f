#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure the memory and the processor time of the watched store: lists, many lists anew, a storm of updates, idleness.

The API server is a loopback double in a process of its own; the objects have the size of real ones.
"""

import argparse
import json
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CONTEXT = multiprocessing.get_context("spawn")


def metadata(name: str, version: int, **annotations: str) -> dict[str, Any]:
    """Return what every object has, with the notes of two field managers."""
    fields = {f"f:field-{n}": {".": {}, "f:value": {}} for n in range(40)}
    managers = [{"manager": f"manager-{n}", "operation": "Update", "fieldsV1": {"f:spec": fields}} for n in range(2)]
    return {
        "namespace": f"team-{len(name)}",
        "name": name,
        "uid": f"00000000-0000-0000-0000-{name:->12}",
        "resourceVersion": str(version),
        "annotations": {**annotations, "kubectl.kubernetes.io/last-applied-configuration": "x" * 1000},
        "managedFields": managers,
    }


def pod(number: int, version: int) -> dict[str, Any]:
    """Return a pod of about 15 KB."""
    env = [{"name": f"VARIABLE_{n}", "value": "some value of the usual length"} for n in range(60)]
    containers = [
        {"name": f"container-{n}", "image": "registry/app:1", "env": env, "args": ["--flag"] * 20} for n in "ab"
    ]
    status = json.dumps([{"name": "net", "interface": f"net{n}", "ips": ["10.0.0.1"]} for n in range(4)])
    about = metadata(
        f"pod-{number}",
        version,
        **{"k8s.v1.cni.cncf.io/networks": f"net-1,net-{version}", "k8s.v1.cni.cncf.io/network-status": status},
    )
    return {"metadata": about, "spec": {"nodeName": "node", "containers": containers}, "status": {"phase": "Running"}}


def definition(number: int, version: int) -> dict[str, Any]:
    """Return a definition of about 4 KB, its config 600 bytes."""
    ipam = {"type": "host-local", "subnet": "10.0.0.0/16", "routes": [{"dst": f"10.{n}.0.0/16"} for n in range(15)]}
    config = json.dumps({"cniVersion": "1.0.0", "type": "macvlan", "master": f"eth{number}", "ipam": ipam})
    return {"metadata": metadata(f"net-{number}", version), "spec": {"config": config}}


class Double(BaseHTTPRequestHandler):
    """Lists in pages; a watch tells 410 as long as lists anew are wanted, then updates, then nothing."""

    protocol_version = "HTTP/1.1"
    counts: dict[str, int]
    relists: "dict[str, Synchronized[int]]"
    updates: "Synchronized[int]"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        kind = "pods" if parts.path.endswith("/pods") else "definitions"
        make = {"pods": pod, "definitions": definition}[kind]
        if "watch" in query:
            self.watch(kind, make)
            return
        first, limit, count = int(query.get("continue", 0)), int(query["limit"]), self.counts[kind]
        last = min(first + limit, count)
        about = {"resourceVersion": str(count), "continue": str(last) if last < count else ""}
        body = json.dumps({"metadata": about, "items": [make(n, n + 1) for n in range(first, last)]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def watch(self, kind: str, make: Callable[[int, int], dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for line in self.lines(kind, make):
                raw = json.dumps(line).encode() + b"\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(raw), raw))
        except OSError:
            self.close_connection = True

    def lines(self, kind: str, make: Callable[[int, int], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        count = version = self.counts[kind]
        yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}
        while True:
            if self.relists[kind].value:
                self.relists[kind].value -= 1
                yield {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
                return
            if kind == "pods" and self.updates.value:
                while self.updates.value:
                    version += 1
                    yield {"type": "MODIFIED", "object": make(version % count, version)}
                    self.updates.value -= 1
            time.sleep(0.02)

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(port: Any, counts: dict[str, int], relists: Any, updates: Any) -> None:
    """Be the double until killed; its port is sent."""
    Double.counts, Double.relists, Double.updates = counts, relists, updates
    server = ThreadingHTTPServer(("127.0.0.1", 0), Double)
    server.daemon_threads = True
    port.send(server.server_address[1])
    server.serve_forever()


def memory(key: str = "VmRSS") -> float:
    """Return a figure of this process's memory, in MB."""
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(rows[key].split()[0]) / 1024


def wait(promise: Callable[[], bool]) -> None:
    """Wait until the promise holds."""
    while not promise():
        time.sleep(0.02)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--pods", type=int, default=500)
    words.add_argument("--definitions", type=int, default=10_000)
    words.add_argument("--relists", type=int, default=20)
    words.add_argument("--updates", type=int, default=50_000)
    words.add_argument("--idle", type=float, default=10, help="seconds")
    asked = words.parse_args()
    relists = {kind: CONTEXT.Value("i", 0) for kind in ("pods", "definitions")}
    updates = CONTEXT.Value("i", 0)
    here, there = CONTEXT.Pipe()
    counts = {"pods": asked.pods, "definitions": asked.definitions}
    server = CONTEXT.Process(target=serve, args=(there, counts, relists, updates), daemon=True)
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(asked, Path(folder, "kubeconfig"), here.recv(), relists, updates)
    finally:
        server.kill()
        server.join()


def measure(asked: argparse.Namespace, kubeconfig: Path, port: int, relists: Any, updates: Any) -> None:
    """Run the store against the double and print a row for each stage."""
    from multus_py.kube.cached_apiserver import CachedApiServer
    from multus_py.kube.reflector import Timing

    def row(stage: str) -> None:
        spent = time.process_time() - row.spent  # type: ignore[attr-defined]
        print(f"{stage:<40} {memory():8.1f} {memory('VmHWM'):8.1f} {spent:8.2f} {threads():8d}", flush=True)
        row.spent = time.process_time()  # type: ignore[attr-defined]

    row.spent = 0.0  # type: ignore[attr-defined]
    import kubernetes.config  # noqa: F401  what the store will import; counted apart
    import yaml  # noqa: F401

    clusters = [{"name": "one", "cluster": {"server": f"http://127.0.0.1:{port}"}}]
    contexts = [{"name": "one", "context": {"cluster": "one", "user": "one"}}]
    users = [{"name": "one", "user": {"token": "t"}}]
    body = {"clusters": clusters, "contexts": contexts, "users": users, "current-context": "one"}
    kubeconfig.write_text(json.dumps(body))
    print(f"{'stage':<40} {'RSS MB':>8} {'peak MB':>8} {'CPU s':>8} {'threads':>8}")
    row("packages imported")
    told, lists = [0], Lists()
    logging.getLogger("multus_py").addHandler(lists)
    logging.getLogger("multus_py").setLevel(logging.INFO)
    store = CachedApiServer(str(kubeconfig), 10, "node", Timing(first_pause=0.01, longest_pause=0.05))

    def count(*_: object) -> None:
        told[0] += 1

    store.subscribe(count)
    store.start()
    wait(store.ready)
    row(f"{asked.definitions} definitions, {asked.pods} pods listed")
    for _ in range(asked.relists):
        done = lists.count + 2
        for kind in relists.values():
            kind.value = 1
        wait(lambda done=done: lists.count >= done)
    row(f"{asked.relists} lists anew")
    told[0] = 0
    updates.value = asked.updates
    wait(lambda: told[0] >= asked.updates)
    row(f"{asked.updates} updates of pods")
    time.sleep(asked.idle)
    row(f"{asked.idle:g} s of nothing")
    store.close()


class Lists(logging.Handler):
    """Counts the lists that the store says are complete."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("listed")


def threads() -> int:
    """Return how many threads this process has."""
    return len(list(Path("/proc/self/task").iterdir()))


if __name__ == "__main__":
    main()
