# SPDX-License-Identifier: Apache-2.0
"""What the interface delegates share: run the IPAM plugin, configure the pod's interface, compare it at CHECK."""

import errno
import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from multus_py.cni.call import Call
from multus_py.cni.delegate import Request
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.cni.result import IP, Address, Network, Result, Route
from multus_py.cni.result import read as read_result
from multus_py.kernel import namespaces, netlink, records, removal
from multus_py.kernel.errors import NetlinkError, NoNamespace
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.records import Link

_DAD_SECONDS = 5.0  # the reference plugins wait as long
_IFF_RUNNING = 0x40


def ipam_type(call: Call) -> str:
    """Return the type of the config's IPAM plugin, "" for an interface without addresses."""
    return Fields(Fields(call.config, "config").table("ipam"), "ipam").text("type")


def add_addresses(request: Request, kind: str) -> Result:
    """Run ADD of the IPAM plugin *kind*; a result without addresses is an error."""
    given = request.ask(kind, request.call)
    if given is None or not given.ips:
        raise CniError(Code.INTERNAL, f"IPAM plugin {kind} returned missing IP config", "give it addresses to hand out")
    return given


def run_ipam(request: Request) -> None:
    """Run the verb of the call in the IPAM plugin, if the config has one."""
    if kind := ipam_type(request.call):
        request.ask(kind, request.call)


def delete_addresses(request: Request, kind: str) -> None:
    """Run DEL of the IPAM plugin *kind*: the ADD is rolled back."""
    request.ask(kind, replace(request.call, verb="DEL"))


def configure(kernel: Netlink, link: Link, ips: Iterable[IP], routes: Iterable[Route]) -> None:
    """Add the addresses to *link*, set it up, wait for IPv6 duplicate address detection, and add the routes.

    The calling thread must be in the pod's network namespace: sysctls are written.
    """
    given = tuple(ips)
    if any(ip.address.version == 6 for ip in given):
        _allow_ipv6(link.name)
    for ip in given:
        kernel.add_address(link.index, ip.address)
    kernel.set_link(link.index, up=True)
    _await_unique(kernel, link, given)
    for route in _in_order(given, routes, link.index):
        try:
            kernel.add_route(route)
        except NetlinkError as error:
            if route.gateway is None or error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                raise
            raise _unreachable(link, route, route.gateway, given) from error


def verify_addresses(kernel: Netlink, link: Link, promised: Result) -> None:
    """Raise when *link* lacks an address, or the namespace a route, of the result *promised*."""
    held = {address.interface for address in kernel.addresses(link.index)}
    indexes = [
        n for n, interface in enumerate(promised.interfaces) if interface.name == link.name and interface.sandbox
    ]
    for ip in promised.ips:
        if ip.interface in (None, *indexes) and ip.address not in held:
            raise _differs(link.name, f"has no address {ip.address}")
    found = [
        (route.dst, way.gateway) for route in kernel.routes(table=0) for way in route.ways if way.ifindex == link.index
    ]
    destinations = {dst for dst, _ in found}
    for route in promised.routes:
        via = None if route.gw and route.gw.is_unspecified else route.gw
        if route.dst not in destinations or (via and (route.dst, via) not in found):
            raise _differs(link.name, f"has no route to {route.dst}{f' via {route.gw}' if route.gw else ''}")


def prev_result(call: Call) -> Result:
    """Return the prevResult of a CHECK; code 7 when the runtime sent none."""
    body = call.config.get("prevResult")
    if not isinstance(body, dict):
        raise CniError(Code.INVALID_CONFIG, "required prevResult is missing", "CHECK compares with the result of ADD")
    return read_result(body, call.version)


def pod_interface(kernel: Netlink, call: Call, kind: str) -> Link:
    """Return the pod's interface for a CHECK; raise when it is gone or of another kind."""
    link = kernel.find_link(call.ifname)
    if link is None:
        raise _differs(call.ifname, "is gone")
    if link.kind != kind:
        raise _differs(call.ifname, f"is no {kind}, it is {link.kind or 'a device'}")
    return link


def verify_mac(link: Link, promised: Result) -> None:
    """Raise when the pod's interface has another hardware address than *promised*."""
    mine = next((item for item in promised.interfaces if item.name == link.name and item.sandbox), None)
    if mine is None:
        raise _differs(link.name, "is not in prevResult")
    if mine.mac and mine.mac.lower() != link.mac:
        raise _differs(link.name, f"has the hardware address {link.mac}, {mine.mac} was promised")


def remove_interface(netns: str, ifname: str) -> None:
    """Delete the pod's interface; a namespace or an interface that does not exist is success."""
    if not netns:
        return
    with suppress(NoNamespace):
        removal.remove_links(netns, [ifname])


def remove_index(netns: str, index: int) -> None:
    """Delete the pod's interface by its index, whatever its name is now; one that does not exist is success."""
    try:
        with netlink.open(netns) as inside:
            inside.delete_link(index)
    except NoNamespace:
        return
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise


def _differs(ifname: str, what: str) -> CniError:
    return CniError(Code.INTERNAL, f"interface {ifname} {what}", "the pod's network is not what ADD made")


def _allow_ipv6(ifname: str) -> None:
    """Enable IPv6 where the runtime disabled it, and keep addresses when the interface is set down."""
    for name in ("lo", ifname):
        setting = f"net/ipv6/conf/{name}/disable_ipv6"
        if namespaces.read_sysctl(setting) not in ("0", None):
            namespaces.write_sysctl(setting, "0")
    namespaces.write_sysctl(f"net/ipv6/conf/{ifname}/keep_addr_on_down", "1")


def _await_unique(kernel: Netlink, link: Link, given: tuple[IP, ...]) -> None:
    """Wait for duplicate address detection: a program cannot bind a tentative address."""
    mine = [ip.address for ip in given if ip.address.version == 6]
    if not mine or not kernel.link(link.index).flags & _IFF_RUNNING:
        return  # without a carrier detection does not start
    kernel.await_addresses(link.index, mine, _DAD_SECONDS)
    failed = [
        address.interface
        for address in kernel.addresses(link.index, 6)
        if address.interface in mine and address.flags & records.DADFAILED
    ]
    if failed:
        raise CniError(
            Code.TRY_AGAIN,
            f"address {failed[0]} of interface {link.name} is in use by somebody else on the link",
            "duplicate address detection (RFC 4862) heard an answer",
        )


def _in_order(given: Sequence[IP], routes: Iterable[Route], ifindex: int) -> list[records.Route]:
    """Return the routes in the order in which the kernel accepts them: those without a gateway first."""
    own: dict[int, Address] = {ip.gateway.version: ip.gateway for ip in reversed(given) if ip.gateway}
    asked = [(route, route.gw or own.get(route.dst.version)) for route in routes]
    networks = [ip.address.network for ip in given]
    outside = {ipaddress.ip_network(via) for _, via in asked if via and not any(via in one for one in networks)}
    found = [_kernel_route(route, via, outside, ifindex) for route, via in asked]
    return sorted(found, key=lambda route: route.gateway is not None)


def _kernel_route(route: Route, via: Address | None, outside: set[Network], ifindex: int) -> records.Route:
    """Return *route* for the kernel, without a gateway when it is on the link.

    It is by the scope `link`, by the gateway 0.0.0.0 or ::, or as the route to a gateway *outside* of all networks.
    """
    to_gateway = route.dst in outside and route.gw in (None, route.dst.network_address)
    on_link = route.gw is None and (route.scope or 0) >= records.SCOPE_LINK
    unspecified = via is not None and via.is_unspecified
    return records.Route(
        dst=route.dst,
        gateway=None if to_gateway or on_link or unspecified else via,
        ifindex=ifindex,
        priority=route.priority,
        table=records.MAIN_TABLE if route.table is None else route.table,
        # IPv4 looks for a gateway among routes of this scope.
        scope=route.scope or (records.SCOPE_LINK if route.dst in outside else 0),
        mtu=route.mtu,
        advmss=route.advmss,
    )


def _unreachable(link: Link, route: records.Route, gateway: Address, given: Iterable[IP]) -> CniError:
    held = ", ".join(str(ip.address) for ip in given if ip.address.version == gateway.version)
    way = f'{{"dst": "{ipaddress.ip_network(gateway)}", "scope": {records.SCOPE_LINK}}}'
    return CniError(
        Code.INVALID_CONFIG,
        f"the gateway {gateway} of the route to {route.dst} is in no network of {link.name} "
        f"({held or f'it has no IPv{gateway.version} address'})",
        f"correct it, or add {way} to the routes: a way to it on the link",
    )
