# SPDX-License-Identifier: Apache-2.0
"""The eight systems and every variant of their conflists: what each finds on its node, and what it says of a pod."""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world import World

DATA = Path(__file__).parent / "data"
KUBECONFIG = "/etc/cni/net.d/calico-kubeconfig"


@dataclass(frozen=True)
class Variant:
    """One conflist of one system. *ips*, *gateway*, *mac* and *mtu* are what network-status has to say of eth0.

    *result* is the file with an ADD result of the real system, whose shape the scripted one must have.
    """

    system: str
    name: str
    ips: tuple[str, ...]
    gateway: tuple[str, ...] = ()
    mac: bool = True
    mtu: int = 0
    # portmap 1.1.1 looks at CHECK for its IPv4 rules among the IPv6 ones, so a pod that is checked asks for no port.
    ports: bool = True
    result: str = "result.json"
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[World], None] = lambda world: None

    def __str__(self) -> str:
        return f"{self.system}-{self.name}"

    @property
    def conflist(self) -> Path:
        """The file as the system writes it."""
        (found,) = (DATA / self.system / self.name).glob("*.conflist")
        return found

    @property
    def body(self) -> dict[str, Any]:
        """What the file says."""
        return json.loads(self.conflist.read_text())

    def real_result(self) -> dict[str, Any] | None:
        """Return the real system's result, if one is known."""
        path = DATA / self.system / self.name / self.result
        return json.loads(path.read_text()) if path.exists() else None

    def install(self, world: World, conflist: Path | None = None) -> None:
        """Put everything that the system has on a node in place, then the conflist (or *conflist*) and ours."""
        world.write("/etc/scripted.json", json.dumps(self.settings))
        self.prepare(world)
        world.install(conflist or self.conflist)


def _cilium(world: World) -> None:
    """The agent's socket, and the folder by which it sees the host's namespaces."""
    world.write("/run/cilium/cilium.sock")
    (world.at("/run/cilium") / "netns").symlink_to("/run/netns")


def _calico(world: World) -> None:
    world.write("/var/lib/calico/nodename", "worker-1")
    world.write(KUBECONFIG, "apiVersion: v1\nkind: Config\n")


def _openshift(world: World) -> None:
    world.write("/var/lib/calico/nodename", "worker-1")
    world.write("/run/multus/cni/net.d/calico-kubeconfig", "apiVersion: v1\nkind: Config\n")


def _gke_calico(world: World) -> None:
    """There is no nodename file: the config says that it may be missing."""
    world.write(KUBECONFIG, "apiVersion: v1\nkind: Config\n")


def _flannel(world: World) -> None:
    pairs = {"NETWORK": "10.244.0.0/16", "SUBNET": "10.244.1.1/24", "MTU": "1450", "IPMASQ": "true"}
    world.write("/run/flannel/subnet.env", "".join(f"FLANNEL_{key}={value}\n" for key, value in pairs.items()))


def _weave(world: World) -> None:
    name = Path(world.host).name
    lines = "link add weave type bridge\nlink set weave up\naddr add 10.32.0.1/12 dev weave\n"
    subprocess.run(["ip", "-n", name, "-batch", "-"], input=lines, text=True, check=True)


def _aws(world: World) -> None:
    world.write("/run/aws-node/ipamd.sock")


def _all(*each: Callable[[World], None]) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        for one in each:
            one(world)

    return prepare


def _cilium_alone(system: str, name: str, **more: Any) -> Variant:
    return Variant(system, name, ("10.0.1.77",), ("10.0.1.23",), prepare=_cilium, **more)


def _calico_of(system: str, name: str, ip: str, release: str, mtu: int = 0, **more: Any) -> Variant:
    options = {"settings": {"calico": {"release": release}}, "prepare": _calico, **more}
    second = ("fd10:244::c482",) if "calico-ipam" in options["settings"] else ()
    return Variant(system, name, (ip, *second), mac=release >= "3.31", mtu=mtu, **options)


def _azure_of(name: str, *more_ips: str, **more: Any) -> Variant:
    return Variant("azure", name, ("10.241.0.21", *more_ips), ("10.241.0.1",), mac=False, **more)


def _gke_of(name: str, *more_ips: str, gateway: tuple[str, ...] = (), **more: Any) -> Variant:
    options = {"settings": {"cilium-cni": {"chained-names": ["gke-pod-network"]}}, "prepare": _cilium, **more}
    return Variant("gke", name, ("10.52.1.2", *more_ips), gateway, **options)


_DUAL_STACK = {"calico-ipam": {"dual-stack": True}}
VARIANTS = (
    _cilium_alone("cilium", "current"),
    _cilium_alone("cilium", "portmap"),
    Variant("cilium", "flannel-chained", ("10.244.1.2",), ("10.244.1.1",), prepare=_all(_cilium, _flannel)),
    Variant("cilium", "aws-chained", ("192.168.42.17",), mac=False, prepare=_all(_cilium, _aws)),
    _calico_of("calico", "current", "192.168.171.130", "3.32", ports=False),  # Debian's portmap knows no `mtu`
    _calico_of("calico", "manifest-v3.26", "192.168.171.130", "3.26", settings={
        **_DUAL_STACK, "calico": {"release": "3.26"}}),
    _calico_of("calico", "manifest-v3.31", "192.168.171.130", "3.31"),
    _calico_of("calico", "operator", "192.168.171.130", "3.32", settings=_DUAL_STACK, ports=False),
    _calico_of("calico", "operator-openshift", "192.168.171.130", "3.32", 1450, prepare=_openshift),
    _calico_of("canal", "current", "10.244.1.2", "3.32", ports=False),
    Variant("flannel", "current", ("10.244.1.2",), ("10.244.1.1",), prepare=_flannel),
    Variant("flannel", "since-2026-08", ("10.244.1.2",), ("10.244.1.1",), prepare=_flannel, ports=False),
    Variant("weave", "current", ("10.32.0.5",), mac=False, prepare=_weave),
    Variant("aws", "current", ("192.168.42.17",), mac=False, prepare=_aws),
    Variant("aws", "bandwidth", ("192.168.42.17",), mac=False, prepare=_aws),
    Variant("aws", "ipv6-cluster", ("192.168.42.17",), mac=False, prepare=_aws),
    Variant("aws", "v1.5.7", ("192.168.42.17",), mac=False, prepare=_aws, settings={"aws-cni": {"release": "1.5"}}),
    _azure_of("overlay"),
    _azure_of("overlay-v4"),
    _azure_of("overlay-dualstack", "fd11::15"),
    _azure_of("swift"),
    _azure_of("multitenancy"),
    Variant("azure", "legacy", ("10.244.1.77",), ("10.241.0.1",), mac=False),
    _azure_of("chained-cilium", prepare=_cilium),
    Variant("azure", "cilium", ("10.244.1.77",), ("10.244.1.23",), prepare=_cilium),
    _gke_of("current"),
    _gke_of("dualstack", "2600:1900:4000:318:0:7:0:2"),
    _gke_of("dpv2"),
    _gke_of("dpv2-generic-veth"),
    _gke_of("dpv2-istio"),
    Variant("gke", "calico", ("10.244.1.2", "2600:1900:4000:318:0:7:0:2"), prepare=_gke_calico),
)  # fmt: skip


def named(name: str) -> Variant:
    """Return the variant `<system>-<variant>`."""
    return next(variant for variant in VARIANTS if str(variant) == name)
