# SPDX-License-Identifier: Apache-2.0
"""Which kinds of links the kernel can make: each is tried in a namespace that is thrown away.

The kernel loads a module for a kind when it has one, as it would for the first pod that asks.
"""

import errno
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from multus_py.cli.doctor.finding import Finding, Level, failed
from multus_py.cli.doctor.place import Place
from multus_py.cni.errors import CniError
from multus_py.kernel import netlink, wire

_IFINFO = struct.Struct("=BxHiII")  # ifinfomsg (linux/rtnetlink.h)
_NATIVE = ("bridge", "veth", "macvlan")  # what our own delegates make
_FILTERING = "bridge VLAN filtering"
_MODULES = {"vlan": "8021q", "bond": "bonding"}  # the others are called as their kind


@dataclass(frozen=True)
class Kind:
    """A kind of link: *data* is what the kernel asks for to make one, *on_parent* whether it needs another link."""

    name: str
    data: bytes = b""
    on_parent: bool = False


KINDS = (
    Kind("bridge"),
    Kind("veth"),
    Kind("macvlan", wire.number(1, 4), on_parent=True),  # IFLA_MACVLAN_MODE: bridge
    Kind("macvtap", wire.number(1, 4), on_parent=True),
    Kind("ipvlan", on_parent=True),
    Kind("vlan", wire.attribute(1, struct.pack("=H", 7)), on_parent=True),  # IFLA_VLAN_ID
    Kind("vxlan", wire.number(1, 7)),  # IFLA_VXLAN_ID
    Kind("vrf", wire.number(1, 1007)),  # IFLA_VRF_TABLE
    Kind("dummy"),
    Kind("bond"),
)


def findings(place: Place) -> Iterator[Finding]:  # noqa: ARG001  every area is asked in the same way
    """Yield which kinds there are and which are missing."""
    try:
        there = kinds()
    except CniError as trouble:
        yield failed("kernel", trouble)
        return
    wanted = (*(kind.name for kind in KINDS), _FILTERING)
    yield Finding(Level.OK, "kernel", f"makes {', '.join(name for name in wanted if name in there)}")
    for name in (name for name in wanted if name not in there):
        level = Level.FAILED if name in _NATIVE else Level.NOTE
        advice = f"modprobe {_MODULES.get(name, name)}, or another kernel"
        if name == _FILTERING:
            advice = "it takes a kernel built with CONFIG_BRIDGE_VLAN_FILTERING"
        yield Finding(level, "kernel", f"cannot make {name}: networks that need it will fail", advice)


def kinds() -> set[str]:
    """Return the kinds of links that can be made; a CniError when no namespace can be had to try it in."""
    with tempfile.TemporaryDirectory(prefix="multus-py-doctor-") as folder:
        netns = f"{folder}/net"
        netlink.create_namespace(netns)
        try:
            return netlink.visit(netns, _kinds)
        finally:
            netlink.remove_namespace(netns)


def _kinds() -> set[str]:
    asked = wire.Socket()
    try:
        # One that goes on another link goes on an end of the pair, which takes them all.
        found = {kind.name for kind in KINDS if not kind.on_parent and _made(asked, kind)}
        parent = _index(asked, _name(Kind("veth"))) if "veth" in found else 0
        found |= {kind.name for kind in KINDS if kind.on_parent and parent and _made(asked, kind, parent)}
    finally:
        asked.close()
    with netlink.open() as kernel:
        return found | _filtering(kernel)


def _filtering(kernel: netlink.Netlink) -> set[str]:
    """Try to have a bridge filter VLANs: a kernel without it takes the word and does nothing."""
    try:
        kernel.create_bridge("try-filtering", vlan_filtering=True)
        return {_FILTERING} if kernel.link("try-filtering").vlan_filtering else set()
    except CniError:
        return set()


def _made(asked: wire.Socket, kind: Kind, parent: int = 0) -> bool:
    """Tell whether the kernel knows the kind: any refusal but "not supported" comes from one that does."""
    link = wire.nested(18, wire.text(1, kind.name), wire.nested(2, kind.data) if kind.data else b"")
    body = _IFINFO.pack(0, 0, 0, 0, 0) + wire.text(3, _name(kind)) + link
    try:
        asked.tell(wire.NEWLINK, body + (wire.number(5, parent) if parent else b""), wire.CREATE | wire.EXCL)
    except OSError as cause:
        return cause.errno not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
    return True


def _name(kind: Kind) -> str:
    return f"try-{kind.name}"


def _index(asked: wire.Socket, name: str) -> int:
    answer = asked.get(wire.GETLINK, _IFINFO.pack(0, 0, 0, 0, 0) + wire.text(3, name))
    return int(_IFINFO.unpack_from(answer)[2])
