# SPDX-License-Identifier: Apache-2.0
"""A real containerd and runc call the plugin: every interface is there, and nothing of a pod stays when it goes."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="grpcio speaks CRI")
import grpc
from rig import NEEDED, Rig, Sandbox, containerd

from multus_py.cli.main import main

EXECUTABLES = Path("/usr/lib/cni")
MISSING = [name for name in NEEDED if not shutil.which(name)] + [
    name for name in ("loopback", "bridge", "host-local", "portmap") if not (EXECUTABLES / name).exists()
]
pytestmark = [
    pytest.mark.containerd,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container runtime needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
PARENT = "lan0"


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A containerd of the test's own, with a link for macvlan in its namespace."""
    with containerd() as rig:
        rig.run("ip", "link", "add", PARENT, "type", "veth", "peer", "name", f"{PARENT}-far")
        for link in (PARENT, f"{PARENT}-far"):
            rig.run("ip", "link", "set", link, "up")
        # containerd itself calls `loopback` for every sandbox.
        (rig.bin / "loopback").symlink_to(EXECUTABLES / "loopback")
        yield rig


def _ipam(rig: Rig, subnet: str) -> dict[str, Any]:
    return {"type": "host-local", "dataDir": str(rig.root / "leases"), "ranges": [[{"subnet": subnet}]]}


def _definition(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"config": json.dumps({"cniVersion": "1.0.0", **config})},
    }


def _pod(name: str, networks: list[dict[str, Any]]) -> dict[str, Any]:
    annotations = {"k8s.v1.cni.cncf.io/networks": json.dumps(networks)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "annotations": annotations},
    }


def _install(rig: Rig, primary: list[dict[str, Any]], backend: str, *objects: dict[str, Any]) -> None:
    """Put manifests and a primary in place, and ourselves in front of it, as a person would."""
    for body in objects:
        path = rig.root / "manifests" / f"{body['kind']}-{body['metadata']['name']}.json"
        path.write_text(json.dumps(body))
    conf = {"cniVersion": "1.0.0", "name": "cluster", "plugins": primary}
    (rig.conf / "10-cluster.conflist").write_text(json.dumps(conf))
    words = [
        "--standalone",
        "--cni-bin-dir",
        rig.bin,
        "--cni-conf-dir",
        rig.conf,
        "--manifests",
        rig.root / "manifests",
    ]
    words += ["--cni-dir", rig.root / "cni", "--delegate-backend", backend]
    assert main(["install", *map(str, words)]) == 0
    rig.await_network()


def _addresses(sandbox: Sandbox) -> dict[str, str]:
    """Return the IPv4 address of each interface of a sandbox."""
    links = json.loads(sandbox.run("ip", "-j", "-4", "address"))
    return {link["ifname"]: link["addr_info"][0]["local"] for link in links if link["ifname"] != "lo"}


def _traces(rig: Rig) -> dict[str, Any]:
    """Return all that a pod could leave behind on the node. Bridges stay, as they do with the reference plugin."""
    links = json.loads(rig.run("ip", "-j", "link"))
    leases = [path for path in (rig.root / "leases").rglob("*") if re.fullmatch(r"[0-9a-f.:]+", path.name)]
    # A lock file belongs to the folder, not to a pod.
    state = [path for path in (rig.root / "cni").rglob("*") if path.is_file() and path.name != ".lock"]
    rules = rig.run("iptables-save").splitlines() if shutil.which("iptables-save") else []
    return {
        "links": sorted(link["ifname"] for link in links if link["ifname"] not in rig.bridges()),
        "namespaces": rig.namespaces(),
        "results": rig.results(),
        "leases": [path for path in leases if path.is_file()],
        "state": state,
        # portmap keeps its empty top chains for ever; what carries a pod's name or address must go.
        "rules": sorted(rule for rule in rules if "CNI-DN-" in rule or re.search(r"10\.2[0-9]\.", rule)),
    }


def _meet(one: Sandbox, other: Sandbox) -> None:
    """Ping every address of *other* from *one*, out of the interface of the same name."""
    for interface, address in _addresses(other).items():
        one.run("ping", "-c", "1", "-W", "3", "-I", interface, address)


def test_two_pods_meet_on_each_network_and_leave_nothing(rig: Rig) -> None:
    """Default bridge, a second bridge and macvlan with our own delegates, from RunPodSandbox to RemovePodSandbox."""
    networks = [{"name": "lan"}, {"name": "second", "interface": "two0"}]
    _install(
        rig,
        [{"type": "bridge", "bridge": "br-pods", "isDefaultGateway": True, "ipam": _ipam(rig, "10.20.0.0/24")}],
        "builtin",
        _definition("lan", {"type": "macvlan", "master": PARENT, "name": "lan", "ipam": _ipam(rig, "10.21.0.0/24")}),
        _definition(
            "second", {"type": "bridge", "bridge": "br-2", "name": "second", "ipam": _ipam(rig, "10.22.0.0/24")}
        ),
        _pod("one", networks),
        _pod("two", networks),
    )
    before = _traces(rig)
    one, two = rig.sandbox("one"), rig.sandbox("two")
    assert _addresses(one).keys() == _addresses(two).keys() == {"eth0", "net1", "two0"}
    assert one.status()["status"]["network"]["ip"] == _addresses(one)["eth0"], "CRI tells the default network's address"
    _meet(one, two)
    for sandbox in (one, two):
        sandbox.remove()
    assert _traces(rig) == before


def test_the_distribution_s_plugins_work_as_delegates(rig: Rig) -> None:
    """Debian's bridge, tuning, bandwidth and portmap in chains, on the default network and on another one."""
    for name in ("bridge", "host-local", "portmap", "bandwidth", "tuning"):
        (rig.bin / name).symlink_to(EXECUTABLES / name)
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    _install(
        rig,
        [
            {"type": "bridge", "bridge": "br-pods", "isDefaultGateway": True, "ipam": _ipam(rig, "10.20.0.0/24")},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            portmap,
        ],
        "exec",
        _definition(
            "second",
            {
                "name": "second",
                "plugins": [
                    {"type": "bridge", "bridge": "br-2", "isGateway": True, "ipam": _ipam(rig, "10.22.0.0/24")},
                    portmap,
                ],
            },
        ),
        _pod(
            "one", [{"name": "second", "portMappings": [{"hostPort": 18081, "containerPort": 81, "protocol": "tcp"}]}]
        ),
        _pod("two", [{"name": "second"}]),
    )
    before = _traces(rig)
    one = rig.sandbox("one", port_mappings=[{"container_port": 80, "host_port": 18080}])
    two = rig.sandbox("two", annotations={"kubernetes.io/ingress-bandwidth": "10M"})
    assert _addresses(one).keys() == _addresses(two).keys() == {"eth0", "net1"}
    assert one.run("cat", "/proc/sys/net/ipv4/conf/eth0/arp_notify").strip() == "1"
    rules = rig.run("iptables-save", "-t", "nat")
    for interface, ports in (("eth0", ("18080", 80)), ("net1", ("18081", 81))):
        assert f"--dport {ports[0]} -j DNAT --to-destination {_addresses(one)[interface]}:{ports[1]}" in rules
    assert "tbf" in rig.run("tc", "qdisc", "show")
    _meet(one, two)
    for sandbox in (one, two):
        sandbox.remove()
    assert _traces(rig) == before


def test_a_pod_that_cannot_be_attached_leaves_nothing(rig: Rig) -> None:
    """containerd is told the network's name, and what was attached before it is taken back."""
    _install(
        rig,
        [{"type": "bridge", "bridge": "br-pods", "ipam": _ipam(rig, "10.20.0.0/24")}],
        "builtin",
        _definition(
            "lan", {"type": "macvlan", "master": "no-such0", "name": "lan", "ipam": _ipam(rig, "10.21.0.0/24")}
        ),
        _pod("one", [{"name": "lan"}]),
    )
    before = _traces(rig)
    with pytest.raises(grpc.RpcError) as refusal:
        rig.sandbox("one")
    assert "default/lan" in refusal.value.details()
    assert "no-such0" in refusal.value.details()
    assert _traces(rig) == before


def test_a_pod_whose_namespace_is_gone_is_released(rig: Rig) -> None:
    """After a reboot there are no namespaces, and the runtime removes the old sandboxes: their addresses come free."""
    _install(
        rig,
        [{"type": "bridge", "bridge": "br-pods", "ipam": _ipam(rig, "10.20.0.0/24")}],
        "builtin",
        _definition("lan", {"type": "macvlan", "master": PARENT, "name": "lan", "ipam": _ipam(rig, "10.21.0.0/24")}),
        _pod("one", [{"name": "lan"}]),
    )
    before = _traces(rig)
    one = rig.sandbox("one")
    assert _traces(rig) != before
    netns = one.netns
    rig.run("umount", "-l", str(netns))
    netns.unlink()
    one.remove()
    assert _traces(rig) == before
