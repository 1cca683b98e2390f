# SPDX-License-Identifier: Apache-2.0
"""Who keeps the default route: what `default-route` asks is made true in the kernel and said in every result.

A default route that yields to a claim waits in a table of the pod's namespace that no rule looks into: it comes back
when the claimer is detached, and nobody has to remember it longer than the pod lives. Beside an IPv6
claim no interface of the pod takes a default route from a router advertisement; which ones did is kept there, too.
"""

import errno
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from multus_py.cni.errors import CniError, Code
from multus_py.cni.result import Address, Result, Route, without_default_routes
from multus_py.kernel import namespaces, netlink, records
from multus_py.kernel.errors import NetlinkError, NoNamespace
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.records import Link
from multus_py.plan.attachment import Attachment

WAITING_TABLE = 0x6D70  # the table
_UNSAID = {4: 0, 6: 1024}  # the priority that the kernel gives to a route without one (IP6_RT_PRIO_USER)
_ANYWHERE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
_HEEDS = "net/ipv6/conf/{}/accept_ra_defrtr"  # whether an interface takes a default route from an advertisement


@dataclass(frozen=True)
class Claim:
    """An attachment that is to have the default route of one family, and by which gateways: several share it (ECMP).

    *network* is how a message names it.
    """

    network: str
    ifname: str
    gateways: tuple[Address, ...]

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.gateways[0].version

    def route(self, ifindex: int) -> records.Route:
        """Return the default route that is claimed, of the interface *ifindex*."""
        anywhere = _ANYWHERE[self.family]
        if len(self.gateways) == 1:
            return records.Route(dst=anywhere, gateway=self.gateways[0], ifindex=ifindex)
        return records.Route(dst=anywhere, hops=tuple(records.Hop(ifindex, one) for one in self.gateways))

    def __str__(self) -> str:
        return " and ".join(map(str, self.gateways))


def claims(attachments: Sequence[Attachment]) -> tuple[Claim, ...]:
    """Return who asks for the default route: at most one per family, the plan refused more. `[]` asks for nothing."""
    asked = [
        (attachment, tuple(one for one in attachment.default_route or () if one.version == family))
        for attachment in attachments
        for family in (4, 6)
    ]
    return tuple(
        Claim(str(attachment), attachment.ifname, tuple(dict.fromkeys(gateways)))
        for attachment, gateways in asked
        if gateways
    )


def apply_claims(netns: str, claimed: Sequence[Claim]) -> None:
    """Give each claimed family's default route in *netns* to its claimer alone; those of others wait, or go with it."""
    namespaces.run_in(netns, lambda: _apply_claims(claimed))


def _apply_claims(claimed: Sequence[Claim]) -> None:
    """Do it; runs inside the pod's namespace."""
    with netlink.open() as kernel:
        if any(claim.family == 6 for claim in claimed):
            _refuse_advertised(kernel)
        for claim in claimed:
            try:
                _hand_over(kernel, claim)
            except CniError as trouble:
                raise trouble.with_context(f"{claim.network}: default-route {claim}") from trouble


def _refuse_advertised(kernel: Netlink) -> None:
    """Let no interface take a default route from a router advertisement; one that did is marked in the waiting table.

    Addresses and other routes that a router advertises are still taken.
    """
    for link in kernel.links():
        setting = _HEEDS.format(link.name)
        if link.name != "lo" and namespaces.read_sysctl(setting) == "1":
            with suppress(NetlinkError):  # an interface that is down has no routes: it stays so when the claim ends
                kernel.add_route(
                    records.Route(_ANYWHERE[6], ifindex=link.index, table=WAITING_TABLE, protocol=records.RA)
                )
            namespaces.write_sysctl(setting, "0")


def _hand_over(kernel: Netlink, claim: Claim) -> None:
    link = kernel.link(claim.ifname)
    found = kernel.default_routes(claim.family)
    wanted = claim.route(link.index)
    if _held(claim, link, found) and len(found) == 1 and _said(found[0], found[0].ways[0]).priority == 0:
        return
    for route in found:
        if {way.ifindex for way in route.ways} != {link.index} and route.protocol != records.RA:
            _add(kernel, replace(route, table=WAITING_TABLE))
        _delete(kernel, route)
    try:
        kernel.replace_route(wanted)
    except NetlinkError as trouble:
        if trouble.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            raise
        if far := _far(kernel, claim, link):
            raise _unreachable(kernel, claim, link, far[0]) from trouble
        # Source based routing moved the routes of the interface's networks to a table of their own.
        kernel.replace_route(replace(wanted, flags=records.ONLINK))


def _far(kernel: Netlink, claim: Claim, link: Link) -> list[Address]:
    """Return the claim's gateways that no route without a gateway leads to, in whatever table."""
    near = [
        route.dst
        for route in kernel.routes(claim.family, table=0)
        if route.ifindex == link.index
        and route.kind == records.UNICAST
        and route.gateway is None
        and not route.is_default
    ]
    return [gateway for gateway in claim.gateways if not any(gateway in dst for dst in near)]


def _unreachable(kernel: Netlink, claim: Claim, link: Link, gateway: Address) -> CniError:
    held = ", ".join(str(address.interface) for address in kernel.addresses(link.index, claim.family))
    return CniError(
        Code.INVALID_CONFIG,
        f"the gateway {gateway} is in no network of {claim.ifname} ({held or f'it has no IPv{claim.family} address'})",
        "name one that is, or let IPAM add a route that reaches it on the link: "
        f'{{"dst": "{ipaddress.ip_network(gateway)}", "scope": {records.SCOPE_LINK}}}',
    )


def _add(kernel: Netlink, route: records.Route) -> None:
    """Add a route beside others of its metric; one that is there is fine."""
    try:
        kernel.add_route(route)
    except NetlinkError as trouble:
        if trouble.errno != errno.EEXIST:
            raise


def _delete(kernel: Netlink, route: records.Route) -> None:
    """Delete a route; one that is gone, as a learned one may be at any moment, is fine."""
    try:
        kernel.delete_route(route)
    except NetlinkError as trouble:
        if trouble.errno != errno.ESRCH:
            raise


def restore(netns: str, claimed: Sequence[Claim]) -> tuple[tuple[str, Route], ...]:
    """Put back what yielded to *claimed*, whose interfaces are gone; return each route with its interface's name.

    A default route that a router had advertised comes back with its next advertisement. A namespace that is gone has
    nothing to be put back.
    """
    if not claimed or not netns:
        return ()
    with suppress(NoNamespace):
        return namespaces.run_in(netns, lambda: _restore(claimed))
    return ()


def _restore(claimed: Sequence[Claim]) -> tuple[tuple[str, Route], ...]:
    """Do it; runs inside the pod's namespace."""
    returned: list[tuple[str, Route]] = []
    with netlink.open() as kernel:
        names = {link.index: link.name for link in kernel.links()}
        for claim in claimed:
            try:
                returned += _released(kernel, claim, names)
            except CniError as trouble:
                raise trouble.with_context(f"{claim.network}: give back the default route") from trouble
    return tuple(returned)


def _released(kernel: Netlink, claim: Claim, names: Mapping[int, str]) -> Iterator[tuple[str, Route]]:
    """Put back each route that waits for the end of a claim, and yield its ways with their interfaces' names."""
    for route in kernel.routes(claim.family, WAITING_TABLE):
        if route.protocol == records.RA:  # a mark
            namespaces.write_sysctl(_HEEDS.format(names.get(route.ifindex, "")), "1")
        else:
            _add(kernel, replace(route, table=records.MAIN_TABLE))
            yield from ((names.get(way.ifindex, ""), _said(route, way)) for way in route.ways)
        _delete(kernel, route)


def _said(route: records.Route, way: records.Hop) -> Route:
    """Return one way of a default route of the kernel as a result says it."""
    family = route.dst.version
    priority = 0 if route.priority == _UNSAID[family] else route.priority
    return Route(_ANYWHERE[family], way.gateway, route.mtu, route.advmss, priority)


def check(netns: str, claimed: Sequence[Claim]) -> None:
    """Raise when a claimed default route in *netns* is not what was asked for."""
    if not claimed:
        return
    with netlink.open(netns) as kernel:
        for claim, trouble in missing(kernel, claimed):
            raise CniError(Code.INTERNAL, f"{claim.network}: {trouble}", "something in the pod or on its links set it")


def missing(kernel: Netlink, claimed: Sequence[Claim]) -> Iterator[tuple[Claim, str]]:
    """Yield each claim that the kernel does not hold to any more, and what it has instead."""
    for claim in claimed:
        link, found = kernel.find_link(claim.ifname), kernel.default_routes(claim.family)
        if link is None or not _held(claim, link, found):
            there = ", ".join(_words(kernel, route) for route in found) or "none"
            wanted = f"by {claim} on {claim.ifname} alone"
            yield claim, f"the IPv{claim.family} default route is not {wanted}, found: {there}"


def _held(claim: Claim, link: Link, found: Sequence[records.Route]) -> bool:
    """Tell whether the claimer's ways are the only ones; one that a router advertised is not its own."""
    ways = [(way.ifindex, str(way.gateway), route.protocol == records.RA) for route in found for way in route.ways]
    return sorted(ways) == sorted((link.index, str(gateway), False) for gateway in claim.gateways)


def _words(kernel: Netlink, route: records.Route) -> str:
    links = [(kernel.find_link(way.ifindex), way.gateway) for way in route.ways]
    said = " and ".join(f"by {via or 'no gateway'} on {link.name if link else 'no interface'}" for link, via in links)
    return f"{said} (from a router advertisement)" if route.protocol == records.RA else said


def with_claims(attachment: Attachment, result: Result, claimed: Sequence[Claim]) -> Result:
    """Return *result* as it is after `apply_claims`: no default route of a family that another attachment claimed."""
    mine = [claim for claim in claimed if claim.ifname == attachment.ifname]
    stripped = without_default_routes(result, frozenset(claim.family for claim in claimed))
    routes = tuple(Route(_ANYWHERE[claim.family], gateway) for claim in mine for gateway in claim.gateways)
    return replace(stripped, routes=stripped.routes + routes)


def with_restored(attachment: Attachment, result: Result, returned: Sequence[tuple[str, Route]]) -> Result:
    """Return *result* as it is after `restore`: with the default routes that are its interface's again."""
    said = [(route.dst, route.priority) for route in result.routes]  # when settling failed, nothing was taken from it
    mine = [route for ifname, route in returned if ifname == attachment.ifname]
    return replace(result, routes=(*result.routes, *(one for one in mine if (one.dst, one.priority) not in said)))
