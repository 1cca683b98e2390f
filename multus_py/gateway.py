# SPDX-License-Identifier: Apache-2.0
"""Who keeps the default route: what `default-route` asks is made true in the kernel and said in every result."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace

from multus_py import netlink
from multus_py.cni.errors import CniError, Code
from multus_py.cni.result import Address, Result, Route, without_defaults
from multus_py.plan import Attachment

_ANYWHERE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


@dataclass(frozen=True)
class Claim:
    """An attachment that is to have the default route of one family, and by which gateway."""

    ifname: str
    gateway: Address

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.gateway.version


def claims(attachments: Sequence[Attachment]) -> tuple[Claim, ...]:
    """Return who asks for the default route: at most one per family, the plan refused more. `[]` asks for nothing."""
    return tuple(
        Claim(attachment.ifname, gateway) for attachment in attachments for gateway in attachment.default_route or ()
    )


def settle(netns: str, claimed: Sequence[Claim]) -> None:
    """Give each claimed family's default route in *netns* to its claimer, and to nobody else; other routes stay."""
    if not claimed:
        return
    with netlink.open(netns) as kernel:
        for claim in claimed:
            link = kernel.link(claim.ifname)
            for route in kernel.default_routes(claim.family):
                kernel.delete_route(route)
            kernel.replace_route(netlink.Route(dst=_ANYWHERE[claim.family], gateway=claim.gateway, ifindex=link.index))


def check(netns: str, claimed: Sequence[Claim]) -> None:
    """Raise when a claimed default route in *netns* is not what was asked for."""
    if not claimed:
        return
    with netlink.open(netns) as kernel:
        for claim in claimed:
            link = kernel.link(claim.ifname)
            found = kernel.default_routes(claim.family)
            if [(route.ifindex, route.gateway) for route in found] != [(link.index, claim.gateway)]:
                raise CniError(
                    Code.INTERNAL,
                    f"the IPv{claim.family} default route is not by {claim.gateway} on {claim.ifname} alone",
                    f"found {len(found)}",
                )


def told(attachment: Attachment, result: Result, claimed: Sequence[Claim]) -> Result:
    """Return *result* as it is after `settle`: no default route of a family that another attachment claimed."""
    mine = [claim for claim in claimed if claim.ifname == attachment.ifname]
    stripped = without_defaults(result, frozenset(claim.family for claim in claimed))
    routes = tuple(Route(_ANYWHERE[claim.family], claim.gateway) for claim in mine)
    return replace(stripped, routes=stripped.routes + routes)
