# SPDX-License-Identifier: Apache-2.0
"""Default routes: applies what `default-route` requests, in the kernel and in the results.

A default route that a claim replaces is stored in a routing table of the pod's namespace that no rule uses. It is
restored when the claimer is detached. With an IPv6 claim no interface of the pod accepts a default route from a router
advertisement (`accept_ra_defrtr`); the interfaces that did are stored in that table, too.
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

WAITING_TABLE = 0x6D70  # of replaced default routes
_DEFAULT_PRIORITY = {4: 0, 6: 1024}  # the priority that the kernel gives to a route without one (IP6_RT_PRIO_USER)
_DEFAULT = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
_ACCEPTS_ADVERTISED = "net/ipv6/conf/{}/accept_ra_defrtr"  # of router advertisements


@dataclass(frozen=True)
class Claim:
    """An attachment that is to have the default route of one family, with its gateways: several are ECMP next hops.

    *network* is its name in messages.
    """

    network: str
    ifname: str
    gateways: tuple[Address, ...]

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.gateways[0].version

    def route(self, ifindex: int) -> records.Route:
        """Return the claimed default route, of the interface *ifindex*."""
        default = _DEFAULT[self.family]
        if len(self.gateways) == 1:
            return records.Route(dst=default, gateway=self.gateways[0], ifindex=ifindex)
        return records.Route(dst=default, hops=tuple(records.Hop(ifindex, gateway) for gateway in self.gateways))

    def __str__(self) -> str:
        return " and ".join(map(str, self.gateways))


def claims(attachments: Sequence[Attachment]) -> tuple[Claim, ...]:
    """Return the claims of attachments, one for each family at most (the plan refuses more). `[]` claims nothing."""
    requested = [
        (attachment, tuple(address for address in attachment.default_route or () if address.version == family))
        for attachment in attachments
        for family in (4, 6)
    ]
    return tuple(
        Claim(str(attachment), attachment.ifname, tuple(dict.fromkeys(gateways)))
        for attachment, gateways in requested
        if gateways
    )


def apply_claims(netns: str, claimed: Sequence[Claim]) -> None:
    """Make each claim the only default route of its family in *netns*; store those of other interfaces."""
    namespaces.run_in(netns, lambda: _apply_claims(claimed))


def _apply_claims(claimed: Sequence[Claim]) -> None:
    """Run inside the pod's namespace."""
    with netlink.open() as kernel:
        if any(claim.family == 6 for claim in claimed):
            _disable_advertised(kernel)
        for claim in claimed:
            try:
                _apply_claim(kernel, claim)
            except CniError as error:
                raise error.with_context(f"{claim.network}: default-route {claim}") from error


def _disable_advertised(kernel: Netlink) -> None:
    """Disable default routes from router advertisements; mark the interfaces that accepted them in the table.

    Addresses and other routes of advertisements are still accepted.
    """
    for link in kernel.links():
        setting = _ACCEPTS_ADVERTISED.format(link.name)
        if link.name != "lo" and namespaces.read_sysctl(setting) == "1":
            with suppress(NetlinkError):  # an interface that is down can have no marker
                kernel.add_route(
                    records.Route(_DEFAULT[6], ifindex=link.index, table=WAITING_TABLE, protocol=records.RA)
                )
            namespaces.write_sysctl(setting, "0")


def _apply_claim(kernel: Netlink, claim: Claim) -> None:
    link = kernel.link(claim.ifname)
    found = kernel.default_routes(claim.family)
    claimed = claim.route(link.index)
    if _is_held(claim, link, found) and len(found) == 1 and _to_result(found[0], found[0].ways[0]).priority == 0:
        return
    for route in found:
        if {way.ifindex for way in route.ways} != {link.index} and route.protocol != records.RA:
            _add(kernel, replace(route, table=WAITING_TABLE))
        _delete(kernel, route)
    try:
        kernel.replace_route(claimed)
    except NetlinkError as error:
        if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            raise
        if off_link := _off_link_gateways(kernel, claim, link):
            raise _unreachable(kernel, claim, link, off_link[0]) from error
        # The sbr plugin moved the link routes of the interface to another table.
        kernel.replace_route(replace(claimed, flags=records.ONLINK))


def _off_link_gateways(kernel: Netlink, claim: Claim, link: Link) -> list[Address]:
    """Return the claim's gateways that no link route of any table reaches."""
    on_link = [
        route.dst
        for route in kernel.routes(claim.family, table=0)
        if route.ifindex == link.index
        and route.kind == records.UNICAST
        and route.gateway is None
        and not route.is_default
    ]
    return [gateway for gateway in claim.gateways if not any(gateway in dst for dst in on_link)]


def _unreachable(kernel: Netlink, claim: Claim, link: Link, gateway: Address) -> CniError:
    held = ", ".join(str(address.interface) for address in kernel.addresses(link.index, claim.family))
    return CniError(
        Code.INVALID_CONFIG,
        f"the gateway {gateway} is in no network of {claim.ifname} ({held or f'it has no IPv{claim.family} address'})",
        "name one that is, or let IPAM add a route that reaches it on the link: "
        f'{{"dst": "{ipaddress.ip_network(gateway)}", "scope": {records.SCOPE_LINK}}}',
    )


def _add(kernel: Netlink, route: records.Route) -> None:
    """Add a route, also with the metric of another one; an existing one is success."""
    try:
        kernel.add_route(route)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise


def _delete(kernel: Netlink, route: records.Route) -> None:
    """Delete a route; one that does not exist any more is success (advertised routes expire)."""
    try:
        kernel.delete_route(route)
    except NetlinkError as error:
        if error.errno != errno.ESRCH:
            raise


def restore(netns: str, claimed: Sequence[Claim]) -> tuple[tuple[str, Route], ...]:
    """Restore the default routes that *claimed* replaced, of detached interfaces; return each with its interface name.

    An advertised default route returns with the next advertisement. Without the namespace nothing is restored.
    """
    if not claimed or not netns:
        return ()
    with suppress(NoNamespace):
        return namespaces.run_in(netns, lambda: _restore(claimed))
    return ()


def _restore(claimed: Sequence[Claim]) -> tuple[tuple[str, Route], ...]:
    """Run inside the pod's namespace."""
    restored: list[tuple[str, Route]] = []
    with netlink.open() as kernel:
        names = {link.index: link.name for link in kernel.links()}
        for claim in claimed:
            try:
                restored += _restore_claim(kernel, claim, names)
            except CniError as error:
                raise error.with_context(f"{claim.network}: give back the default route") from error
    return tuple(restored)


def _restore_claim(kernel: Netlink, claim: Claim, names: Mapping[int, str]) -> Iterator[tuple[str, Route]]:
    """Restore the routes that a claim replaced; yield their next hops with the interface names."""
    for route in kernel.routes(claim.family, WAITING_TABLE):
        if route.protocol == records.RA:  # a marker
            namespaces.write_sysctl(_ACCEPTS_ADVERTISED.format(names.get(route.ifindex, "")), "1")
        else:
            _add(kernel, replace(route, table=records.MAIN_TABLE))
            yield from ((names.get(way.ifindex, ""), _to_result(route, way)) for way in route.ways)
        _delete(kernel, route)


def _to_result(route: records.Route, way: records.Hop) -> Route:
    """Return one next hop of a default route as a route of a CNI result."""
    family = route.dst.version
    priority = 0 if route.priority == _DEFAULT_PRIORITY[family] else route.priority
    return Route(_DEFAULT[family], way.gateway, route.mtu, route.advmss, priority)


def check(netns: str, claimed: Sequence[Claim]) -> None:
    """Raise when a claimed default route in *netns* is not what was requested."""
    if not claimed:
        return
    with netlink.open(netns) as kernel:
        for claim, problem in missing(kernel, claimed):
            raise CniError(Code.INTERNAL, f"{claim.network}: {problem}", "something in the pod or on its links set it")


def missing(kernel: Netlink, claimed: Sequence[Claim]) -> Iterator[tuple[Claim, str]]:
    """Yield each claim that the kernel does not have, with a message that names what it has instead."""
    for claim in claimed:
        link, found = kernel.find_link(claim.ifname), kernel.default_routes(claim.family)
        if link is None or not _is_held(claim, link, found):
            existing = ", ".join(_description(kernel, route) for route in found) or "none"
            expected = f"by {claim} on {claim.ifname} alone"
            yield claim, f"the IPv{claim.family} default route is not {expected}, found: {existing}"


def _is_held(claim: Claim, link: Link, found: Sequence[records.Route]) -> bool:
    """Tell whether the claim's next hops are the only ones; an advertised one does not count as its own."""
    ways = [(way.ifindex, str(way.gateway), route.protocol == records.RA) for route in found for way in route.ways]
    return sorted(ways) == sorted((link.index, str(gateway), False) for gateway in claim.gateways)


def _description(kernel: Netlink, route: records.Route) -> str:
    links = [(kernel.find_link(way.ifindex), way.gateway) for way in route.ways]
    text = " and ".join(f"by {via or 'no gateway'} on {link.name if link else 'no interface'}" for link, via in links)
    return f"{text} (from a router advertisement)" if route.protocol == records.RA else text


def with_claims(attachment: Attachment, result: Result, claimed: Sequence[Claim]) -> Result:
    """Return *result* as it is after `apply_claims`: no default route of a family that another attachment claimed."""
    mine = [claim for claim in claimed if claim.ifname == attachment.ifname]
    stripped = without_default_routes(result, frozenset(claim.family for claim in claimed))
    routes = tuple(Route(_DEFAULT[claim.family], gateway) for claim in mine for gateway in claim.gateways)
    return replace(stripped, routes=stripped.routes + routes)


def with_restored(attachment: Attachment, result: Result, restored: Sequence[tuple[str, Route]]) -> Result:
    """Return *result* as it is after `restore`: with the default routes that its interface has again."""
    present = [(route.dst, route.priority) for route in result.routes]  # still there when `apply_claims` failed
    mine = [route for ifname, route in restored if ifname == attachment.ifname]
    return replace(
        result, routes=(*result.routes, *(route for route in mine if (route.dst, route.priority) not in present))
    )
