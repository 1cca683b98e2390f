# SPDX-License-Identifier: Apache-2.0
"""What one start of the shim costs: time, beside that of an empty static program, and memory. No arguments needed."""

import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from threading import Thread
from typing import ClassVar

from multus_py.install import shim

RUNS = 300
_NOTHING = "int main(void) { return 0; }"


_PEAK = "VmHWM"  # of resident memory in KiB, in /proc/<pid>/status


class Answer(BaseHTTPRequestHandler):
    """Says yes, and looks at the caller's memory before."""

    peaks: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        pid = struct.unpack("i8x", self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        self.peaks.append(next(int(line.split()[1]) for line in lines if line.startswith(_PEAK)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


def spent(command: Sequence[str], stdin: Path, env: dict[str, str]) -> float:
    """Run once; return milliseconds."""
    with stdin.open() as source, Path(os.devnull).open("w") as sink:
        actions = [(os.POSIX_SPAWN_DUP2, source.fileno(), 0), (os.POSIX_SPAWN_DUP2, sink.fileno(), 1)]
        started = time.perf_counter()
        child = os.posix_spawn(command[0], command, env, file_actions=actions)
        _, status = os.waitpid(child, 0)
        took = (time.perf_counter() - started) * 1000
    if status:
        raise SystemExit(f"{command}: status {status}")
    return took


def report(what: str, command: Sequence[str], stdin: Path, env: dict[str, str]) -> None:
    """Print the median of many runs."""
    times = sorted(spent(command, stdin, env) for _ in range(RUNS))
    print(f"{what:30} median {statistics.median(times):5.2f} ms   p95 {times[RUNS * 95 // 100]:5.2f} ms")


def main() -> None:
    executable = str(Path(sys.argv[1]).resolve() if sys.argv[1:] else shim.path())
    with tempfile.TemporaryDirectory(prefix="mpt") as name:
        folder = Path(name)
        config = folder / "config"
        config.write_text(
            json.dumps({"cniVersion": "1.1.0", "name": "bench", "socketDir": name, "cniDir": str(folder / "cni")})
        )
        env = {"CNI_CONTAINERID": "bench", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
        empty = str(folder / "empty")
        subprocess.run(["cc", "-Os", "-static", "-x", "c", "-", "-o", empty], input=_NOTHING, text=True, check=True)
        report("an empty static program", [empty], config, env)
        report("VERSION", [executable], config, {**env, "CNI_COMMAND": "VERSION"})
        report("DEL kept as a tombstone", [executable], config, {**env, "CNI_COMMAND": "DEL"})
        with ThreadingUnixStreamServer(str(folder / "multus.sock"), Answer) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            report("ADD, a Python server says yes", [executable], config, {**env, "CNI_COMMAND": "ADD"})
            server.shutdown()
    size = Path(executable).stat().st_size
    print(f"peak of resident memory {max(Answer.peaks)} KiB, the executable has {size // 1024} KiB")


if __name__ == "__main__":
    main()
