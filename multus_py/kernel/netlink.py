# SPDX-License-Identifier: Apache-2.0
"""Links, addresses, routes and neighbours of one network namespace: a socket and its operations. No CNI network here.

`with netlink.open(netns) as kernel` gives one socket inside one namespace; it may be used from the calling thread.
"""

import errno
import os
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

from multus_py.kernel import errors, messages, namespaces, rtnl, virtual_functions, wire
from multus_py.kernel.errors import NetlinkError
from multus_py.kernel.messages import IFINFO, RTMSG
from multus_py.kernel.records import (
    DADFAILED,
    IFF_PROMISC,
    IFF_UP,
    MACVLAN_MODES,
    MAIN_TABLE,
    OPER_UP,
    TENTATIVE,
    UNICAST,
    Address,
    IPInterface,
    Link,
    Neighbour,
    Route,
    Vlan,
)

_OFF_ON = ("off", "on")


def open(netns: str | None = None) -> "Netlink":
    """Open a socket in the namespace at the path *netns*, in the calling thread's own when None.

    `NoNamespace` when the path leads to none.
    """
    return namespaces.run_in(netns, lambda: Netlink(wire.Socket()))


class Netlink:
    """The operations of one network namespace. Links are given by index, except where one is looked up."""

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

    def link(self, link: str | int) -> Link:
        """Return the link with a name (or alternative name) or an index; `NetlinkError` (ENODEV) when there is none."""
        try:
            query = messages.link_query(link) + messages.SKIP_STATISTICS
            return messages.read_link(self._socket.get(wire.GETLINK, query))
        except OSError as cause:
            raise NetlinkError.of(f"find interface {link!r}", cause) from cause

    def find_link(self, link: str | int) -> Link | None:
        """Return the link with a name or an index, None when there is none."""
        try:
            return self.link(link)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def links(self) -> list[Link]:
        """Return all links of the namespace."""
        return [messages.read_link(body) for body in self._dump_links()]

    def link_names(self) -> set[str]:
        """Return the names of all links of the namespace; nothing else of the replies is read."""
        links = (wire.pairs(body, 16) for body in self._dump_links())
        return {wire.string(next(value for kind, value in link if kind == rtnl.IFLA_IFNAME)) for link in links}

    def _dump_links(self) -> list[bytes]:
        return self._dump("list interfaces", wire.GETLINK, IFINFO.pack(0, 0, 0, 0, 0))

    def create_bridge(self, name: str, *, mtu: int = 0, vlan_filtering: bool = False) -> None:
        """Make a bridge and set it up; *mtu* 0 leaves it to the kernel. EEXIST when the name is taken."""
        data = wire.attribute(rtnl.IFLA_BR_VLAN_FILTERING, b"\1") if vlan_filtering else b""
        body = IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + messages.link_name(name) + messages.link_settings(mtu)
        self._create(
            lambda: f"make bridge {name}{_changes(mtu=mtu or None)}", body + messages.link_kind("bridge", data)
        )

    def create_veth(
        self, name: str, peer: str, *, peer_netns: str = "", mtu: int = 0, peer_mac: str = "", master: int = 0
    ) -> None:
        """Make a pair: *name* here, up, on the bridge *master*; *peer* in the namespace *peer_netns*, down."""
        netns_file = namespaces.open_file(peer_netns) if peer_netns else -1
        try:
            other = (
                IFINFO.pack(0, 0, 0, 0, 0)
                + messages.link_name(peer)
                + messages.link_settings(mtu, peer_mac, netns_file)
            )
            kind = messages.link_kind("veth", wire.attribute(rtnl.VETH_INFO_PEER, other + messages.ONE_QUEUE))
            body = (
                IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP)
                + messages.link_name(name)
                + messages.link_settings(mtu)
                + messages.ONE_QUEUE
                + kind
            )
            self._create(
                lambda: f"make veth pair {name} and {peer}{_changes(mtu=mtu or None, mac=peer_mac)}{self._on(master)}",
                body + (wire.number(rtnl.IFLA_MASTER, master) if master else b""),
            )
        finally:
            if peer_netns:
                os.close(netns_file)

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
        netns_file = namespaces.open_file(netns) if netns else -1
        try:
            data = wire.number(rtnl.IFLA_MACVLAN_MODE, MACVLAN_MODES[mode])
            data += wire.number(rtnl.IFLA_MACVLAN_BC_QUEUE_LEN, queue) if queue is not None else b""
            body = IFINFO.pack(0, 0, 0, 0, 0) + messages.link_name(name) + wire.number(rtnl.IFLA_LINK, parent)
            body += messages.link_settings(mtu, mac, netns_file)
            kind = messages.link_kind("macvlan", data)
            operation = lambda: f"make macvlan {name}{_changes(mode=mode, mtu=mtu or None, mac=mac)}{self._on(parent)}"  # noqa: E731
            self._create(operation, body + kind)
        finally:
            if netns:
                os.close(netns_file)

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
        """Change what is given; *master* 0 removes the link from its bridge, *netns* moves it into that namespace."""
        changes = [(IFF_UP, up), (IFF_PROMISC, promisc)]
        flags = sum(flag for flag, value in changes if value)
        mask = sum(flag for flag, value in changes if value is not None)
        numbers = {rtnl.IFLA_MASTER: master, rtnl.IFLA_GROUP: group}
        netns_file = namespaces.open_file(netns) if netns else -1
        try:
            body = IFINFO.pack(0, 0, index, flags, mask) + messages.link_settings(mtu, mac, netns_file)
            body += messages.link_name(name) if name else b""
            body += wire.text(rtnl.IFLA_IFALIAS, alias) if alias is not None else b""
            body += b"".join(wire.number(kind, value) for kind, value in numbers.items() if value is not None)

            def operation() -> str:
                bridge = self._name(master) if master else None if master is None else "none"
                more = {"mtu": mtu or None, "mac": mac, "name": name, "master": bridge, "netns": netns}
                return f"change{self._on(index, '')}{_changes(up=up, promisc=promisc, **more)}"

            self._request(operation, wire.NEWLINK, body, advice=errors.FOR_LINKS)
        finally:
            if netns:
                os.close(netns_file)

    def set_vlan_filtering(self, bridge: int, on: bool) -> None:
        """Switch a bridge's VLAN filtering."""
        data = wire.attribute(rtnl.IFLA_BR_VLAN_FILTERING, bytes([on]))
        body = IFINFO.pack(0, 0, bridge, 0, 0) + messages.link_kind("bridge", data)
        self._request(lambda: f"switch VLAN filtering {_OFF_ON[on]}{self._on(bridge)}", wire.NEWLINK, body)

    def set_port(self, index: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> None:
        """Change what is given of a bridge port."""
        settings = {rtnl.IFLA_BRPORT_MODE: hairpin, rtnl.IFLA_BRPORT_ISOLATED: isolated}
        parts = [wire.attribute(kind, bytes([value])) for kind, value in settings.items() if value is not None]
        body = IFINFO.pack(rtnl.AF_BRIDGE, 0, index, 0, 0) + wire.nested(rtnl.IFLA_PROTINFO, *parts)
        changes = partial(_changes, hairpin=hairpin, isolated=isolated)
        self._request(lambda: f"change bridge port{self._on(index, '')}{changes()}", wire.SETLINK, body)

    def vlans(self, port: int) -> list[Vlan]:
        """Return the VLANs of a bridge port."""
        body = IFINFO.pack(rtnl.AF_BRIDGE, 0, 0, 0, 0) + messages.WITH_VLANS
        replies = self._dump("list bridge ports", wire.GETLINK, body)
        found = [part for part in replies if IFINFO.unpack_from(part)[2] == port]
        specs = [wire.attributes(part, 16).get(rtnl.IFLA_AF_SPEC, b"") for part in found]
        pairs = [pair for spec in specs for pair in wire.pairs(spec)]
        infos = [value for kind, value in pairs if kind == rtnl.IFLA_BRIDGE_VLAN_INFO]
        return [Vlan(vid, flags) for flags, vid in (struct.unpack_from("=HH", info) for info in infos)]

    def add_vlans(self, port: int, first: int, last: int, flags: int = 0) -> None:
        """Let a bridge port carry the VLANs *first* to *last*; *flags* VLAN_PVID, VLAN_UNTAGGED for a single one."""
        body = messages.vlan_range(port, first, last, flags)
        self._request(lambda: f"add VLAN {first}-{last}{self._on(port)}", wire.SETLINK, body)

    def delete_vlan(self, port: int, vid: int) -> None:
        """Remove a VLAN from a bridge port."""
        body = messages.vlan_range(port, vid, vid, 0)
        self._request(lambda: f"take away VLAN {vid}{self._on(port)}", wire.DELLINK, body)

    def delete_link(self, index: int) -> None:
        """Delete a link; `NetlinkError` (ENODEV) when there is none."""
        body = IFINFO.pack(0, 0, index, 0, 0)
        self._request(lambda: f"delete{self._on(index, '')}", wire.DELLINK, body, advice=errors.FOR_REMOVALS)

    def delete_links(self, indexes: Sequence[int]) -> None:
        """Delete links at once, several as one group: the kernel then waits for one RCU grace period."""
        if len(indexes) == 1:
            self.delete_link(indexes[0])
            return
        group = 0x80000000 | int.from_bytes(os.urandom(4))
        for index in indexes:
            self.set_link(index, group=group)
        body = IFINFO.pack(0, 0, 0, 0, 0) + wire.number(rtnl.IFLA_GROUP, group)
        self._request(
            lambda: f"delete a group of interfaces ({', '.join(map(self._name, indexes))})",
            wire.DELLINK,
            body,
            advice=errors.FOR_REMOVALS,
        )

    def await_gone(self, names: Collection[str], seconds: float) -> bool:
        """Wait until none of the links *names* is left; False when one is after so many *seconds*."""
        return self._socket.await_change(wire.GROUP_LINK, seconds, lambda: self.link_names().isdisjoint(names))

    def await_running(self, link: str | int, seconds: float) -> Link:
        """Wait until a link is operationally up; return it as it is then, or as it is when *seconds* are over."""
        seen = self.link(link)

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
        body = messages.IFADDR.pack(messages.FAMILY.get(family, 0), 0, 0, 0, ifindex)
        return [messages.read_address(part) for part in self._dump("list addresses", wire.GETADDR, body)]

    def add_address(self, ifindex: int, interface: IPInterface, *, flags: int = 0) -> None:
        """Add an address to a link, IPv4 up to /30 with the broadcast address. EEXIST when the link has it."""
        self._request(
            lambda: f"add address {interface}{self._on(ifindex)}",
            wire.NEWADDR,
            messages.address_body(ifindex, interface, flags),
            wire.CREATE | wire.EXCL,
            advice=errors.FOR_ADDRESSES,
        )

    def delete_address(self, ifindex: int, interface: IPInterface) -> None:
        """Remove an address from a link; `NetlinkError` (EADDRNOTAVAIL) when the link does not have it."""
        self._request(
            lambda: f"delete address {interface}{self._on(ifindex)}",
            wire.DELADDR,
            messages.address_body(ifindex, interface, 0),
            advice=errors.FOR_ADDRESSES,
        )

    def await_addresses(self, ifindex: int, interfaces: Iterable[IPInterface], seconds: float) -> bool:
        """Wait until none of *interfaces* is tentative any more (RFC 4862, 5.4); False after *seconds*."""
        named = frozenset(interfaces)

        def settled() -> bool:
            mine = [address for address in self.addresses(ifindex, 6) if address.interface in named]
            return not any(address.flags & TENTATIVE and not address.flags & DADFAILED for address in mine)

        return self._socket.await_change(wire.GROUP_IPV6_IFADDR, seconds, settled)

    # --- routes and neighbours ---

    def routes(self, family: int = 0, table: int = MAIN_TABLE) -> list[Route]:
        """Return the routes of a *table* (0: of all), of a *family* 4 or 6 (0: both)."""
        replies = []
        for version in (family,) if family else (4, 6):
            body = RTMSG.pack(messages.FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0) + wire.number(rtnl.RTA_TABLE, table)
            replies += self._dump("list routes", wire.GETROUTE, body, nothing=(errno.ENOENT, errno.EOPNOTSUPP))
        cached = rtnl.RTM_F_CLONED
        return [messages.read_route(body) for body in replies if not RTMSG.unpack_from(body)[8] & cached]

    def default_routes(self, family: int) -> list[Route]:
        """Return the default routes of a family in the main table."""
        return [route for route in self.routes(family) if route.is_default and route.kind == UNICAST]

    def add_route(self, route: Route) -> None:
        """Add a route in addition to others of the same destination; EEXIST when this one exists."""
        self._route("add", route, wire.NEWROUTE, wire.CREATE)

    def replace_route(self, route: Route) -> None:
        """Replace the route of the same destination, table and priority, or add it."""
        self._route("set", route, wire.NEWROUTE, wire.CREATE | wire.REPLACE)

    def delete_route(self, route: Route) -> None:
        """Delete a route; `NetlinkError` (ESRCH) when it does not exist."""
        self._route("delete", route, wire.DELROUTE)

    def _route(self, verb: str, route: Route, kind: int, flags: int = 0) -> None:
        def operation() -> str:
            table = "" if route.table == MAIN_TABLE else f" in table {route.table}"
            return f"{verb} route {_words(route)}{self._on(route.ways[0].ifindex)}{table}"

        self._request(operation, kind, messages.route_body(route), flags, errors.FOR_ROUTES)

    def neighbours(self, ifindex: int = 0, family: int = 0) -> list[Neighbour]:
        """Return the neighbour table of a link (0: of all), of a *family* 4 or 6 (0: both)."""
        chosen = wire.number(rtnl.NDA_IFINDEX, ifindex) if ifindex else b""
        body = messages.NDMSG.pack(messages.FAMILY.get(family, 0), 0, 0, 0, 0) + chosen
        replies = self._dump("list neighbours", wire.GETNEIGH, body)
        return [messages.read_neighbour(part) for part in replies if part[0] in messages.VERSION]

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
                self._socket.get(wire.GETLINK, messages.link_query(physical) + virtual_functions.WITH_VFS)
            )
        except OSError as cause:
            raise NetlinkError.of(f"list the virtual functions{self._on(physical)}", cause) from cause

    def set_virtual_function(self, physical: int, number: int, attribute: str, value: Any) -> None:
        """Change one of `vf.ATTRIBUTES` of the function *number*, *value* as `vf.VirtualFunction` holds it."""
        body = IFINFO.pack(0, 0, physical, 0, 0) + virtual_functions.change(number, attribute, value)
        self._request(lambda: f"set {attribute} {value} of VF {number}{self._on(physical)}", wire.SETLINK, body)

    def add_altname(self, index: int, name: str) -> None:
        """Add an alternative name to a link; EEXIST when it is taken."""
        body = IFINFO.pack(0, 0, index, 0, 0) + wire.nested(rtnl.IFLA_PROP_LIST, wire.text(rtnl.IFLA_ALT_IFNAME, name))
        operation = lambda: f"add the alternative name {name}{self._on(index)}"  # noqa: E731
        self._request(operation, wire.NEWLINKPROP, body, wire.CREATE | wire.EXCL, errors.FOR_LINKS)

    def delete_altname(self, index: int, name: str) -> None:
        """Remove an alternative name of a link."""
        body = IFINFO.pack(0, 0, index, 0, 0) + wire.nested(rtnl.IFLA_PROP_LIST, wire.text(rtnl.IFLA_ALT_IFNAME, name))
        self._request(lambda: f"delete the alternative name {name}{self._on(index)}", wire.DELLINKPROP, body)

    # --- asking ---

    def _request(
        self,
        operation: Callable[[], str],
        kind: int,
        body: bytes,
        flags: int = 0,
        advice: errors.Advice = errors.NO_ADVICE,
    ) -> None:
        try:
            self._socket.request(kind, body, flags)
        except OSError as cause:
            raise NetlinkError.of(operation(), cause, advice) from cause

    def _create(self, operation: Callable[[], str], body: bytes) -> None:
        self._request(operation, wire.NEWLINK, body, wire.CREATE | wire.EXCL, errors.FOR_LINKS)

    def _on(self, index: int, word: str = " on") -> str:
        """Return " on interface NAME" for the error of an operation on a link; "" for no link."""
        return f"{word} interface {self._name(index)}" if index else ""

    def _name(self, index: int) -> str:
        """Return a link's name, its index when it is gone."""
        try:
            return self.link(index).name
        except NetlinkError:
            return f"number {index}"

    def _dump(self, operation: str, kind: int, body: bytes, nothing: tuple[int, ...] = ()) -> list[bytes]:
        try:
            return self._socket.dump(kind, body)
        except OSError as cause:
            if cause.errno in nothing:
                return []
            raise NetlinkError.of(operation, cause) from cause


def _words(route: Route) -> str:
    target = "default" if route.is_default else str(route.dst)
    ways = " and".join(f" via {way.gateway}" for way in route.ways if way.gateway)
    return f"{target}{ways}{f' metric {route.priority}' if route.priority else ''}"


def _changes(**values: str | int | None) -> str:
    """Return what an operation was to change, for its error; "" and None were not given."""
    changes = [
        f"{key} {_OFF_ON[value] if isinstance(value, bool) else value}"
        for key, value in values.items()
        if value not in (None, "")
    ]
    return f" ({', '.join(changes)})" if changes else ""
