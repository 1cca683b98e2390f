# SPDX-License-Identifier: Apache-2.0
"""Who keeps the default route: what `default-route` asks is made true in the kernel and said in every result.

A default route that yields to a claim waits in a table of the pod's namespace that no rule looks into: it comes back
when the claimer is detached, and nobody has to remember it longer than the pod lives.
"""

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from multus_py import netlink
from multus_py.cni.errors import CniError, Code
from multus_py.cni.result import Address, Result, Route, without_defaults
from multus_py.plan import Attachment

WAITING = 0x6D70  # the table
_UNSAID = {4: 0, 6: 1024}  # the priority that the kernel gives to a route without one (IP6_RT_PRIO_USER)
_ANYWHERE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


@dataclass(frozen=True)
class Claim:
    """An attachment that is to have the default route of one family, and by which gateways: several share it (ECMP)."""

    ifname: str
    gateways: tuple[Address, ...]

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.gateways[0].version

    def route(self, ifindex: int) -> netlink.Route:
        """Return the default route that is claimed, of the interface *ifindex*."""
        anywhere = _ANYWHERE[self.family]
        if len(self.gateways) == 1:
            return netlink.Route(dst=anywhere, gateway=self.gateways[0], ifindex=ifindex)
        return netlink.Route(dst=anywhere, hops=tuple(netlink.Hop(ifindex, one) for one in self.gateways))

    def __str__(self) -> str:
        return " and ".join(map(str, self.gateways))


def claims(attachments: Sequence[Attachment]) -> tuple[Claim, ...]:
    """Return who asks for the default route: at most one per family, the plan refused more. `[]` asks for nothing."""
    asked = [
        (attachment.ifname, tuple(one for one in attachment.default_route or () if one.version == family))
        for attachment in attachments
        for family in (4, 6)
    ]
    return tuple(Claim(ifname, tuple(dict.fromkeys(gateways))) for ifname, gateways in asked if gateways)


def settle(netns: str, claimed: Sequence[Claim]) -> None:
    """Give each claimed family's default route in *netns* to its claimer alone; those of others wait, or go with it."""
    with netlink.open(netns) as kernel:
        for claim in claimed:
            link = kernel.link(claim.ifname)
            for route in kernel.default_routes(claim.family):
                if {way.ifindex for way in route.ways} != {link.index}:
                    kernel.replace_route(replace(route, table=WAITING))
                kernel.delete_route(route)
            kernel.replace_route(claim.route(link.index))


def give_back(netns: str, claimed: Sequence[Claim]) -> tuple[tuple[str, Route], ...]:
    """Put back what yielded to *claimed*, whose interfaces are gone; return each route with its interface's name.

    A namespace that is gone has nothing to be put back.
    """
    if not claimed or not netns:
        return ()
    with suppress(netlink.NoNamespace), netlink.open(netns) as kernel:
        names = {link.index: link.name for link in kernel.links()}
        waiting = [route for claim in claimed for route in kernel.routes(claim.family, WAITING)]
        for route in waiting:
            kernel.replace_route(replace(route, table=netlink.MAIN_TABLE))
            kernel.delete_route(route)
        return tuple((names.get(way.ifindex, ""), _said(route, way)) for route in waiting for way in route.ways)
    return ()


def _said(route: netlink.Route, way: netlink.Hop) -> Route:
    """Return one way of a default route of the kernel as a result says it."""
    family = route.dst.version
    priority = 0 if route.priority == _UNSAID[family] else route.priority
    return Route(_ANYWHERE[family], way.gateway, route.mtu, route.advmss, priority)


def check(netns: str, claimed: Sequence[Claim]) -> None:
    """Raise when a claimed default route in *netns* is not what was asked for."""
    if not claimed:
        return
    with netlink.open(netns) as kernel:
        for claim in claimed:
            link = kernel.link(claim.ifname)
            found = kernel.default_routes(claim.family)
            ways = [way for route in found for way in route.ways]
            if sorted(ways, key=str) != sorted(claim.route(link.index).ways, key=str):
                raise CniError(
                    Code.INTERNAL,
                    f"the IPv{claim.family} default route is not by {claim} on {claim.ifname} alone",
                    f"found {len(found)}",
                )


def told(attachment: Attachment, result: Result, claimed: Sequence[Claim]) -> Result:
    """Return *result* as it is after `settle`: no default route of a family that another attachment claimed."""
    mine = [claim for claim in claimed if claim.ifname == attachment.ifname]
    stripped = without_defaults(result, frozenset(claim.family for claim in claimed))
    routes = tuple(Route(_ANYWHERE[claim.family], gateway) for claim in mine for gateway in claim.gateways)
    return replace(stripped, routes=stripped.routes + routes)


def regained(attachment: Attachment, result: Result, returned: Sequence[tuple[str, Route]]) -> Result:
    """Return *result* as it is after `give_back`: with the default routes that are its interface's again."""
    said = [(route.dst, route.priority) for route in result.routes]  # when settling failed, nothing was taken from it
    mine = [route for ifname, route in returned if ifname == attachment.ifname]
    return replace(result, routes=(*result.routes, *(one for one in mine if (one.dst, one.priority) not in said)))
