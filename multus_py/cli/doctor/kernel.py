# SPDX-License-Identifier: Apache-2.0
"""Which kinds of links the kernel can make: each is tried in a namespace that is thrown away.

The kernel loads a module for a kind when it has one, as it would for the first pod that asks.
"""

import errno
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from multus_py.cli.doctor.node import ExaminedNode
from multus_py.cli.doctor.node_finding import Level, NodeFinding, error_finding
from multus_py.cni.errors import CniError
from multus_py.kernel import namespaces, netlink
from multus_py.kernel.netlink import Netlink

_NATIVE = ("bridge", "veth", "macvlan")  # what our own delegates make
_FILTERING = "bridge VLAN filtering"
_MODULES = {"vlan": "8021q", "bond": "bonding"}  # other modules have the name of their kind


@dataclass(frozen=True)
class Kind:
    """A kind of link. *settings* are what the kernel requires, by pyroute2's names; *on_parent*: on another link."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_parent: bool = False


KINDS = (
    Kind("bridge"),
    Kind("veth"),
    Kind("macvlan", {"macvlan_mode": "bridge"}, on_parent=True),
    Kind("macvtap", {"macvtap_mode": "bridge"}, on_parent=True),
    Kind("ipvlan", on_parent=True),
    Kind("vlan", {"vlan_id": 7}, on_parent=True),
    Kind("vxlan", {"vxlan_id": 7}),
    Kind("vrf", {"vrf_table": 1007}),
    Kind("dummy"),
    Kind("bond"),
)


def findings(node: ExaminedNode) -> Iterator[NodeFinding]:  # noqa: ARG001  every area is asked in the same way
    """Yield which kinds the kernel supports and which it does not."""
    try:
        supported = kinds()
    except CniError as error:
        yield error_finding("kernel", error)
        return
    tried = (*(kind.name for kind in KINDS), _FILTERING)
    yield NodeFinding(Level.OK, "kernel", f"makes {', '.join(name for name in tried if name in supported)}")
    for name in (name for name in tried if name not in supported):
        level = Level.FAILED if name in _NATIVE else Level.NOTE
        advice = f"modprobe {_MODULES.get(name, name)}, or another kernel"
        if name == _FILTERING:
            advice = "it takes a kernel built with CONFIG_BRIDGE_VLAN_FILTERING"
        yield NodeFinding(level, "kernel", f"cannot make {name}: networks that need it will fail", advice)


def kinds() -> set[str]:
    """Return the kinds of links that can be made; a CniError when no namespace can be had to try it in."""
    with tempfile.TemporaryDirectory(prefix="multus-py-doctor-") as folder:
        netns = f"{folder}/net"
        namespaces.create(netns)
        try:
            return namespaces.run_in(netns, _kinds)
        finally:
            namespaces.remove(netns)


def _kinds() -> set[str]:
    with IPRoute() as kernel:
        # A link on another link is tried on one end of the veth pair, which every kind accepts.
        found = {kind.name for kind in KINDS if not kind.on_parent and _can_create(kernel, kind)}
        parent = kernel.link_lookup(ifname=_name(Kind("veth"))) if "veth" in found else []
        found |= {kind.name for kind in KINDS if kind.on_parent and parent and _can_create(kernel, kind, parent[0])}
    with netlink.open() as ours:
        return found | _filtering(ours)


def _filtering(kernel: Netlink) -> set[str]:
    """Try VLAN filtering on a bridge: a kernel without it accepts the setting and ignores it."""
    try:
        kernel.create_bridge("try-filtering", vlan_filtering=True)
        return {_FILTERING} if kernel.link("try-filtering").vlan_filtering else set()
    except CniError:
        return set()


def _can_create(kernel: IPRoute, kind: Kind, parent: int = 0) -> bool:
    """Tell whether the kernel supports the kind: any error but "not supported" comes from a kernel that does."""
    settings = {**kind.settings, **({"link": parent} if parent else {})}
    try:
        kernel.link("add", ifname=_name(kind), kind=kind.name, **settings)
    except NetlinkError as cause:
        return cause.code not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
    return True


def _name(kind: Kind) -> str:
    return f"try-{kind.name}"
