# SPDX-License-Identifier: Apache-2.0
"""A real containerd with a life of its own: folders, socket and network namespace are the test's, not the machine's."""

import base64
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import grpc
from cri import Cri

NEEDED = ("containerd", "ctr", "runc", "containerd-shim-runc-v2", "busybox", "ip", "nsenter")
_IMAGE = "mpt.local/pause:1"
_READY_SECONDS = 30
_RESULTS = Path("/var/lib/cni/results")
# An init for the sandbox: it sleeps until it is told to go. busybox's shell answers TERM because of the trap.
_PAUSE = ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait; done"]


@dataclass(frozen=True)
class Rig:
    """A running containerd: its folders, its CRI, and the network namespace in which it plays the node."""

    root: Path
    host: str
    cri: Cri

    @property
    def bin(self) -> Path:
        """The folder of CNI plugins."""
        return self.root / "bin"

    @property
    def conf(self) -> Path:
        """The folder of CNI conf files."""
        return self.root / "net.d"

    def run(self, *command: str) -> str:
        """Run *command* in the node's network namespace and return what it printed."""
        return inside(Path("/run/netns") / self.host, *command)

    def bridges(self) -> set[str]:
        """Return the names of the node's bridges."""
        return {link["ifname"] for link in json.loads(self.run("ip", "-j", "link", "show", "type", "bridge"))}

    def namespaces(self) -> list[Path]:
        """Return the pods' network namespaces: containerd mounts them in its own folder here."""
        return sorted((self.root / "state").glob("*/netns/cni-*"))

    def results(self) -> list[Path]:
        """Return the results that containerd keeps of our sandboxes: it has one folder for them, whatever its root."""
        return [path for path in _RESULTS.glob("*") if str(self.root) in _config(path)]

    def await_network(self) -> None:
        """Wait until containerd has read the conf folder: it watches it, and says so in its status."""
        deadline = time.monotonic() + _READY_SECONDS
        while not self._network_ready():
            assert time.monotonic() < deadline, f"containerd read no conf: {(self.root / 'containerd.log').read_text()}"

    def _network_ready(self) -> bool:
        conditions = self.cri.ask("Status")["status"]["conditions"]
        return any(each["type"] == "NetworkReady" and each.get("status") for each in conditions)

    def sandbox(self, name: str, **config: Any) -> "Sandbox":
        """Run a pod's sandbox, as a kubelet would."""
        body = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default", "attempt": 0},
            "hostname": name,
            "log_directory": str(self.root / "log"),
            "linux": {"cgroup_parent": f"/{self.host}"},
            **config,
        }
        identity = self.cri.ask("RunPodSandbox", config=body)["pod_sandbox_id"]
        return Sandbox(self, identity)


@dataclass(frozen=True)
class Sandbox:
    """One sandbox of the rig."""

    rig: Rig
    identity: str

    def status(self) -> dict[str, Any]:
        """Return what CRI says about it."""
        return self.rig.cri.ask("PodSandboxStatus", pod_sandbox_id=self.identity, verbose=1)

    @property
    def netns(self) -> Path:
        """The path of its network namespace."""
        spaces = json.loads(self.status()["info"]["info"])["runtimeSpec"]["linux"]["namespaces"]
        return Path(next(space["path"] for space in spaces if space["type"] == "network"))

    def run(self, *command: str) -> str:
        """Run *command* in its network namespace and return what it printed."""
        return inside(self.netns, *command)

    def remove(self) -> None:
        """Stop and remove it, as a kubelet would."""
        self.rig.cri.ask("StopPodSandbox", pod_sandbox_id=self.identity)
        self.rig.cri.ask("RemovePodSandbox", pod_sandbox_id=self.identity)


def inside(netns: Path, *command: str) -> str:
    """Run *command* in a network namespace; the failure carries what the command said."""
    done = subprocess.run(
        ["nsenter", f"--net={netns}", *command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def containerd() -> Iterator[Rig]:
    """Start containerd in a network namespace of its own; stop it and remove everything at the end."""
    host = f"mpt{token_hex(4)}"
    # Unix socket paths end at 107 bytes (unix(7)), and containerd's shims add 80 of their own: keep the root short.
    root = Path("/run") / host
    foreign = [folder for folder in (_RESULTS, _RESULTS.parent) if not folder.exists()]
    for folder in ("bin", "net.d", "log", "manifests", "cni"):
        (root / folder).mkdir(parents=True)
    subprocess.run(["ip", "netns", "add", host], check=True)
    try:
        inside(Path("/run/netns") / host, "ip", "link", "set", "lo", "up")
        _write_config(root)
        with (root / "containerd.log").open("wb") as log:
            # Not `ip netns exec`: that would hide from everybody else what containerd mounts.
            daemon = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{host}", "containerd", "-c", str(root / "config.toml")],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _wait(root, daemon)
            _import_image(root)
            with grpc.insecure_channel(f"unix:{root}/containerd.sock") as channel:
                rig = Rig(root, host, Cri(channel))
                try:
                    yield rig
                finally:
                    _remove_left_sandboxes(rig)
                    for path in rig.results():
                        path.unlink()
        finally:
            _remove_left_tasks(root)
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=30)
    finally:
        subprocess.run(["ip", "netns", "del", host], check=True)
        _unmount_below(root)
        shutil.rmtree(root)
        _remove_groups(host)
        _remove_empty(foreign)


def _write_config(root: Path) -> None:
    (root / "config.toml").write_text(f"""\
version = 2
root = "{root}/root"
state = "{root}/state"
[grpc]
  address = "{root}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{root}/bin"
    conf_dir = "{root}/net.d"
    max_conf_num = 1
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
""")


def _wait(root: Path, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while _ctr(root, "version", check=False).returncode:
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"containerd did not start: {(root / 'containerd.log').read_text()[-2000:]}")
        # There is no event for the daemon's start but an answer on its socket; its end, too, ends the waiting.
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(timeout=0.05)


def _ctr(root: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["ctr", "-a", f"{root}/containerd.sock", "-n", "k8s.io", *words]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)


def _import_image(root: Path) -> None:
    """Import an image of busybox alone, which serves as the sandbox's pause."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(shutil.which("busybox") or "busybox", arcname="bin/busybox")
        for applet in ("sh", "sleep"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {"Entrypoint": _PAUSE, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [_IMAGE], "Layers": ["layer.tar"]}]
    parts = {
        "manifest.json": json.dumps(manifest).encode(),
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer.getvalue(),
    }
    with tarfile.open(root / "image.tar", "w") as tar:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    _ctr(root, "images", "import", "--snapshotter", "native", str(root / "image.tar"))


def _remove_left_sandboxes(rig: Rig) -> None:
    """Remove what a failed test left, its network namespace too when the plugin under test refuses to let it go."""
    for item in rig.cri.ask("ListPodSandbox")["items"]:
        sandbox = Sandbox(rig, item["id"])
        netns = sandbox.netns
        with suppress(grpc.RpcError):
            sandbox.remove()
        if netns.exists():
            subprocess.run(["umount", "-l", netns], check=True)
            netns.unlink()


def _remove_left_tasks(root: Path) -> None:
    listed = _ctr(root, "tasks", "ls", "-q", check=False).stdout.split()
    for task in listed:
        _ctr(root, "tasks", "rm", "-f", task, check=False)


def _config(path: Path) -> str:
    """Return the conf that a result was made with, "" when it is gone by now or tells none."""
    try:
        return base64.b64decode(json.loads(path.read_text())["config"]).decode()
    except (OSError, ValueError, KeyError):
        return ""


def _remove_groups(name: str) -> None:
    """Remove the control groups that were made for sandboxes, in each hierarchy, the innermost first."""
    top = Path("/sys/fs/cgroup")
    for group in filter(Path.is_dir, [top / name, *top.glob(f"*/{name}")]):
        for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        group.rmdir()


def _remove_empty(folders: list[Path]) -> None:
    # Under the lock of `multus-py lab`, whose mounts there would go with the folder.
    parent = os.open("/var/lib", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        for folder in folders:
            # Not empty: somebody else uses it by now.
            with suppress(OSError):
                folder.rmdir()
    finally:
        os.close(parent)


def _unmount_below(root: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([mount for mount in mounts if mount.startswith(f"{root}/")]):
        subprocess.run(["umount", "-l", place], check=True)
