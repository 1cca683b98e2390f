# SPDX-License-Identifier: Apache-2.0
"""Records to messages and back: the bodies of rtnetlink messages (linux/rtnetlink.h, linux/if_link.h)."""

import ipaddress
import socket
import struct

from multus_py.kernel import rtnl, wire
from multus_py.kernel.records import (
    ONLINK,
    Address,
    Hop,
    IPAddress,
    IPInterface,
    IPNetwork,
    Link,
    Neighbour,
    Route,
)

IFINFO = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, mask of the flags to change
IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
# rtmsg: family, prefix lengths to and from, tos, table, protocol, scope, type, flags
RTMSG = struct.Struct("=BBBBBBBBI")
NDMSG = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSION = {socket.AF_INET: 4, socket.AF_INET6: 6}
SKIP_STATISTICS = wire.number(rtnl.IFLA_EXT_MASK, rtnl.RTEXT_FILTER_SKIP_STATS)
# Without these a veth pair is allocated one queue for each processor and then reduced to one, which waits for an RCU
# grace period for each end while the RTNL lock is held.
ONE_QUEUE = wire.number(rtnl.IFLA_NUM_TX_QUEUES, 1) + wire.number(rtnl.IFLA_NUM_RX_QUEUES, 1)
WITH_VLANS = wire.number(rtnl.IFLA_EXT_MASK, rtnl.RTEXT_FILTER_BRVLAN)


def link_query(link: str | int) -> bytes:
    """Return the body that names one link by its name, alternative name or index."""
    if isinstance(link, int):
        return IFINFO.pack(0, 0, link, 0, 0)
    # IFLA_IFNAME takes 15 bytes; a longer name can only be an alternative one (IFLA_ALT_IFNAME).
    short = len(link.encode(errors="surrogateescape")) < 16
    return IFINFO.pack(0, 0, 0, 0, 0) + wire.text(rtnl.IFLA_IFNAME if short else rtnl.IFLA_ALT_IFNAME, link)


def link_name(name: str) -> bytes:
    """Return the attribute with a link's name."""
    return wire.text(rtnl.IFLA_IFNAME, name)


def link_settings(mtu: int = 0, mac: str = "", netns: int = -1) -> bytes:
    """Return the attributes of what is set: *mtu* 0, *mac* "" and *netns* -1 (a file descriptor) are left out."""
    return b"".join(
        (
            wire.number(rtnl.IFLA_MTU, mtu) if mtu else b"",
            wire.attribute(rtnl.IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))) if mac else b"",
            wire.number(rtnl.IFLA_NET_NS_FD, netns) if netns >= 0 else b"",
        )
    )


def link_kind(kind: str, data: bytes = b"") -> bytes:
    """Return the attribute with a link's kind and the attributes of that kind."""
    info = wire.nested(rtnl.IFLA_INFO_DATA, data) if data else b""
    return wire.nested(rtnl.IFLA_LINKINFO, wire.text(rtnl.IFLA_INFO_KIND, kind), info)


def vlan_range(port: int, first: int, last: int, flags: int) -> bytes:
    """Pack a range of VLANs of a bridge port."""
    begin, end = flags | rtnl.BRIDGE_VLAN_INFO_RANGE_BEGIN, flags | rtnl.BRIDGE_VLAN_INFO_RANGE_END
    ends = [(flags, first)] if first == last else [(begin, first), (end, last)]
    infos = [wire.attribute(rtnl.IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", *part)) for part in ends]
    spec = wire.nested(
        rtnl.IFLA_AF_SPEC, wire.attribute(rtnl.IFLA_BRIDGE_FLAGS, struct.pack("=H", rtnl.BRIDGE_FLAGS_MASTER)), *infos
    )
    return IFINFO.pack(rtnl.AF_BRIDGE, 0, port, 0, 0) + spec


def read_link(body: bytes) -> Link:
    """Read a link."""
    _, _, index, flags, _ = IFINFO.unpack_from(body)
    attributes = wire.attributes(body, 16)
    info = wire.attributes(attributes.get(rtnl.IFLA_LINKINFO, b""))
    parent_netns = attributes.get(rtnl.IFLA_LINK_NETNSID)
    properties = wire.pairs(attributes.get(rtnl.IFLA_PROP_LIST, b""))
    return Link(
        index=index,
        name=wire.string(attributes.get(rtnl.IFLA_IFNAME)),
        kind=wire.string(info.get(rtnl.IFLA_INFO_KIND)),
        mac=attributes.get(rtnl.IFLA_ADDRESS, b"").hex(":"),
        mtu=wire.unsigned(attributes.get(rtnl.IFLA_MTU)),
        flags=flags,
        master=wire.unsigned(attributes.get(rtnl.IFLA_MASTER)),
        parent=wire.unsigned(attributes.get(rtnl.IFLA_LINK)),
        parent_netns=None if parent_netns is None else wire.unsigned(parent_netns),
        operstate=wire.unsigned(attributes.get(rtnl.IFLA_OPERSTATE)),
        group=wire.unsigned(attributes.get(rtnl.IFLA_GROUP)),
        promiscuity=wire.unsigned(attributes.get(rtnl.IFLA_PROMISCUITY)),
        alias=wire.string(attributes.get(rtnl.IFLA_IFALIAS)),
        altnames=tuple(wire.string(name) for kind, name in properties if kind == rtnl.IFLA_ALT_IFNAME),
        device=wire.string(attributes.get(rtnl.IFLA_PARENT_DEV_NAME)),
        data=info.get(rtnl.IFLA_INFO_DATA, b""),
        port=info.get(rtnl.IFLA_INFO_SLAVE_DATA, b""),
    )


def read_address(body: bytes) -> Address:
    """Read an address."""
    _, length, flags, scope, index = IFADDR.unpack_from(body)
    attributes = wire.attributes(body, 8)
    far = attributes.get(rtnl.IFA_ADDRESS, b"")  # the address itself, or the other end when IFA_LOCAL differs
    near = attributes.get(rtnl.IFA_LOCAL, far)
    return Address(
        ifindex=index,
        interface=ipaddress.ip_interface((near, length)),
        flags=wire.unsigned(attributes.get(rtnl.IFA_FLAGS)) or flags,
        scope=scope,
        label=wire.string(attributes.get(rtnl.IFA_LABEL)),
        peer=ipaddress.ip_address(far) if far != near else None,
    )


def address_body(index: int, interface: IPInterface, flags: int) -> bytes:
    """Pack an address of a link, IPv4 with its broadcast address."""
    packed = interface.ip.packed
    body = IFADDR.pack(FAMILY[interface.version], interface.network.prefixlen, flags, 0, index)
    body += wire.attribute(rtnl.IFA_LOCAL, packed) + wire.attribute(rtnl.IFA_ADDRESS, packed)
    if interface.version == 4 and interface.network.prefixlen < 31:
        body += wire.attribute(rtnl.IFA_BROADCAST, interface.network.broadcast_address.packed)
    return body


def read_route(body: bytes) -> Route:
    """Read a route."""
    family, length, _, _, table, protocol, scope, kind, flags = RTMSG.unpack_from(body)
    attributes = wire.attributes(body, 12)
    metrics = wire.attributes(attributes.get(rtnl.RTA_METRICS, b""))
    return Route(
        dst=_network(VERSION[family], attributes.get(rtnl.RTA_DST), length),
        gateway=_gateway(attributes),
        ifindex=wire.unsigned(attributes.get(rtnl.RTA_OIF)),
        priority=wire.unsigned(attributes.get(rtnl.RTA_PRIORITY)),
        table=wire.unsigned(attributes.get(rtnl.RTA_TABLE)) or table,
        scope=scope,
        protocol=protocol,
        kind=kind,
        source=ipaddress.ip_address(attributes[rtnl.RTA_PREFSRC]) if rtnl.RTA_PREFSRC in attributes else None,
        mtu=wire.unsigned(metrics.get(rtnl.RTAX_MTU)),
        advmss=wire.unsigned(metrics.get(rtnl.RTAX_ADVMSS)),
        flags=flags,
        hops=_hops(attributes.get(rtnl.RTA_MULTIPATH, b"")),
    )


def _network(version: int, packed: bytes | None, length: int) -> IPNetwork:
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    return kind((packed or bytes(4 if version == 4 else 16), length))


def _gateway(attributes: wire.Attributes) -> IPAddress | None:
    if rtnl.RTA_GATEWAY in attributes:
        return ipaddress.ip_address(attributes[rtnl.RTA_GATEWAY])
    via = attributes.get(rtnl.RTA_VIA)  # a gateway of another family, which comes first
    return ipaddress.ip_address(via[2:]) if via else None


def _hops(data: bytes) -> tuple[Hop, ...]:
    """Read RTA_MULTIPATH: rtnexthop records (length, flags, hops, index), each with attributes."""
    hops, start = [], 0
    while start + 8 <= len(data):
        length, _, _, index = struct.unpack_from("=HBBi", data, start)
        if length < 8:
            break
        hops.append(Hop(index, _gateway(wire.attributes(data[start + 8 : start + length]))))
        start += (length + 3) & ~3
    return tuple(hops)


def _via(family: int, gateway: IPAddress | None) -> bytes:
    if gateway is None:
        return b""
    own = FAMILY[gateway.version]
    return (
        wire.attribute(rtnl.RTA_GATEWAY, gateway.packed)
        if own == family
        else wire.attribute(rtnl.RTA_VIA, struct.pack("=H", own) + gateway.packed)
    )


def route_body(route: Route) -> bytes:
    """Pack a route."""
    family = FAMILY[route.dst.version]
    body = RTMSG.pack(
        family,
        route.dst.prefixlen,
        0,
        0,
        min(route.table, rtnl.RT_TABLE_COMPAT) if route.table > 255 else route.table,
        route.protocol,
        route.scope,
        route.kind,
        route.flags & ONLINK,  # the rest is the kernel's to say
    )
    hops = b"".join(_hop(family, hop, route.flags & ONLINK) for hop in route.hops)
    metrics = {rtnl.RTAX_MTU: route.mtu, rtnl.RTAX_ADVMSS: route.advmss}
    parts = [wire.number(kind, value) for kind, value in metrics.items() if value]
    return b"".join(
        (
            body,
            wire.attribute(rtnl.RTA_DST, route.dst.network_address.packed),
            wire.number(rtnl.RTA_TABLE, route.table),
            wire.number(rtnl.RTA_PRIORITY, route.priority) if route.priority else b"",
            wire.number(rtnl.RTA_OIF, route.ifindex) if route.ifindex else b"",
            _via(family, route.gateway),
            wire.attribute(rtnl.RTA_PREFSRC, route.source.packed) if route.source else b"",
            wire.nested(rtnl.RTA_METRICS, *parts) if parts else b"",
            wire.attribute(rtnl.RTA_MULTIPATH, hops) if hops else b"",
        )
    )


def _hop(family: int, hop: Hop, flags: int) -> bytes:
    via = _via(family, hop.gateway)
    return struct.pack("=HBBi", 8 + len(via), flags, 0, hop.ifindex) + via


def read_neighbour(body: bytes) -> Neighbour:
    """Read an entry of the neighbour table."""
    _, index, state, _, _ = NDMSG.unpack_from(body)
    attributes = wire.attributes(body, 12)
    return Neighbour(
        index, ipaddress.ip_address(attributes[rtnl.NDA_DST]), attributes.get(rtnl.NDA_LLADDR, b"").hex(":"), state
    )
