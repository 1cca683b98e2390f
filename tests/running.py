# SPDX-License-Identifier: Apache-2.0
"""A real daemon in a namespace that plays the host, and the real shim that a runtime would call."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage import Stage

from multus_py.install import shim
from multus_py.kernel import namespaces


@dataclass
class Running:
    """One daemon: its stage (manifests, scripted plugins, state), its host namespace, its process."""

    stage: Stage
    host: str
    options: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Where everything of this daemon is."""
        return self.stage.folder

    @property
    def socket(self) -> Path:
        """The daemon's socket."""
        return self.folder / "run" / "multus.sock"

    def configure(self, **more: Any) -> Path:
        """Write the daemon's config file."""
        settings = {
            **self.stage.config(),
            "socketDir": str(self.folder / "run"),
            "logLevel": "info",
            **self.options,
            **more,
        }
        body = {key: value for key, value in settings.items() if key not in ("cniVersion", "name", "type", "host")}
        path = self.folder / "daemon.json"
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(body))
        draft.rename(path)
        return path

    def start(self, *, ready: bool = True, **more: Any) -> None:
        """Start the process and wait until it answers."""
        command = [sys.executable, "-m", "multus_py.cli.main", "daemon", "--config", str(self.configure(**more))]
        log = (self.folder / "log").open("ab")
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = namespaces.run_in(
            self.host, lambda: subprocess.Popen(command, stderr=log, stdout=log, env=environment)
        )
        log.close()
        until(lambda: self.get("/readyz" if ready else "/healthz")[0] == 200, self.log)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code

    def log(self) -> str:
        """Return what the daemon logged."""
        return (self.folder / "log").read_text()

    def shim(self, verb: str, pod: str = "", container: str = "c1", **more: Any) -> subprocess.Popen[bytes]:
        """Start the shim for one call, as a runtime would."""
        call = self.stage.call(verb, pod, container, **{key: more.pop(key) for key in ("netns",) if key in more})
        config = {"cniVersion": "1.1.0", "name": "mp", "type": "multus-py", "socketDir": str(self.folder / "run"),
                  "cniDir": str(self.folder / "cni"), **more}  # fmt: skip
        pipe = subprocess.PIPE
        process = subprocess.Popen([shim.path()], stdin=pipe, stdout=pipe, stderr=pipe, env=call.environment())
        assert process.stdin
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
        process.stdin = None
        return process

    def call(self, verb: str, pod: str = "", container: str = "c1", **more: Any) -> tuple[int, Any]:
        """Make one call through the shim; return its exit code and what it printed."""
        return ended(self.shim(verb, pod, container, **more))

    def get(self, path: str) -> tuple[int, bytes]:
        """GET a path of the socket; (0, b"") when nobody listens."""
        try:
            return self.request("GET", path)
        except OSError:
            return 0, b""

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Speak HTTP to the socket as multus-cni's own shim would."""
        line = http.client.HTTPConnection("unix", timeout=30)
        line.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.sock.connect(str(self.socket))
            line.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body).encode(), headers)
            answer = line.getresponse()
            return answer.status, answer.read()
        finally:
            line.close()

    def spooled(self) -> list[str]:
        """Return the tombstones that wait."""
        folder = self.folder / "cni" / "spool"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def ended(process: subprocess.Popen[bytes]) -> tuple[int, Any]:
    """Wait for a shim; return its exit code and what it printed."""
    out, _ = process.communicate(timeout=90)
    return process.returncode, json.loads(out) if out.strip() else None


def until(true: Callable[[], object], why: Callable[[], str] = lambda: "", seconds: float = 20) -> None:
    """Wait until something holds; fail after *seconds*."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain; {why()}"
        time.sleep(0.02)
