# SPDX-License-Identifier: Apache-2.0
"""The interfaces of each pod of a lab as the kernel has them, with the network names that the plugin published."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from multus_py.cli.lab.layout import Lab
from multus_py.cni.errors import CniError, Code
from multus_py.kernel import netlink, records
from multus_py.kernel.errors import NoNamespace
from multus_py.kube.store import NETWORK_STATUS, PodRef

_LOOPBACK = "lo"
_HEADING = ("POD", "INTERFACE", "NETWORK", "ADDRESSES", "MAC", "MTU", "DEFAULT")


@dataclass(frozen=True)
class InterfaceView:
    """One interface as the kernel has it; *network* is "" when the status does not name it, *ips* have their prefix."""

    ifname: str
    network: str
    ips: tuple[str, ...]
    mac: str
    mtu: int
    default: bool


@dataclass(frozen=True)
class PodView:
    """One pod and its interfaces, in the order of the network-status."""

    namespace: str
    pod: str
    netns: str
    interfaces: tuple[InterfaceView, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `lab show --json` prints."""
        return asdict(self)


def pod_views(lab: Lab) -> list[PodView]:
    """Return every pod of the lab with its interfaces."""
    return [
        PodView(sandbox.namespace, sandbox.pod, sandbox.netns, _interfaces(sandbox.netns, _networks(lab, sandbox.ref)))
        for sandbox in lab.sandboxes()
    ]


def table_rows(pods: Sequence[PodView]) -> list[tuple[str, ...]]:
    """Return the heading and one row per interface, the pod's name in its first row only."""
    table: list[tuple[str, ...]] = [_HEADING]
    for pod in pods:
        name = f"{pod.namespace}/{pod.pod}"
        if not pod.interfaces:
            table.append((name, "(none)", *[""] * 5))
        for n, item in enumerate(pod.interfaces):
            default = "yes" if item.default else ""
            table.append(
                (
                    name if n == 0 else "",
                    item.ifname,
                    item.network,
                    " ".join(item.ips),
                    item.mac,
                    str(item.mtu),
                    default,
                )
            )
    return table


def published_status(lab: Lab, ref: PodRef) -> str:
    """Return the network-status annotation of a pod; code 11 when nothing was published."""
    text = lab.manifests.pod(ref).annotations.get(NETWORK_STATUS, "")
    if not text:
        raise CniError(Code.TRY_AGAIN, f"no network-status was published for pod {ref}", "is it attached?")
    return text


def _networks(lab: Lab, ref: PodRef) -> dict[str, str]:
    try:
        statuses = json.loads(published_status(lab, ref))
    except CniError:
        # The manifest or the status is missing: the kernel's interfaces are shown all the same.
        return {}
    return {str(item.get("interface")): str(item.get("name")) for item in statuses}


def _interfaces(netns: str, networks: dict[str, str]) -> tuple[InterfaceView, ...]:
    try:
        inside = netlink.open(netns)
    except NoNamespace:
        return ()
    with inside:
        addresses = inside.addresses()
        default_links = {route.ifindex for family in (4, 6) for route in inside.default_routes(family)}
        return tuple(
            InterfaceView(
                ifname=link.name,
                network=networks.get(link.name, ""),
                # Link-local addresses are assigned by the kernel: not shown.
                ips=tuple(
                    address.interface.with_prefixlen
                    for address in addresses
                    if address.ifindex == link.index and not address.interface.is_link_local
                ),
                mac=link.mac,
                mtu=link.mtu,
                default=link.index in default_links,
            )
            for link in _in_order(inside.links(), list(networks))
        )


def _in_order(links: Sequence[records.Link], order: Sequence[str]) -> list[records.Link]:
    """Return the links in the order of the status, then the others, without the loopback."""
    positions = {name: n for n, name in enumerate(order)}
    shown = [link for link in links if link.name != _LOOPBACK]
    return sorted(shown, key=lambda link: (positions.get(link.name, len(positions)), link.index))
