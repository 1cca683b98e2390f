# SPDX-License-Identifier: Apache-2.0
"""The shim compiled from its sources, a folder that plays the node, and how a run ended."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = sorted(str(path) for path in (ROOT / "multus_py" / "install" / "shim").glob("*.c"))
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]


def compile_shim(target: Path, *flags: str, compiler: str | None = None) -> Path:
    """Compile with every warning as an error."""
    compiler = compiler or shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler (cc)")
    command = [compiler, *STRICT, *flags, "-o", str(target), *SOURCES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@dataclass(frozen=True)
class Done:
    """How a run of the shim ended."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The CNI error that it printed."""
        assert self.code == 1, self
        body = json.loads(self.stdout)
        assert set(body) == {"cniVersion", "code", "msg", "details"}
        return body


@dataclass(frozen=True)
class Box:
    """A folder that plays the node, and the shim on it."""

    folder: Path
    executable: Path
    command: list[str] = field(default_factory=list)

    @property
    def spool(self) -> Path:
        """Where tombstones go."""
        return self.folder / "cni" / "spool"

    def config(self, **keys: Any) -> dict[str, Any]:
        """Return a config that keeps the shim inside the box."""
        return {
            "cniVersion": "1.1.0",
            "name": "mpt",
            "type": "multus-py",
            "socketDir": str(self.folder),
            "cniDir": str(self.folder / "cni"),
            "readinessTimeout": 20,
            "shimTimeout": 30,
            **keys,
        }

    def env(self, verb: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment that a runtime sets."""
        return {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "mpt0815",
            "CNI_NETNS": "/run/netns/none",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
            "CNI_PATH": "/opt/cni/bin",
            **(env or {}),
        }

    def start(self, verb: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start the shim; its standard input is open."""
        return subprocess.Popen(
            [*self.command, str(self.executable)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env(verb, env),
        )

    def call(self, verb: str, env: Mapping[str, str] | None = None, **keys: Any) -> Done:
        """Run one verb; *env* and *keys* change the usual environment and config."""
        return self.feed(verb, json.dumps(self.config(**keys)).encode(), env)

    def feed(self, verb: str, stdin: bytes, env: Mapping[str, str] | None = None) -> Done:
        """Run one verb with these very bytes on standard input."""
        with self.start(verb, env) as process:
            stdout, stderr = process.communicate(stdin, timeout=60)
            return Done(process.returncode, stdout, stderr)
