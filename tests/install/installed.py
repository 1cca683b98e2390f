# SPDX-License-Identifier: Apache-2.0
"""A node as a runtime sees it: a folder of confs of which it calls the first, and a folder of executables."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from running import Running, ended, until

from multus_py.install import primary
from multus_py.kernel import namespaces


@dataclass
class Node:
    """A daemon's stage with conf and plugin folders."""

    running: Running
    options: dict[str, object] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return self.running.folder

    @property
    def conf(self) -> Path:
        """The folder of confs."""
        return self.folder / "net.d"

    @property
    def ours(self) -> Path:
        """Our conf."""
        return self.conf / "00-multus-py.conflist"

    @property
    def shim(self) -> Path:
        """Our executable."""
        return self.folder / "opt" / "multus-py"

    def primary(self, *more: dict[str, object]) -> Path:
        """Write the primary's conf, whole: a bridge, and *more* plugins after it."""
        ipam = {"type": "host-local", "dataDir": str(self.folder / "ipam"), "subnet": "10.88.0.0/16"}
        bridge = {"type": "bridge", "bridge": "br0", "isDefaultGateway": True, "ipam": ipam}
        body = {"cniVersion": "1.0.0", "name": "cluster", "plugins": [bridge, {"type": "scripted"}, *more]}
        draft = self.conf / ".draft"
        draft.write_text(json.dumps(body))
        return draft.rename(self.conf / "10-cluster.conflist")

    def start(self, *, ready: bool = True, **more: object) -> None:
        """Start the daemon, which installs itself, and wait until it answers."""
        self.running.process = self.launch(**more)
        until(lambda: self.running.get("/readyz" if ready else "/healthz")[0] == 200, self.running.log)

    def launch(self, **more: object) -> subprocess.Popen[bytes]:
        """Start a daemon as the pod `kube-system/agent`."""
        options = {"install": True, "cniConfigDir": str(self.conf), "cniBinDir": str(self.folder / "opt")}
        path = self.running.configure(**{**options, **self.options, **more})
        if "type" in more:  # the stage leaves it out of the file
            path.write_text(json.dumps({**json.loads(path.read_text()), "type": more["type"]}))
        command = [sys.executable, "-m", "multus_py.cli.main", "daemon", "--config", str(path)]
        pod = {"POD_NAMESPACE": "kube-system", "POD_NAME": "agent"}
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **pod}
        with (self.folder / "log").open("ab") as log:
            return namespaces.run_in(
                self.running.host, lambda: subprocess.Popen(command, stderr=log, stdout=log, env=environment)
            )

    def first(self) -> dict[str, object]:
        """Return the conf that a runtime would load: the first by name, read whole."""
        return dict(json.loads(primary.conf_files(self.conf)[0].read_text()))

    def call(self, verb: str, pod: str = "", container: str = "c1", **more: object) -> tuple[int, object]:
        """Call what the first conf names, as a runtime would."""
        return ended(self.begin(verb, pod, container, **more))

    def begin(self, verb: str, pod: str = "", container: str = "c1", **more: object) -> subprocess.Popen[bytes]:
        """Start what the first conf names."""
        netns = {"netns": more.pop("netns")} if "netns" in more else {}
        body = self.first()
        version = max([str(body["cniVersion"]), *map(str, body.get("cniVersions", []))])
        config = {**body["plugins"][0], "name": body["name"], "cniVersion": version, **more}
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [self.folder / "opt" / str(config["type"])], stdin=pipe, stdout=pipe, stderr=pipe,
            env=self.running.stage.call(verb, pod, container, **netns).environment(),
        )  # fmt: skip
        assert process.stdin
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
        process.stdin = None
        return process

    def logged(self, words: str, seconds: float = 20) -> None:
        """Wait until the daemon says something."""
        until(lambda: words in self.running.log(), self.running.log, seconds)

    def left(self) -> list[str]:
        """Return what is left of sandboxes: journal, results, tombstones, addresses, what scripted plugins hold."""
        files = [path.name for path in (self.folder / "ipam").rglob("*") if path.is_file()]
        ipam = [name for name in files if not name.startswith(("lock", "last_reserved_ip", ".reserving"))]
        pods = ("events.jsonl", "status.json")
        return [*ipam, *(name for name in self.running.stage.left() if name not in pods), *self.running.spooled()]
