# SPDX-License-Identifier: Apache-2.0
"""A node of a cluster: a root directory of its own with a default network's files, the real daemon and shim in it.

The daemon runs with that directory as its root, in a mount namespace and a network namespace of its own, so that every
path in a network config means what it means on a real node. A container runtime is played by `Runtime`.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage import Stage

from multus_py.kernel import namespaces, netlink
from multus_py.kube.manifests import Manifests
from multus_py.kube.store import NETWORK_STATUS, PodRef

HERE = Path(__file__).parent
REAL = ("bridge", "host-local", "loopback")  # Debian's executables, as they are
RECORDED = ("ptp", "portmap", "bandwidth", "tuning")  # Debian's too, and what they are asked is written down
# Name in the folder of plugins -> the program that acts it; a pair: a link under that name to a file of another name.
SCRIPTED: dict[str, str | tuple[str, str]] = {
    "cilium-cni": "cilium", "calico": "calico", "calico-ipam": ("calico", "calico"), "flannel": "flannel",
    "weave-net": ("weave-plugin-2.8.1", "weave"), "weave-ipam": ("weave-plugin-2.8.1", "weave"), "aws-cni": "aws",
    "egress-cni": "aws", "azure-vnet": "azure", "azure-vnet-ipam": "azure", "azure-ipam": "azure",
    "istio-cni": "istio",
}  # fmt: skip
BIN, CONF, SOCKET, STATE = "/opt/cni/bin", "/etc/cni/net.d", "/run/multus", "/var/lib/cni/multus"
_OWN = ("etc", "opt", "run", "var", "lost+found", "old_root")  # what a node has for itself; all else it shares with us
_ETC = ("alternatives", "iproute2", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "passwd", "group", "protocols")
UID = "0b1e6a52-6f0c-4a8e-9d55-3c1f0a7d2e44"
PORTS = [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]
RATES = {"ingressRate": 1_000_000, "ingressBurst": 100_000, "egressRate": 1_000_000, "egressBurst": 100_000}


@contextmanager
def namespace() -> Iterator[str]:
    """Make a network namespace for as long as the block lasts; the path is what a runtime writes."""
    name = f"mpt{secrets.token_hex(5)}"
    namespaces.create(f"/run/netns/{name}")
    try:
        with netlink.open(f"/run/netns/{name}") as kernel:
            kernel.set_link(kernel.link("lo").index, up=True)
        yield f"/var/run/netns/{name}"
    finally:
        namespaces.remove(f"/run/netns/{name}")


@dataclass
class World:
    """One node. *folder* holds its root directory; *host* and *netns* are the namespaces of node and pod."""

    folder: Path
    host: str
    netns: str
    process: subprocess.Popen[bytes] | None = None
    chrooted: bool = True  # False: the daemon stays outside and has `chrootDir` set, as in a container
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The node's root directory."""
        return self.folder / "root"

    def at(self, path: str) -> Path:
        """Return where a path of the node is for us."""
        return self.root / path.lstrip("/").replace("var/run/", "run/", 1)

    @property
    def stage(self) -> Stage:
        """The folder of manifests: pods and definitions are written through it."""
        return Stage(self.at("/etc/multus-py"))

    # --- the node's disk ----------------------------------------------------------------------------------------------

    def furnish(self) -> None:
        """Make the root directory: Debian's executables, the scripted ones, our shim, two secondary networks."""
        for path in (BIN, "/opt/cni/lib", CONF, SOCKET, STATE, "/run/netns", "/var/log", "/etc/multus-py/manifests"):
            self.at(path).mkdir(parents=True, exist_ok=True)
        (self.root / "var/run").symlink_to("../run")
        for path in Path("/").iterdir():
            if path.is_symlink():
                (self.root / path.name).symlink_to(path.readlink())
            elif path.name not in _OWN and path.is_dir():
                (self.root / path.name).mkdir()
        for name in _ETC:
            source = Path("/etc") / name
            if source.is_dir():
                shutil.copytree(source, self.root / "etc" / name, symlinks=True)
            elif source.exists():
                shutil.copy(source, self.root / "etc" / name)
        for program in (HERE / "programs").glob("*.py"):
            shutil.copy(program, self.at("/opt/cni/lib"))
        for name in REAL:
            self.at(f"{BIN}/{name}").symlink_to(f"/usr/lib/cni/{name}")
        for name in RECORDED:
            self._program(name, "recorded")
        for name, program in SCRIPTED.items():
            if isinstance(program, str):
                self._program(name, program)
            else:
                self._program(*program)
                self.at(f"{BIN}/{name}").symlink_to(program[0])
        self._secondary_networks()

    def _program(self, name: str, module: str) -> None:
        path = self.at(f"{BIN}/{name}")
        interpreter = Path(sys.executable).resolve()
        path.write_text(f"#!{interpreter} -ISB\nimport sys\nsys.path.insert(0, '/opt/cni/lib')\nimport {module}\n")
        path.chmod(0o755)

    def _secondary_networks(self) -> None:
        ipam = {"type": "host-local"}
        self.stage.definition("b", {"cniVersion": "1.1.0", "type": "bridge", "bridge": "br1", "isGateway": True,
                                    "ipam": {**ipam, "subnet": "10.89.0.0/16"}})  # fmt: skip
        self.stage.definition("m", {"cniVersion": "0.4.0", "type": "macvlan", "master": "br1",
                                    "ipam": {**ipam, "subnet": "10.90.0.0/16"}})  # fmt: skip

    def write(self, path: str, text: str = "") -> None:
        """Write a file of the node."""
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(text)

    def install(self, conflist: Path) -> None:
        """Put a default network's config in place, untouched, and ours in front of it by the real command."""
        shutil.copy(conflist, self.at(CONF))
        words = ["install", "--cni-bin-dir", BIN, "--cni-conf-dir", CONF, "--socket-dir", SOCKET, "--cni-dir", STATE]
        command = self._in_node([sys.executable, "-m", "multus_py.cli.main", *words], chroot=True)
        done = subprocess.run(command, env=_environment(), cwd="/", capture_output=True, text=True, check=False)
        assert 0 == done.returncode, done.stderr
        if not self.chrooted:  # the path that ours names is the node's, the daemon sees it elsewhere
            self.options["clusterNetwork"] = f"{CONF}/{conflist.name}"

    # --- the daemon ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon and wait until it is ready."""
        inside = "" if self.chrooted else str(self.root)
        paths = {"confDir": "/etc/cni/multus/net.d", "cniDir": STATE, "socketDir": SOCKET,
                 "manifests": "/etc/multus-py/manifests", **self.options}  # fmt: skip
        placed = {key: inside + value if isinstance(value, str) else value for key, value in paths.items()}
        chroot = {} if self.chrooted else {"chrootDir": str(self.root)}
        self.write("/etc/multus-py/daemon.json", json.dumps({**placed, **chroot, "binDir": BIN, "logLevel": "info"}))
        command = [
            sys.executable,
            "-m",
            "multus_py.cli.main",
            "daemon",
            "--config",
            f"{inside}/etc/multus-py/daemon.json",
        ]
        with (self.folder / "log").open("ab") as log:
            said_before = log.tell()
            self.process = namespaces.run_in(
                self.host,
                lambda: subprocess.Popen(
                    self._in_node(command, chroot=self.chrooted), stderr=log, stdout=log, env=_environment(), cwd="/"
                ),
            )
        until(lambda: self._ready(said_before), self.log)

    def _in_node(self, command: list[str], *, chroot: bool) -> list[str]:
        """Return the command that runs *command* where the node's directory is complete; its mounts go with it."""
        shared = [path.name for path in self.root.iterdir() if path.is_dir() and not path.is_symlink()]
        mounts = [f"mount --bind {self.root} {self.root}"]
        mounts += [f"mount --rbind /{name} {self.root}/{name}" for name in shared if name not in _OWN]
        mounts.append(f"mount --rbind /run/netns {self.root}/run/netns")
        if not chroot:  # the manifest mounts what pods hold on the node, where native delegates look for it
            mounts.append(f"mount --bind {self.root}/var/lib /var/lib")
        place = f"chroot {self.root} " if chroot else ""
        script = "; ".join(["set -e", *mounts, f'exec {place}"$@"'])
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "daemon", *command]

    def _ready(self, said_before: int) -> bool:
        assert self.process and self.process.poll() is None, self.log()
        return "\n" in (said := self.log()[said_before:]) and any(line.endswith(" ready") for line in said.splitlines())

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the daemon."""
        if self.process:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def restart(self) -> None:
        """End the daemon as a node's power cut would, and start it again."""
        self.stop(signal.SIGKILL)
        self.start()

    def log(self) -> str:
        """Return what the daemon logged."""
        return (self.folder / "log").read_text()

    # --- the runtime --------------------------------------------------------------------------------------------------

    def shim(self, verb: str, config: Mapping[str, Any], **env: str) -> tuple[int, Any]:
        """Run the shim in the node as the runtime does; return exit code and what it printed."""
        config_json = json.dumps({"socketDir": SOCKET, "cniDir": STATE, **config})
        command = ["/usr/sbin/chroot", self.root, f"{BIN}/multus-py"]
        env = {"CNI_COMMAND": verb, "CNI_PATH": BIN, **env}
        done = subprocess.run(
            command, input=config_json, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None

    def run(self, program: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
        """Run a program in the node."""
        command = self._in_node([program], chroot=True)
        return subprocess.run(command, env={**_environment(), **env}, capture_output=True, check=False, cwd="/")

    # --- what is there ------------------------------------------------------------------------------------------------

    def calls(self, plugin: str = "", verb: str = "") -> list[dict[str, Any]]:
        """Return what the recorded and scripted executables were asked, in the order of their ends."""
        path = self.at("/var/log/cni-calls")
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [
            call
            for call in calls
            if plugin in ("", Path(call["argv0"]).name) and verb in ("", call["env"]["CNI_COMMAND"])
        ]

    def status(self, pod: str = "p") -> list[dict[str, Any]]:
        """Return the published network-status of a pod."""
        store = Manifests(self.at("/etc/multus-py/manifests"), self.at(f"{STATE}/pods"))
        return json.loads(store.pod(PodRef("default", pod)).annotations.get(NETWORK_STATUS, "[]"))

    def links(self, netns: str = "") -> list[str]:
        """Return the names of the links in the pod (or in *netns*), lo aside."""
        with netlink.open(netns or self.netns) as kernel:
            return [link.name for link in kernel.links() if link.name != "lo"]

    def addresses(self, ifname: str) -> set[str]:
        """Return the global addresses of an interface of the pod, without prefix."""
        command = ["ip", "-n", Path(self.netns).name, "-j", "addr", "show", "dev", ifname]
        shown = json.loads(subprocess.check_output(command))
        return {one["local"] for link in shown for one in link["addr_info"] if one["scope"] == "global"}

    def mac(self, ifname: str) -> str:
        """Return the hardware address of an interface of the pod."""
        with netlink.open(self.netns) as kernel:
            return kernel.link(ifname).mac

    def left(self) -> list[str]:
        """Return what is left of pods anywhere on the node: links, rules, addresses, state of every system, ours."""
        found = [f"link {name}" for name in self.links(self.host) if name not in ("br1", "cni0", "weave")]
        found += [f"pod link {name}" for name in self.links()]
        rules = subprocess.check_output(["ip", "netns", "exec", Path(self.host).name, "iptables-save"], text=True)
        found += [line for line in rules.splitlines() if "CNI-DN-" in line]
        for folder in _STATES:
            files = [path for path in self.at(folder).rglob("*") if path.is_file()]
            found += [str(path.relative_to(self.root)) for path in files if not path.name.startswith(_STAYS)]
        azure = self.at("/run/azure-vnet.json")
        return found + (list(json.loads(azure.read_text())) if azure.exists() else [])


# Where the real executables, the scripted ones and we keep what belongs to one pod.
_STATES = ("/run/datastore", "/run/cni", "/var/lib/cni/networks", "/var/lib/cni/flannel",
           *(f"{STATE}/{part}" for part in ("attachments", "results", "pods", "spool")))  # fmt: skip
_STAYS = ("lock", "last_reserved_ip", "events.jsonl", ".lock", ".reserving")


@dataclass(frozen=True)
class Runtime:
    """A container runtime that reads our conf as containerd does: the pod's names, and the capabilities we declare."""

    world: World
    pod: str = "p"
    container: str = "4f1a5c0de2b94d3e8a7f"
    annotations: Mapping[str, str] = field(default_factory=dict)
    ports: bool = True

    @property
    def args(self) -> dict[str, str]:
        """The pairs of CNI_ARGS."""
        return {"IgnoreUnknown": "1", "K8S_POD_UID": UID, "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": self.pod,
                "K8S_POD_INFRA_CONTAINER_ID": self.container}  # fmt: skip

    @property
    def capabilities(self) -> dict[str, Any]:
        """What it has to say, before it looks who wants to hear."""
        ports = {"portMappings": PORTS} if self.ports else {}
        return {**ports, "bandwidth": RATES, "io.kubernetes.cri.pod-annotations": dict(self.annotations)}

    def call(self, verb: str, netns: str | None = None, **more: Any) -> tuple[int, Any]:
        """Make one call; the config is that of the first file in the folder."""
        first = min(self.world.at(CONF).glob("*.conf*"))
        conf = json.loads(first.read_text())
        plugin = dict(conf["plugins"][0])
        declared = plugin.get("capabilities", {})
        runtime_config = {key: value for key, value in self.capabilities.items() if declared.get(key)}
        config = {**plugin, "name": conf["name"], "cniVersion": max(conf["cniVersions"]), **more,
                  **({"runtimeConfig": runtime_config} if runtime_config else {})}  # fmt: skip
        return self.world.shim(
            verb, config, CNI_CONTAINERID=self.container, CNI_NETNS=self.world.netns if netns is None else netns,
            CNI_IFNAME="eth0", CNI_ARGS=";".join(f"{key}={value}" for key, value in self.args.items()),
        )  # fmt: skip


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}


def until(true: Callable[[], object], why: Callable[[], str] = lambda: "", seconds: float = 20) -> None:
    """Wait until something holds; fail after *seconds*."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain; {why()}"
        time.sleep(0.02)
