# SPDX-License-Identifier: Apache-2.0
"""The kernel's door: links, addresses, routes and namespaces, as records and verbs. Nothing here knows of CNI networks.

`with netlink.open(netns) as kernel` gives one socket inside one namespace; it may be used from the calling thread.
"""

import errno
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from multus_py.cni.errors import CniError, Code
from multus_py.kernel import small_files, virtual_functions, wire

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
T = TypeVar("T")

MAIN_TABLE, LOCAL_TABLE = 254, 255
IFF_UP, IFF_PROMISC = 0x1, 0x100
UNICAST = 1  # RTN_UNICAST
BOOT = 3  # RTPROT_BOOT: set by hand
RA = 9  # RTPROT_RA: learned from a router advertisement
ONLINK = 0x4  # RTNH_F_ONLINK: the gateway is on the link, whatever the other routes say
SCOPE_LINK, SCOPE_NOWHERE = 253, 255
OPER_UP = 6  # RFC 2863 through IF_OPER_UP
NODAD, DADFAILED, TENTATIVE = 0x02, 0x08, 0x40  # IFA_F_*
VLAN_PVID, VLAN_UNTAGGED = 0x02, 0x04  # BRIDGE_VLAN_INFO_*
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
MTU_MAX = 0x7FFFFFFF

_IFINFO = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, mask of the flags to change
_IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_RTMSG = struct.Struct(
    "=BBBBBBBBI"
)  # rtmsg: family, prefix lengths to and from, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_VERSION = {socket.AF_INET: 4, socket.AF_INET6: 6}
_AF_BRIDGE = 7
_SKIP_STATISTICS = wire.number(29, 1 << 3)  # IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS
# IFLA_NUM_TX_QUEUES, _RX_QUEUES: a pair that is not told gets room for one a processor and is cut down to one, which
# costs a grace period of RCU for each end while nobody else can touch a network interface.
_ONE_QUEUE = wire.number(31, 1) + wire.number(32, 1)
_WITH_VLANS = wire.number(29, 1 << 1)  # IFLA_EXT_MASK with RTEXT_FILTER_BRVLAN
_LOOK = 0.05  # seconds between two looks whether links are gone and nothing tells
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MNT_DETACH = 0x1000, 2
_OWN_NAMESPACE = "/proc/thread-self/ns/net"
_ADVICE = {
    errno.EPERM: "it takes root with CAP_NET_ADMIN and CAP_SYS_ADMIN",
    errno.EOPNOTSUPP: "this kernel is built without it, or its module is not loaded",
    errno.EAFNOSUPPORT: "this kernel is built without this address family",
    errno.EBUSY: "another interface or process holds it",
    errno.ENODEV: "it is not there (any more): was it removed, renamed or moved?",
    errno.ENETDOWN: "the interface is down",
}
_OFF_ON = ("off", "on")
# What the same numbers mean where a deed gives them a meaning of its own.
_Advice = Mapping[int, str]
_NO_ADVICE: _Advice = {}
_FOR_LINKS: _Advice = {
    errno.EADDRNOTAVAIL: "a hardware address must be one interface's: neither multicast nor zero",
    errno.EEXIST: "another interface has this name",
    errno.EINVAL: "is the MTU one that this kind of interface takes?",
    errno.ENODEV: "an interface that it names is not there (any more): was it removed, renamed or moved?",
    errno.ERANGE: "is the MTU one that this kind of interface takes?",
}
_FOR_REMOVALS: _Advice = {errno.EOPNOTSUPP: "the kernel lets nobody remove interfaces of this kind"}
_FOR_ADDRESSES: _Advice = {
    errno.EACCES: "IPv6 is switched off there: net.ipv6.conf.<interface>.disable_ipv6",
    errno.EADDRNOTAVAIL: "the interface does not have it, or nobody can",
    errno.EEXIST: "the interface has it already: does another plugin, or another network of the pod, give it, too?",
    errno.EINVAL: "it is no address that an interface can have",
}
_NO_WAY = (
    "no network of the interface holds the gateway: add a route to it that has no gateway (scope 253), or correct it"
)
_FOR_ROUTES: _Advice = {
    errno.EACCES: "IPv6 is switched off there: net.ipv6.conf.<interface>.disable_ipv6",
    errno.EEXIST: "another interface has a route of this destination and priority: give one of them another priority",
    errno.EHOSTUNREACH: _NO_WAY,
    errno.EINVAL: "is the gateway an address of this very host, or does its scope leave out gateways?",
    errno.ENETUNREACH: _NO_WAY,
    errno.ESRCH: "it is not there (any more)",
}


class NetlinkError(CniError):
    """The kernel refused a deed; *errno* is its number, *reason* that number in words and what the kernel said."""

    def __init__(self, code: int, msg: str, details: str = "", number: int = 0, reason: str = "") -> None:
        super().__init__(code, msg, details)
        self.errno = number
        self.reason = reason

    @classmethod
    def of(cls, deed: str, cause: OSError, advice: _Advice = _NO_ADVICE) -> "NetlinkError":
        """Return the error for *deed*, with the kernel's name for the trouble and what it said about it.

        *advice* is what the deed knows to do about a number, before what is said of it everywhere.
        """
        number = cause.errno or 0
        name = "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))
        said = cause.strerror if isinstance(cause, wire.Refused) else ""
        reason = f"{os.strerror(number)} ({name})" + (f": {said}" if said else "") if number else str(cause)
        code = Code.TRY_AGAIN if number in (errno.EINTR, errno.ENOBUFS) else Code.INTERNAL
        details = advice.get(number) or _ADVICE.get(number, "")
        return cls(code, f"cannot {deed}: {reason}", details, number, reason)


class NoNamespace(NetlinkError):
    """Nothing is at the path, or what is there is no network namespace: what was inside is gone."""


# --- records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """A network interface. *parent* is the link it sits on or its peer (IFLA_LINK), 0 when there is none.

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
        """Return a macvlan's mode in words."""
        mode = wire.unsigned(self._data.get(1))
        return next((name for name, value in MACVLAN_MODES.items() if value == mode), "")

    @property
    def macvlan_queue(self) -> int:
        """Return a macvlan's broadcast queue length (IFLA_MACVLAN_BC_QUEUE_LEN)."""
        return wire.unsigned(self._data.get(7))

    @property
    def vlan_filtering(self) -> bool:
        """Tell whether a bridge filters VLANs (IFLA_BR_VLAN_FILTERING)."""
        return bool(wire.unsigned(self._data.get(7)))

    @property
    def hairpin(self) -> bool:
        """Tell whether a bridge port sends frames back where they came from (IFLA_BRPORT_MODE)."""
        return bool(wire.unsigned(self._port.get(4)))

    @property
    def isolated(self) -> bool:
        """Tell whether a bridge port talks to ports that are not isolated only (IFLA_BRPORT_ISOLATED)."""
        return bool(wire.unsigned(self._port.get(33)))


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


# --- the socket in a namespace ---------------------------------------------------------------------------------------


def open(netns: str | None = None) -> "Netlink":
    """Open a socket in the namespace at the path *netns*, in the calling thread's own when None.

    `NoNamespace` when the path leads to none.
    """
    return visit(netns, lambda: Netlink(wire.Socket()))


def visit(netns: str | None, errand: Callable[[], T]) -> T:
    """Run *errand* in the namespace *netns* and come home; None runs it where the calling thread is.

    Only the calling thread goes (setns(2)): /proc/sys/net is that of *netns* for it, the file system stays. A thread of
    its own would be safer by shape and costs 0.3 ms each time, a dozen times a pod.
    """
    if not netns:
        return errand()
    door = _namespace(netns)
    try:
        home = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(door, netns)
            try:
                return errand()
            finally:
                _go_home(home)
        finally:
            os.close(home)
    finally:
        os.close(door)


def create_namespace(path: str) -> None:
    """Make a network namespace that lives as long as the file *path*, as `ip netns add` does; its lo stays down."""
    file = Path(path)
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    except OSError as cause:
        raise NetlinkError.of(f"make the namespace {path}", cause) from cause
    troubles: list[OSError] = []

    def go() -> None:
        try:
            _libc("unshare", _CLONE_NEWNET)
            _libc("mount", _OWN_NAMESPACE.encode(), os.fsencode(path), b"none", _MS_BIND, None)
        except OSError as cause:
            troubles.append(cause)

    thread = threading.Thread(target=go, name=f"create {path}")
    thread.start()
    thread.join()
    if troubles:
        file.unlink(missing_ok=True)
        raise NetlinkError.of(f"make the namespace {path}", troubles[0]) from troubles[0]


def remove_namespace(path: str) -> None:
    """Take the name of a namespace away, as `ip netns del` does; nothing there is success."""
    try:
        # EINVAL: a file is there and nothing is mounted on it.
        with suppress(FileNotFoundError):
            try:
                _libc("umount2", os.fsencode(path), _MNT_DETACH)
            except OSError as cause:
                if cause.errno != errno.EINVAL:
                    raise
            Path(path).unlink(missing_ok=True)
    except OSError as cause:
        raise NetlinkError.of(f"remove the namespace {path}", cause) from cause


def is_own(netns: str) -> bool:
    """Tell whether *netns* is the namespace that this thread is in; False where there is none."""
    try:
        return bool(netns) and os.path.samestat(os.stat(netns), os.stat("/proc/thread-self/ns/net"))  # noqa: PTH116  a link that leads to no path
    except OSError:
        return False


def remove_links(netns: str, names: Iterable[str]) -> None:
    """Delete those of the links *names* that are in a namespace; return when nobody can see them any more.

    The kernel goes on after that: it waits for whoever still reads one of them (rcu_barrier, 20 ms here, once for all).
    That is a thread's business. `NetlinkError` when a link stays, `NoNamespace` when *netns* leads to none.
    """
    with open(netns) as kernel:
        there = {link.name: link.index for name in names if (link := kernel.find_link(name))}
        if not there:
            return
        troubles: list[BaseException] = []

        def remove() -> None:
            try:
                with open(netns) as hands:
                    hands.delete_links(list(there.values()))
            except BaseException as trouble:  # noqa: BLE001  it is raised below
                troubles.append(trouble)

        thread = threading.Thread(target=remove, name=f"remove links of {netns}")
        thread.start()
        while not kernel.await_gone(there, _LOOK) and thread.is_alive():
            pass
        if troubles and not kernel.await_gone(there, 0):
            raise troubles[0]


def same_namespace(netns: str) -> bool:
    """Tell whether the path *netns* leads to the calling thread's own namespace; False when nothing is there."""
    try:
        return os.path.samestat(os.stat(netns), os.stat(_OWN_NAMESPACE))  # noqa: PTH116  Path.stat says the same, slower
    except OSError:
        return False


def read_sysctl(name: str) -> str | None:
    """Return what /proc/sys/*name* holds in the calling thread's namespace, None when the kernel has no such."""
    try:
        return small_files.read(f"/proc/sys/{name}").decode().strip()
    except OSError:
        return None


def write_sysctl(name: str, value: str) -> bool:
    """Write /proc/sys/*name* in the calling thread's namespace; False when there is none or it is kept closed."""
    try:
        file = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(file, value.encode())
    except OSError as cause:
        raise NetlinkError.of(f"set {name} to {value}", cause) from cause
    finally:
        os.close(file)
    return True


class Netlink:
    """The kernel's verbs in one namespace. Links are named by their index, except where one is looked up."""

    def __init__(self, asked: wire.Socket) -> None:
        self._socket = asked

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    # --- links ---

    def link(self, wanted: str | int) -> Link:
        """Return the link with a name (or alternative name) or an index; `NetlinkError` (ENODEV) when there is none."""
        try:
            return _link(self._socket.get(wire.GETLINK, _wanted(wanted) + _SKIP_STATISTICS))
        except OSError as cause:
            raise NetlinkError.of(f"find interface {wanted!r}", cause) from cause

    def find_link(self, wanted: str | int) -> Link | None:
        """Return the link with a name or an index, None when there is none."""
        try:
            return self.link(wanted)
        except NetlinkError as trouble:
            if trouble.errno == errno.ENODEV:
                return None
            raise

    def links(self) -> list[Link]:
        """Return all links of the namespace."""
        return [_link(body) for body in self._dump("list interfaces", wire.GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))]

    def link_names(self) -> set[str]:
        """Return the names of all links of the namespace; what else is told of them is not looked at."""
        bodies = self._dump("list interfaces", wire.GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))
        return {wire.string(next(value for kind, value in wire.pairs(body, 16) if kind == 3)) for body in bodies}

    def describe(self, wanted: str | int) -> dict[str, Any]:
        """Return all that the kernel tells of a link, by the kernel's names, for people to read.

        pyroute2 knows the names; it is imported here because it costs 150 ms and no attachment asks for it.
        """
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

        try:
            body = self._socket.get(wire.GETLINK, _wanted(wanted))
        except OSError as cause:
            raise NetlinkError.of(f"find interface {wanted!r}", cause) from cause
        message = ifinfmsg(struct.pack("=IHHII", 16 + len(body), wire.NEWLINK, 0, 0, 0) + body)
        message.decode()
        return _plain(message)

    def create_bridge(self, name: str, *, mtu: int = 0, vlan_filtering: bool = False) -> None:
        """Make a bridge and set it up; *mtu* 0 leaves it to the kernel. EEXIST when the name is taken."""
        data = wire.nested(2, wire.attribute(7, b"\1")) if vlan_filtering else b""
        body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + wire.text(3, name) + _mtu(mtu)
        self._create(
            lambda: f"make bridge {name}{_said(mtu=mtu or None)}", body + wire.nested(18, wire.text(1, "bridge"), data)
        )

    def create_veth(
        self, name: str, peer: str, *, peer_netns: str = "", mtu: int = 0, peer_mac: str = "", master: int = 0
    ) -> None:
        """Make a pair: *name* here, up, on the bridge *master*; *peer* in the namespace *peer_netns*, down."""
        door = _namespace(peer_netns) if peer_netns else -1
        try:
            other = _IFINFO.pack(0, 0, 0, 0, 0) + wire.text(3, peer) + _mtu(mtu) + _mac(peer_mac) + _netns(door)
            other += _ONE_QUEUE
            kind = wire.nested(18, wire.text(1, "veth"), wire.nested(2, wire.attribute(1, other)))
            body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + wire.text(3, name) + _mtu(mtu) + _ONE_QUEUE + kind
            self._create(
                lambda: f"make veth pair {name} and {peer}{_said(mtu=mtu or None, mac=peer_mac)}{self._on(master)}",
                body + (wire.number(10, master) if master else b""),
            )
        finally:
            if peer_netns:
                os.close(door)

    def create_macvlan(
        self,
        name: str,
        parent: int,
        mode: str,
        *,
        netns: str = "",
        mtu: int = 0,
        mac: str = "",
        queue: int | None = None,
    ) -> None:
        """Make a macvlan *name* of the link *parent*, down, in the namespace *netns*; *queue* as `macvlan_queue`.

        EEXIST when the name is taken here, even if it is free in *netns*: the kernel looks it up here first.
        """
        door = _namespace(netns) if netns else -1
        try:
            data = wire.number(1, MACVLAN_MODES[mode]) + (wire.number(7, queue) if queue is not None else b"")
            body = _IFINFO.pack(0, 0, 0, 0, 0) + wire.text(3, name) + wire.number(5, parent)
            body += _mtu(mtu) + _mac(mac) + _netns(door)
            kind = wire.nested(18, wire.text(1, "macvlan"), wire.nested(2, data))
            deed = lambda: f"make macvlan {name}{_said(mode=mode, mtu=mtu or None, mac=mac)}{self._on(parent)}"  # noqa: E731
            self._create(deed, body + kind)
        finally:
            if netns:
                os.close(door)

    def set_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        promisc: bool | None = None,
        mtu: int = 0,
        mac: str = "",
        name: str = "",
        alias: str | None = None,
        master: int | None = None,
        group: int | None = None,
        netns: str = "",
    ) -> None:
        """Change what is mentioned; *master* 0 takes the link off its bridge, *netns* moves it there."""
        wanted = [(IFF_UP, up), (IFF_PROMISC, promisc)]
        flags = sum(flag for flag, value in wanted if value)
        mask = sum(flag for flag, value in wanted if value is not None)
        numbers = {10: master, 27: group}
        door = _namespace(netns) if netns else -1
        try:
            body = _IFINFO.pack(0, 0, index, flags, mask) + _mtu(mtu) + _mac(mac) + _netns(door)
            body += wire.text(3, name) if name else b""
            body += wire.text(20, alias) if alias is not None else b""
            body += b"".join(wire.number(kind, value) for kind, value in numbers.items() if value is not None)

            def deed() -> str:
                bridge = self._name(master) if master else None if master is None else "none"
                more = {"mtu": mtu or None, "mac": mac, "name": name, "master": bridge, "netns": netns}
                return f"change{self._on(index, '')}{_said(up=up, promisc=promisc, **more)}"

            self._tell(deed, wire.NEWLINK, body, advice=_FOR_LINKS)
        finally:
            if netns:
                os.close(door)

    def set_vlan_filtering(self, bridge: int, on: bool) -> None:
        """Switch a bridge's VLAN filtering."""
        data = wire.nested(2, wire.attribute(7, bytes([on])))
        body = _IFINFO.pack(0, 0, bridge, 0, 0) + wire.nested(18, wire.text(1, "bridge"), data)
        self._tell(lambda: f"switch VLAN filtering {_OFF_ON[on]}{self._on(bridge)}", wire.NEWLINK, body)

    def set_port(self, index: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> None:
        """Change what is mentioned of a bridge port."""
        wanted = {4: hairpin, 33: isolated}
        parts = [wire.attribute(kind, bytes([value])) for kind, value in wanted.items() if value is not None]
        body = _IFINFO.pack(_AF_BRIDGE, 0, index, 0, 0) + wire.nested(12, *parts)
        said = partial(_said, hairpin=hairpin, isolated=isolated)
        self._tell(lambda: f"change bridge port{self._on(index, '')}{said()}", wire.SETLINK, body)

    def vlans(self, port: int) -> list[Vlan]:
        """Return the VLANs of a bridge port."""
        body = _IFINFO.pack(_AF_BRIDGE, 0, 0, 0, 0) + _WITH_VLANS
        told = self._dump("list bridge ports", wire.GETLINK, body)
        found = [part for part in told if _IFINFO.unpack_from(part)[2] == port]
        specs = [wire.attributes(part, 16).get(26, b"") for part in found]  # IFLA_AF_SPEC
        infos = [value for spec in specs for kind, value in wire.pairs(spec) if kind == 2]  # IFLA_BRIDGE_VLAN_INFO
        return [Vlan(vid, flags) for flags, vid in (struct.unpack_from("=HH", info) for info in infos)]

    def add_vlans(self, port: int, first: int, last: int, flags: int = 0) -> None:
        """Let a bridge port carry the VLANs *first* to *last*; *flags* VLAN_PVID, VLAN_UNTAGGED for a single one."""
        body = _vlans(port, first, last, flags)
        self._tell(lambda: f"add VLAN {first}-{last}{self._on(port)}", wire.SETLINK, body)

    def delete_vlan(self, port: int, vid: int) -> None:
        """Take a VLAN off a bridge port."""
        self._tell(lambda: f"take away VLAN {vid}{self._on(port)}", wire.DELLINK, _vlans(port, vid, vid, 0))

    def delete_link(self, index: int) -> None:
        """Delete a link; `NetlinkError` (ENODEV) when there is none."""
        self._tell(
            lambda: f"delete{self._on(index, '')}", wire.DELLINK, _IFINFO.pack(0, 0, index, 0, 0), advice=_FOR_REMOVALS
        )

    def delete_links(self, indexes: Sequence[int]) -> None:
        """Delete links at once, several as one group: the kernel then waits for its readers once."""
        if len(indexes) == 1:
            self.delete_link(indexes[0])
            return
        group = 0x80000000 | int.from_bytes(os.urandom(4))
        for index in indexes:
            self.set_link(index, group=group)
        body = _IFINFO.pack(0, 0, 0, 0, 0) + wire.number(27, group)
        self._tell(
            lambda: f"delete a group of interfaces ({', '.join(map(self._name, indexes))})",
            wire.DELLINK,
            body,
            advice=_FOR_REMOVALS,
        )

    def await_gone(self, names: Collection[str], seconds: float) -> bool:
        """Wait until none of the links *names* is left; False when one is after so many *seconds*."""
        return self._socket.await_change(wire.GROUP_LINK, seconds, lambda: self.link_names().isdisjoint(names))

    def await_running(self, wanted: str | int, seconds: float) -> Link:
        """Wait until a link is operationally up; return it as it is then, or as it is when *seconds* are over."""
        seen = self.link(wanted)

        def running() -> bool:
            nonlocal seen
            seen = self.link(seen.index)
            return seen.operstate == OPER_UP

        if seen.operstate != OPER_UP:
            self._socket.await_change(wire.GROUP_LINK, seconds, running)
        return seen

    # --- addresses ---

    def addresses(self, ifindex: int = 0, family: int = 0) -> list[Address]:
        """Return the addresses of a link (0: of all), of a *family* 4 or 6 (0: both)."""
        body = _IFADDR.pack(_FAMILY.get(family, 0), 0, 0, 0, ifindex)
        return [_address(part) for part in self._dump("list addresses", wire.GETADDR, body)]

    def add_address(self, ifindex: int, interface: IPInterface, *, flags: int = 0) -> None:
        """Put an address on a link, IPv4 with its network's broadcast address (up to /30). EEXIST: it is there."""
        self._tell(
            lambda: f"add address {interface}{self._on(ifindex)}",
            wire.NEWADDR,
            _address_body(ifindex, interface, flags),
            wire.CREATE | wire.EXCL,
            advice=_FOR_ADDRESSES,
        )

    def delete_address(self, ifindex: int, interface: IPInterface) -> None:
        """Take an address off a link; `NetlinkError` (EADDRNOTAVAIL) when it is not there."""
        self._tell(
            lambda: f"delete address {interface}{self._on(ifindex)}",
            wire.DELADDR,
            _address_body(ifindex, interface, 0),
            advice=_FOR_ADDRESSES,
        )

    def await_addresses(self, ifindex: int, wanted: Iterable[IPInterface], seconds: float) -> bool:
        """Wait until none of *wanted* is tentative any more (RFC 4862, 5.4); False when *seconds* were not enough."""
        named = frozenset(wanted)

        def settled() -> bool:
            mine = [address for address in self.addresses(ifindex, 6) if address.interface in named]
            return not any(address.flags & TENTATIVE and not address.flags & DADFAILED for address in mine)

        return self._socket.await_change(wire.GROUP_IPV6_IFADDR, seconds, settled)

    # --- routes and neighbours ---

    def routes(self, family: int = 0, table: int = MAIN_TABLE) -> list[Route]:
        """Return the routes of a *table* (0: of all), of a *family* 4 or 6 (0: both)."""
        told = []
        for version in (family,) if family else (4, 6):
            body = _RTMSG.pack(_FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0) + wire.number(15, table)
            told += self._dump("list routes", wire.GETROUTE, body, nothing=(errno.ENOENT, errno.EOPNOTSUPP))
        return [_route(body) for body in told if not _RTMSG.unpack_from(body)[8] & 0x200]  # RTM_F_CLONED: a cache entry

    def default_routes(self, family: int) -> list[Route]:
        """Return the default routes of a family in the main table."""
        return [route for route in self.routes(family) if route.is_default and route.kind == UNICAST]

    def add_route(self, route: Route) -> None:
        """Add a route beside those of the same destination; EEXIST when this very one is there."""
        self._route("add", route, wire.NEWROUTE, wire.CREATE)

    def replace_route(self, route: Route) -> None:
        """Put a route in the place of that of the same destination, table and priority, or add it."""
        self._route("set", route, wire.NEWROUTE, wire.CREATE | wire.REPLACE)

    def delete_route(self, route: Route) -> None:
        """Delete a route; `NetlinkError` (ESRCH) when it is not there."""
        self._route("delete", route, wire.DELROUTE)

    def _route(self, verb: str, route: Route, kind: int, flags: int = 0) -> None:
        def deed() -> str:
            table = "" if route.table == MAIN_TABLE else f" in table {route.table}"
            return f"{verb} route {_words(route)}{self._on(route.ways[0].ifindex)}{table}"

        self._tell(deed, kind, _route_body(route), flags, _FOR_ROUTES)

    def neighbours(self, ifindex: int = 0, family: int = 0) -> list[Neighbour]:
        """Return the neighbour table of a link (0: of all), of a *family* 4 or 6 (0: both)."""
        chosen = wire.number(8, ifindex) if ifindex else b""  # NDA_IFINDEX
        body = _NDMSG.pack(_FAMILY.get(family, 0), 0, 0, 0, 0) + chosen
        told = self._dump("list neighbours", wire.GETNEIGH, body)
        return [_neighbour(part) for part in told if part[0] in _VERSION]

    # --- devices and their virtual functions ---

    def device(self, address: str) -> Link | None:
        """Return the interface of the PCI device *address*, whatever its name is; None when it is not here."""
        return next((link for link in self.links() if link.device == address), None)

    def await_device(self, address: str, seconds: float) -> Link | None:
        """Wait until the interface of a PCI device is here; None when *seconds* were not enough."""
        found: list[Link] = []

        def here() -> bool:
            found[:] = [link for link in self.links() if link.device == address]
            return bool(found)

        self._socket.await_change(wire.GROUP_LINK, seconds, here)
        return found[0] if found else None

    def virtual_functions(self, physical: int) -> list[virtual_functions.VirtualFunction]:
        """Return the virtual functions of a physical function's interface."""
        try:
            return virtual_functions.read(
                self._socket.get(wire.GETLINK, _wanted(physical) + virtual_functions.WITH_VFS)
            )
        except OSError as cause:
            raise NetlinkError.of(f"list the virtual functions{self._on(physical)}", cause) from cause

    def set_virtual_function(self, physical: int, number: int, attribute: str, value: Any) -> None:
        """Change one of `vf.ATTRIBUTES` of the function *number*, *value* as `vf.VirtualFunction` holds it."""
        body = _IFINFO.pack(0, 0, physical, 0, 0) + virtual_functions.change(number, attribute, value)
        self._tell(lambda: f"set {attribute} {value} of VF {number}{self._on(physical)}", wire.SETLINK, body)

    def add_altname(self, index: int, name: str) -> None:
        """Give a link one more name; EEXIST when it is taken."""
        body = _IFINFO.pack(0, 0, index, 0, 0) + wire.nested(52, wire.text(53, name))
        deed = lambda: f"add the alternative name {name}{self._on(index)}"  # noqa: E731
        self._tell(deed, wire.NEWLINKPROP, body, wire.CREATE | wire.EXCL, _FOR_LINKS)

    def delete_altname(self, index: int, name: str) -> None:
        """Take an alternative name off a link."""
        body = _IFINFO.pack(0, 0, index, 0, 0) + wire.nested(52, wire.text(53, name))
        self._tell(lambda: f"delete the alternative name {name}{self._on(index)}", wire.DELLINKPROP, body)

    # --- asking ---

    def _tell(
        self, deed: Callable[[], str], kind: int, body: bytes, flags: int = 0, advice: _Advice = _NO_ADVICE
    ) -> None:
        try:
            self._socket.tell(kind, body, flags)
        except OSError as cause:
            raise NetlinkError.of(deed(), cause, advice) from cause

    def _create(self, deed: Callable[[], str], body: bytes) -> None:
        self._tell(deed, wire.NEWLINK, body, wire.CREATE | wire.EXCL, _FOR_LINKS)

    def _on(self, index: int, word: str = " on") -> str:
        """Return the words for the link that a refused deed is about; none for no link."""
        return f"{word} interface {self._name(index)}" if index else ""

    def _name(self, index: int) -> str:
        """Return a link's name, its index when it is gone."""
        try:
            return self.link(index).name
        except NetlinkError:
            return f"number {index}"

    def _dump(self, deed: str, kind: int, body: bytes, nothing: tuple[int, ...] = ()) -> list[bytes]:
        try:
            return self._socket.dump(kind, body)
        except OSError as cause:
            if cause.errno in nothing:
                return []
            raise NetlinkError.of(deed, cause) from cause


# --- namespaces: system calls ----------------------------------------------------------------------------------------


def _namespace(path: str) -> int:
    """Open the namespace at *path*; whoever asked closes it."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as cause:
        error = NoNamespace if cause.errno in (errno.ENOENT, errno.ENOTDIR) else NetlinkError
        raise error.of(f"open the network namespace {path}", cause) from cause


def _enter(door: int, path: str) -> None:
    try:
        _libc("setns", door, _CLONE_NEWNET)
    except OSError as cause:
        # EINVAL: the file is no network namespace. ENOTTY and EBADF never come from a descriptor that we opened.
        error = NoNamespace if cause.errno == errno.EINVAL else NetlinkError
        raise error.of(f"enter the network namespace {path}", cause) from cause


def _go_home(home: int) -> None:
    try:
        _libc("setns", home, _CLONE_NEWNET)
    except OSError:
        os.abort()  # a thread that is lost in a pod would do the next pod's work there: nothing is better than that


def _libc(verb: str, *args: Any) -> None:
    """Call the C library: Python has setns and unshare from 3.12 on, mount never."""
    import ctypes  # 3 ms that only those pay who enter a namespace

    if getattr(_library(), verb)(*args):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def _library() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


# --- records from and to the wire ------------------------------------------------------------------------------------


def _wanted(wanted: str | int) -> bytes:
    if isinstance(wanted, int):
        return _IFINFO.pack(0, 0, wanted, 0, 0)
    # IFLA_IFNAME takes 15 bytes; a longer name can only be an alternative one (IFLA_ALT_IFNAME).
    short = len(wanted.encode(errors="surrogateescape")) < 16
    return _IFINFO.pack(0, 0, 0, 0, 0) + wire.text(3 if short else 53, wanted)


def _mtu(mtu: int) -> bytes:
    return wire.number(4, mtu) if mtu else b""


def _mac(mac: str) -> bytes:
    return wire.attribute(1, bytes.fromhex(mac.replace(":", ""))) if mac else b""


def _netns(door: int) -> bytes:
    return wire.number(28, door) if door >= 0 else b""  # IFLA_NET_NS_FD


def _vlans(port: int, first: int, last: int, flags: int) -> bytes:
    """Pack a range of VLANs (BRIDGE_VLAN_INFO_RANGE_BEGIN 8, _RANGE_END 16; IFLA_BRIDGE_FLAGS 0: the master's side)."""
    ends = [(flags, first)] if first == last else [(flags | 8, first), (flags | 16, last)]
    infos = [wire.attribute(2, struct.pack("=HH", *end)) for end in ends]
    spec = wire.nested(26, wire.attribute(0, struct.pack("=H", 1)), *infos)
    return _IFINFO.pack(_AF_BRIDGE, 0, port, 0, 0) + spec


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    told = wire.attributes(body, 16)
    info = wire.attributes(told.get(18, b""))
    parent_netns = told.get(37)
    altnames = tuple(wire.string(name) for kind, name in wire.pairs(told.get(52, b"")) if kind == 53)
    return Link(
        index=index,
        name=wire.string(told.get(3)),
        kind=wire.string(info.get(1)),
        mac=told.get(1, b"").hex(":"),
        mtu=wire.unsigned(told.get(4)),
        flags=flags,
        master=wire.unsigned(told.get(10)),
        parent=wire.unsigned(told.get(5)),
        parent_netns=None if parent_netns is None else wire.unsigned(parent_netns),
        operstate=wire.unsigned(told.get(16)),
        group=wire.unsigned(told.get(27)),
        promiscuity=wire.unsigned(told.get(30)),
        alias=wire.string(told.get(20)),
        altnames=altnames,
        device=wire.string(told.get(56)),
        data=info.get(2, b""),
        port=info.get(5, b""),
    )


def _address(body: bytes) -> Address:
    _, length, flags, scope, index = _IFADDR.unpack_from(body)
    told = wire.attributes(body, 8)
    far = told.get(1, b"")  # IFA_ADDRESS: the address itself, or the other end when IFA_LOCAL differs
    near = told.get(2, far)
    return Address(
        ifindex=index,
        interface=ipaddress.ip_interface((near, length)),
        flags=wire.unsigned(told.get(8)) or flags,
        scope=scope,
        label=wire.string(told.get(3)),
        peer=ipaddress.ip_address(far) if far != near else None,
    )


def _address_body(index: int, interface: IPInterface, flags: int) -> bytes:
    packed = interface.ip.packed
    body = _IFADDR.pack(_FAMILY[interface.version], interface.network.prefixlen, flags, 0, index)
    body += wire.attribute(2, packed) + wire.attribute(1, packed)
    if interface.version == 4 and interface.network.prefixlen < 31:
        body += wire.attribute(4, interface.network.broadcast_address.packed)
    return body


def _route(body: bytes) -> Route:
    family, length, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    told = wire.attributes(body, 12)
    metrics = wire.attributes(told.get(8, b""))
    return Route(
        dst=_network(_VERSION[family], told.get(1), length),
        gateway=_gateway(told),
        ifindex=wire.unsigned(told.get(4)),
        priority=wire.unsigned(told.get(6)),
        table=wire.unsigned(told.get(15)) or table,
        scope=scope,
        protocol=protocol,
        kind=kind,
        source=ipaddress.ip_address(told[7]) if 7 in told else None,
        mtu=wire.unsigned(metrics.get(2)),
        advmss=wire.unsigned(metrics.get(8)),
        flags=flags,
        hops=_hops(told.get(9, b"")),
    )


def _network(version: int, packed: bytes | None, length: int) -> IPNetwork:
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    return kind((packed or bytes(4 if version == 4 else 16), length))


def _gateway(told: wire.Attributes) -> IPAddress | None:
    if 5 in told:
        return ipaddress.ip_address(told[5])
    return ipaddress.ip_address(told[18][2:]) if 18 in told else None  # RTA_VIA: a gateway of another family


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
    own = _FAMILY[gateway.version]
    return (
        wire.attribute(5, gateway.packed)
        if own == family
        else wire.attribute(18, struct.pack("=H", own) + gateway.packed)
    )


def _route_body(route: Route) -> bytes:
    family = _FAMILY[route.dst.version]
    body = _RTMSG.pack(
        family,
        route.dst.prefixlen,
        0,
        0,
        min(route.table, 252) if route.table > 255 else route.table,
        route.protocol,
        route.scope,
        route.kind,
        route.flags & ONLINK,  # the rest is the kernel's to say
    )
    hops = b"".join(_hop(family, hop, route.flags & ONLINK) for hop in route.hops)
    metrics = {2: route.mtu, 8: route.advmss}
    parts = [wire.number(kind, value) for kind, value in metrics.items() if value]
    return b"".join(
        (
            body,
            wire.attribute(1, route.dst.network_address.packed),
            wire.number(15, route.table),
            wire.number(6, route.priority) if route.priority else b"",
            wire.number(4, route.ifindex) if route.ifindex else b"",
            _via(family, route.gateway),
            wire.attribute(7, route.source.packed) if route.source else b"",
            wire.nested(8, *parts) if parts else b"",
            wire.attribute(9, hops) if hops else b"",
        )
    )


def _hop(family: int, hop: Hop, flags: int) -> bytes:
    via = _via(family, hop.gateway)
    return struct.pack("=HBBi", 8 + len(via), flags, 0, hop.ifindex) + via


def _words(route: Route) -> str:
    target = "default" if route.is_default else str(route.dst)
    ways = " and".join(f" via {way.gateway}" for way in route.ways if way.gateway)
    return f"{target}{ways}{f' metric {route.priority}' if route.priority else ''}"


def _said(**values: str | int | None) -> str:
    """Return what a deed was to change, for people: what is "" or None was not mentioned."""
    told = [
        f"{key} {_OFF_ON[value] if isinstance(value, bool) else value}"
        for key, value in values.items()
        if value not in (None, "")
    ]
    return f" ({', '.join(told)})" if told else ""


def _neighbour(body: bytes) -> Neighbour:
    _, index, state, _, _ = _NDMSG.unpack_from(body)
    told = wire.attributes(body, 12)
    return Neighbour(index, ipaddress.ip_address(told[1]), told.get(2, b"").hex(":"), state)


def _plain(message: Any) -> dict[str, Any]:
    """Turn a decoded message of pyroute2 into plain objects: its attribute lists become keys."""
    fields = {key: value for key, value in message.items() if key not in ("attrs", "header", "value")}
    for name, value in message.get("attrs", ()):
        fields[name] = _plain(value) if hasattr(value, "get") and hasattr(value, "items") else value
    return fields
