# SPDX-License-Identifier: Apache-2.0
"""Links, addresses, routes, neighbours and VLANs as frozen records, and the constants of their fields."""

import ipaddress
from dataclasses import dataclass, field
from functools import cached_property

from multus_py.kernel import rtnl, wire

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MAIN_TABLE, LOCAL_TABLE = 254, 255
IFF_UP, IFF_PROMISC = 0x1, 0x100
UNICAST = 1  # RTN_UNICAST
BOOT = 3  # RTPROT_BOOT: set by hand
RA = 9  # RTPROT_RA: learned from a router advertisement
ONLINK = 0x4  # RTNH_F_ONLINK: the gateway is on the link, whatever the other routes say
SCOPE_LINK, SCOPE_NOWHERE = 253, 255
OPER_UP = 6  # RFC 2863 through IF_OPER_UP
NODAD, DADFAILED, TENTATIVE = 0x02, 0x08, 0x40  # IFA_F_*
VLAN_PVID, VLAN_UNTAGGED = rtnl.BRIDGE_VLAN_INFO_PVID, rtnl.BRIDGE_VLAN_INFO_UNTAGGED
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
MTU_MAX = 0x7FFFFFFF


@dataclass(frozen=True)
class Link:
    """A network interface. *parent* is the link below it, or its peer (IFLA_LINK), 0 when there is none.

    *data* and *port* are the attributes of its kind and of its master's kind, unread (IFLA_INFO_DATA, _SLAVE_DATA).
    """

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    flags: int = 0
    master: int = 0
    parent: int = 0
    parent_netns: int | None = None  # IFLA_LINK_NETNSID: the parent lives in another namespace
    operstate: int = 0
    group: int = 0
    promiscuity: int = 0
    alias: str = ""
    altnames: tuple[str, ...] = ()
    device: str = ""  # IFLA_PARENT_DEV_NAME: the device below it, for PCI its address (Linux 5.14)
    data: bytes = field(default=b"", repr=False)
    port: bytes = field(default=b"", repr=False)

    @property
    def up(self) -> bool:
        """Tell whether it is set up (IFF_UP)."""
        return bool(self.flags & IFF_UP)

    @cached_property
    def _data(self) -> wire.Attributes:
        return wire.attributes(self.data)

    @cached_property
    def _port(self) -> wire.Attributes:
        return wire.attributes(self.port)

    @property
    def macvlan_mode(self) -> str:
        """Return a macvlan's mode by name."""
        mode = wire.unsigned(self._data.get(rtnl.IFLA_MACVLAN_MODE))
        return next((name for name, value in MACVLAN_MODES.items() if value == mode), "")

    @property
    def macvlan_queue(self) -> int:
        """Return a macvlan's broadcast queue length."""
        return wire.unsigned(self._data.get(rtnl.IFLA_MACVLAN_BC_QUEUE_LEN))

    @property
    def vlan_filtering(self) -> bool:
        """Tell whether a bridge filters VLANs."""
        return bool(wire.unsigned(self._data.get(rtnl.IFLA_BR_VLAN_FILTERING)))

    @property
    def hairpin(self) -> bool:
        """Tell whether a bridge port sends frames back out of itself (IFLA_BRPORT_MODE)."""
        return bool(wire.unsigned(self._port.get(rtnl.IFLA_BRPORT_MODE)))

    @property
    def isolated(self) -> bool:
        """Tell whether a bridge port exchanges frames only with ports that are not isolated (IFLA_BRPORT_ISOLATED)."""
        return bool(wire.unsigned(self._port.get(rtnl.IFLA_BRPORT_ISOLATED)))


@dataclass(frozen=True)
class Address:
    """An address on a link; *peer* is the other end of a point-to-point address."""

    ifindex: int
    interface: IPInterface
    flags: int = 0
    scope: int = 0
    label: str = ""
    peer: IPAddress | None = None


@dataclass(frozen=True)
class Hop:
    """One way of a route with several."""

    ifindex: int
    gateway: IPAddress | None = None


@dataclass(frozen=True)
class Route:
    """A route; *ifindex* 0 and no *gateway* when it has several *hops*. *mtu* and *advmss* 0: the link decides."""

    dst: IPNetwork
    gateway: IPAddress | None = None
    ifindex: int = 0
    priority: int = 0
    table: int = MAIN_TABLE
    scope: int = 0
    protocol: int = BOOT
    kind: int = UNICAST
    source: IPAddress | None = None
    mtu: int = 0
    advmss: int = 0
    flags: int = 0
    hops: tuple[Hop, ...] = ()

    @property
    def is_default(self) -> bool:
        """Tell whether it is a default route: prefix length 0."""
        return self.dst.prefixlen == 0

    @property
    def ways(self) -> tuple[Hop, ...]:
        """Its hops; the one that it is by when it has no more."""
        return self.hops or (Hop(self.ifindex, self.gateway),)


@dataclass(frozen=True)
class Neighbour:
    """An entry of the neighbour table: *mac* "" while it is unknown, *state* NUD_* of linux/neighbour.h."""

    ifindex: int
    address: IPAddress
    mac: str = ""
    state: int = 0


@dataclass(frozen=True)
class Vlan:
    """A VLAN of a bridge port, with its BRIDGE_VLAN_INFO_* flags."""

    vid: int
    flags: int = 0
