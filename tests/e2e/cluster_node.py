# SPDX-License-Identifier: Apache-2.0
"""A node of a real cluster under test, spoken to with kubectl; on this machine the daemon and shim are put in place."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multus_py.install import shim
from multus_py.kernel import netlink

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("E2E_IMAGE", "rig.local/tiny:1")
NETWORKS = "k8s.v1.cni.cncf.io/networks"
STATUS = "k8s.v1.cni.cncf.io/network-status"


@dataclass
class Node:
    """One node: kubectl's config, the runtime's folders, our own state folder, the daemon's process."""

    kubeconfig: str
    cni_bin: Path
    cni_conf: Path
    folder: Path
    namespace: str
    options: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> str:
        """Run kubectl in the tests' namespace; return what it printed."""
        command = ["kubectl", "--kubeconfig", self.kubeconfig, "-n", self.namespace, *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def install(self) -> None:
        """Put the shim and our conf in front of the first conf that is there."""
        primary = sorted(path for path in self.cni_conf.iterdir() if path.suffix in (".conf", ".conflist"))[0]
        shutil.copy(shim.path(), self.cni_bin / ".multus-py.new")
        (self.cni_bin / ".multus-py.new").rename(self.cni_bin / "multus-py")
        plugin = {"type": "multus-py", "socketDir": str(self.folder / "run"), "cniDir": str(self.folder / "cni")}
        conf = {"cniVersion": "1.0.0", "name": "multus-py", "plugins": [plugin]}
        self.options.setdefault("clusterNetwork", str(primary))
        draft = self.cni_conf / ".00-multus-py"
        draft.write_text(json.dumps(conf))
        draft.rename(self.cni_conf / "00-multus-py.conflist")

    def uninstall(self) -> None:
        """Take both away again."""
        (self.cni_conf / "00-multus-py.conflist").unlink(missing_ok=True)
        (self.cni_bin / "multus-py").unlink(missing_ok=True)

    def start(self, *, ready: bool = True) -> None:
        """Start the daemon on this node."""
        self.folder.mkdir(exist_ok=True)
        node = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"][0]["metadata"]["name"]
        config = {
            "kubeconfig": self.kubeconfig, "nodeName": node, "socketDir": str(self.folder / "run"),
            "cniDir": str(self.folder / "cni"), "binDir": str(self.cni_bin), "logLevel": "info",
            "reconcileInterval": 5, "dynamicAttachments": True, **self.options,
        }  # fmt: skip
        (self.folder / "daemon.json").write_text(json.dumps(config))
        command = [sys.executable, "-m", "multus_py.cli.main", "daemon", "--config", str(self.folder / "daemon.json")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        if ready:
            until(lambda: "[INFO] ready" in self.log().rpartition("listening on")[2], self.log, 40)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop the daemon."""
        if self.process:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def log(self) -> str:
        """Return what the daemon logged."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def pods(self) -> list[dict[str, Any]]:
        """Return the pods of the tests' namespace."""
        return list(json.loads(self.kubectl("get", "pods", "-o", "json"))["items"])

    def running(self, names: Iterable[str], seconds: float = 120) -> None:
        """Wait until pods run."""
        wanted = set(names)

        def all_run() -> bool:
            states = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in self.pods()}
            return all(states.get(name) == "Running" for name in wanted)

        until(all_run, lambda: self.kubectl("get", "pods,events")[-6000:] + self.log()[-3000:], seconds)

    def gone(self, seconds: float = 90) -> None:
        """Wait until no pod is left in the namespace."""
        until(lambda: not self.pods(), lambda: self.kubectl("get", "pods"), seconds)

    def status(self, pod: str) -> list[dict[str, Any]]:
        """Return a pod's network-status."""
        found = json.loads(self.kubectl("get", "pod", pod, "-o", "json"))["metadata"].get("annotations", {})
        return list(json.loads(found.get(STATUS, "[]")))

    def ping(self, pod: str, address: str) -> None:
        """Ping an address from a pod."""
        last = ""
        for _ in range(3):  # an address may be in duplicate detection, a bridge port not forwarding yet
            done = subprocess.run(
                ["kubectl", "--kubeconfig", self.kubeconfig, "-n", self.namespace, "exec", pod, "--",
                 "ping", "-c", "1", "-W", "2", address],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return
            last = done.stdout + done.stderr
        raise AssertionError(f"{pod} cannot reach {address}: {last}")

    def state(self) -> list[str]:
        """Return what the node holds for pods: journal pages, results, tombstones, addresses, links."""
        folders = [self.folder / "cni" / name for name in ("attachments", "results", "spool")]
        files = [path for folder in folders for path in folder.glob("*")]
        pools = [path for path in (self.folder / "ipam").rglob("*") if path.is_file()]
        kept = [path for path in pools if not path.name.startswith(("lock", "last_reserved_ip", ".reserving"))]
        with netlink.open() as kernel:
            links = [link.name for link in kernel.links() if link.kind in ("veth", "macvlan")]
        return sorted([path.name for path in files + kept] + links)


def pod(name: str, networks: Any = None, **annotations: str) -> dict[str, Any]:
    """Return a pod that sleeps."""
    text = networks if isinstance(networks, str) else json.dumps(networks or [])
    found = {**annotations, **({NETWORKS: text} if networks else {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": found}, "spec": spec()}


def spec() -> dict[str, Any]:
    """Return a pod's spec: one container that does nothing."""
    container = {"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "36000"]}
    return {"containers": [container], "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False}  # fmt: skip


def definition(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return a NetworkAttachmentDefinition."""
    return {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": name},
            "spec": {"config": json.dumps(config)}}  # fmt: skip


def until(true: Callable[[], object], why: Callable[[], str] = lambda: "", seconds: float = 30) -> None:
    """Wait until something holds; fail after *seconds*."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain; {why()}"
        time.sleep(0.1)
