# SPDX-License-Identifier: Apache-2.0
"""The bridge delegate: a veth pair, one end in the pod, the other a port of a bridge on the host."""

import errno
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from multus_py.cni import names
from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.delegate import Request
from multus_py.cni.errors import CniError, Code, run_all
from multus_py.cni.fields import Fields
from multus_py.cni.result import DNS, IP, Interface, Result, Route
from multus_py.config import delegate_schema
from multus_py.delegates import configure, requested
from multus_py.kernel import namespaces, netlink, records
from multus_py.kernel.errors import NetlinkError
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.records import Link
from multus_py.kernel.undo import Undo

SCHEMA: Mapping[str, Any] = delegate_schema.load("bridge")
OWNS_INTERFACE = True  # DEL removes the sandbox's interface and no other link
_DEFAULT_ROUTE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_VLAN_MAX = 4094  # IEEE 802.1Q: 0 and 4095 are reserved
_DEFAULT_VLAN = 1
_NAME_TRIES = 4
_PORT_SECONDS = 2.5  # for the port to come up: as long as the reference plugin


@dataclass(frozen=True)
class Config:
    """A bridge config, checked. *trunk* holds ranges of VLAN ids, first and last."""

    bridge: str
    mtu: int
    mac: str
    ipam: str
    dns: DNS
    is_gateway: bool
    is_default_gateway: bool
    force_address: bool
    hairpin: bool
    promisc: bool
    isolated: bool
    dad: bool
    l2_down: bool
    vlan: int
    trunk: tuple[tuple[int, int], ...]
    keep_default_vlan: bool

    @property
    def filters_vlans(self) -> bool:
        """Tell whether the bridge has to filter VLANs."""
        return bool(self.vlan or self.trunk)


@dataclass(frozen=True)
class Port:
    """What ADD created: the bridge as it was before, and the name of the host's end."""

    bridge: Link
    host: str


@requested.cached_for_add
def parse(call: Call) -> Config:
    """Read the config and what the call requests; code 7 names the key that is wrong."""
    fields = Fields(call.config, "bridge")
    if fields.flag("ipMasq") or fields.flag("macspoofchk"):
        raise CniError(
            Code.INVALID_CONFIG, "bridge: ipMasq and macspoofchk need a firewall", "the executable 'bridge' has them"
        )
    config = Config(
        bridge=names.interface(fields.text("bridge") or "cni0", "bridge: 'bridge'", Code.INVALID_CONFIG),
        mtu=_mtu(fields),
        mac=requested.mac(call, ("args.cni: 'mac'", requested.cni_args(call).text("mac")), requested.cni_arg_mac(call)),
        ipam=configure.ipam_type(call),
        dns=results.read({"dns": call.config.get("dns")}, "1.0.0").dns,
        is_gateway=fields.flag("isGateway") or fields.flag("isDefaultGateway"),
        is_default_gateway=fields.flag("isDefaultGateway"),
        force_address=fields.flag("forceAddress"),
        hairpin=fields.flag("hairpinMode"),
        promisc=fields.flag("promiscMode"),
        isolated=fields.flag("portIsolation"),
        dad=fields.flag("enabledad"),
        l2_down=fields.flag("disableContainerInterface"),
        vlan=fields.number("vlan"),
        trunk=tuple(
            ends for n, item in enumerate(fields.tables("vlanTrunk") or ()) for ends in _trunk(item, f"vlanTrunk[{n}]")
        ),
        keep_default_vlan=fields.flag("preserveDefaultVlan"),
    )
    if config.hairpin and config.promisc:
        raise _refused("cannot set hairpin mode and promiscuous mode at the same time", "choose one of the two")
    if config.vlan > _VLAN_MAX:
        raise _refused(f"invalid VLAN ID {config.vlan} (must be between 0 and {_VLAN_MAX})", "0 is no VLAN")
    if config.l2_down and config.ipam:
        raise _refused("cannot use IPAM when DisableContainerInterface flag is set", "drop 'ipam' or the flag")
    return config


def add(request: Request) -> Result:
    """Make the pair, attach it, give the pod's end its addresses and the bridge the gateway's."""
    call, config = request.call, parse(request.call)
    with netlink.open() as host, Undo() as undo:
        port = _attach(host, call, config, undo)
        ipam = _ask(request, config, undo)
        ips, routes, gateways = _with_gateways(config, ipam)
        pod = namespaces.run_in(call.netns, lambda: _configure_in_pod(call, config, ips, routes))
        end = _await_port(host, port.host) if config.ipam else host.link(port.host)
        extra = _serve_gateways(host, port, config, gateways)
        result = Result(
            interfaces=(
                _interface(host.link(port.bridge.index)),
                _interface(end),
                Interface(pod.name, pod.mac, sandbox=call.netns),
                *extra,
            ),
            ips=ips,
            routes=routes,
            dns=config.dns if config.dns.to_json() else ipam.dns,
        )
        undo.keep()
    return result


def delete(request: Request) -> None:
    """Remove the pair and release the addresses; an error of one does not keep the other from running."""
    call = request.call
    # The interface first: an address must not be in use here after it is released.
    run_all(
        f"delete {call.ifname}",
        lambda: configure.remove_interface(call.netns, call.ifname),
        lambda: configure.run_ipam(request),
    )


def check(request: Request) -> None:
    """Raise when the pair, its bridge port, an address or a route is not what ADD returned."""
    call, config = request.call, parse(request.call)
    configure.run_ipam(request)
    promised = configure.prev_result(call)
    with netlink.open(call.netns) as inside:
        pod = configure.pod_interface(inside, call, "veth")
        configure.verify_mac(pod, promised)
        configure.verify_addresses(inside, pod, promised)
    with netlink.open() as host:
        bridge = host.link(config.bridge)
        port = host.find_link(pod.parent)
        if port is None or port.kind != "veth" or port.master != bridge.index:
            raise CniError(
                Code.INTERNAL, f"the other end of {call.ifname} is not a port of bridge {config.bridge}", "make it anew"
            )


def status(request: Request) -> None:
    """Raise when the IPAM plugin could not serve an ADD."""
    parse(request.call)
    configure.run_ipam(request)


# --- the config ------------------------------------------------------------------------------------------------------


def _refused(why: str, details: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"bridge: {why}", details)


def _mtu(fields: Fields) -> int:
    mtu = fields.number("mtu")
    if mtu > records.MTU_MAX:
        raise fields.error("mtu", f"at most {records.MTU_MAX}")
    return mtu


def _trunk(item: Mapping[str, Any], where: str) -> list[tuple[int, int]]:
    """Read one entry of vlanTrunk: a range minID to maxID, a single id, or both."""
    fields = Fields(item, f"bridge: {where}")
    given = {key: fields.number(key) for key in ("minID", "maxID", "id") if fields.get(key) is not None}
    for key, value in given.items():
        if not 0 < value <= _VLAN_MAX:
            raise _refused(f"{where}: incorrect trunk {key} parameter {value}", f"1 to {_VLAN_MAX}")
    if ("minID" in given) != ("maxID" in given):
        raise _refused(f"{where}: minID and maxID should be configured simultaneously", "or 'id' for a single VLAN")
    if not given:
        raise _refused(f"{where}: names no VLAN", "'id', or 'minID' and 'maxID'")
    ranges = [(given[first], given[last]) for first, last in (("minID", "maxID"), ("id", "id")) if first in given]
    if any(first > last for first, last in ranges):
        raise _refused(f"{where}: minID is greater than maxID in trunk parameter", "swap them")
    return ranges


# --- the host's side -------------------------------------------------------------------------------------------------


def _attach(host: Netlink, call: Call, config: Config, undo: Undo) -> Port:
    """Make sure of the bridge, make the pair, and set the port's options."""
    bridge = _ensure_bridge(host, config)
    name = _make_pair(host, call, config, bridge, undo)
    namespaces.write_sysctl(f"net/ipv6/conf/{name}/accept_ra", "0")
    if config.hairpin or config.isolated or config.filters_vlans:
        port = host.link(name).index
        host.set_port(port, hairpin=config.hairpin, isolated=config.isolated or None)
        _set_vlans(host, port, config)
    return Port(bridge, name)


def _ensure_bridge(host: Netlink, config: Config) -> Link:
    """Return the bridge, up; made when it is missing. Router advertisements are not for it: it has its own routes."""
    bridge = host.find_link(config.bridge) or _make_bridge(host, config)
    if bridge.kind != "bridge":
        raise CniError(
            Code.INVALID_CONFIG,
            f"{config.bridge!r} already exists but is not a bridge",
            "name another one in 'bridge'",
        )
    if config.filters_vlans and not bridge.vlan_filtering:
        host.set_vlan_filtering(bridge.index, True)
    namespaces.write_sysctl(f"net/ipv6/conf/{config.bridge}/accept_ra", "0")
    if config.promisc or not bridge.up:
        host.set_link(bridge.index, up=True, promisc=config.promisc or None)
    return bridge


def _make_bridge(host: Netlink, config: Config) -> Link:
    try:
        host.create_bridge(config.bridge, mtu=config.mtu, vlan_filtering=config.filters_vlans)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:  # a concurrent ADD created it
            raise
    return host.link(config.bridge)


def _make_pair(host: Netlink, call: Call, config: Config, bridge: Link, undo: Undo) -> str:
    """Make the pair under a free name `veth<8 hex>` on the host and the asked name in the pod."""
    for _ in range(_NAME_TRIES):
        name = f"veth{os.urandom(4).hex()}"
        try:
            host.create_veth(
                name,
                call.ifname,
                peer_netns=call.netns,
                mtu=config.mtu,
                peer_mac=config.mac,
                master=bridge.index,
            )
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            if host.find_link(name) is None:
                raise CniError(
                    Code.INTERNAL, f"interface {call.ifname} exists already in {call.netns}", "choose another name"
                ) from error
            continue
        undo.add(_remove, host, name)
        return name
    raise CniError(Code.TRY_AGAIN, f"no free name for the host's end of {call.ifname}", "it is drawn at random")


def _remove(host: Netlink, name: str) -> None:
    if link := host.find_link(name):
        host.delete_link(link.index)


def _set_vlans(host: Netlink, port: int, config: Config) -> None:
    """Set the VLANs of a port: the access VLAN untagged, those of the trunk tagged; the default one only if kept."""
    if not config.filters_vlans:
        return
    if not config.keep_default_vlan and any(vlan.vid == _DEFAULT_VLAN for vlan in host.vlans(port)):
        host.delete_vlan(port, _DEFAULT_VLAN)
    if config.vlan:
        host.add_vlans(port, config.vlan, config.vlan, records.VLAN_PVID | records.VLAN_UNTAGGED)
    for first, last in config.trunk:
        host.add_vlans(port, first, last)


def _await_port(host: Netlink, name: str) -> Link:
    """Wait until the port forwards and return it; raise when it does not."""
    port = host.await_running(name, _PORT_SECONDS)
    if port.operstate != records.OPER_UP:
        raise CniError(
            Code.INTERNAL,
            f"bridge port {name} in error state: operational state {port.operstate}",
            "is the pod's end up?",
        )
    return port


# --- the pod's side --------------------------------------------------------------------------------------------------


def _ask(request: Request, config: Config, undo: Undo) -> Result:
    """Return the result of IPAM, an empty one without IPAM."""
    if not config.ipam:
        return Result()
    undo.add(configure.delete_addresses, request, config.ipam)
    return configure.add_addresses(request, config.ipam)


def _configure_in_pod(call: Call, config: Config, ips: tuple[IP, ...], routes: tuple[Route, ...]) -> Link:
    """Add addresses and routes to the pod's end and set it up. Runs in the pod's network namespace."""
    with netlink.open() as pod:
        link = pod.link(call.ifname)
        if config.ipam:
            _set_detection(call.ifname, config.dad)
            configure.configure(pod, link, ips, routes)
        elif not config.l2_down:
            pod.set_link(link.index, up=True)
        return link


def _set_detection(ifname: str, wanted: bool) -> None:
    """Announce addresses when the link is set up; IPv6 duplicate address detection on a bridge only when configured."""
    if wanted:
        namespaces.write_sysctl(f"net/ipv6/conf/{ifname}/enhanced_dad", "1")
    namespaces.write_sysctl(f"net/ipv6/conf/{ifname}/accept_dad", "1" if wanted else "0")
    namespaces.write_sysctl(f"net/ipv4/conf/{ifname}/arp_notify", "1")


# --- the gateway -----------------------------------------------------------------------------------------------------


def _with_gateways(
    config: Config, ipam: Result
) -> tuple[tuple[IP, ...], tuple[Route, ...], tuple[records.IPInterface, ...]]:
    """Return addresses and routes with gateways, and the addresses of the bridge itself."""
    ips = tuple(replace(ip, interface=2, gateway=ip.gateway or _first(config, ip)) for ip in ipam.ips)
    routes = list(ipam.routes)
    for ip in ips:
        default = _DEFAULT_ROUTE[ip.address.version]
        if config.is_default_gateway and all(route.dst != default for route in routes):
            routes.append(Route(default, ip.gateway))
    if not config.is_gateway:
        return ips, tuple(routes), ()
    served = tuple(
        ipaddress.ip_interface(f"{ip.gateway}/{ip.address.network.prefixlen}") for ip in ips if ip.gateway is not None
    )
    return ips, tuple(routes), served


def _first(config: Config, ip: IP) -> results.Address | None:
    """Return the first address of the subnet when the bridge is the gateway and IPAM returned none."""
    return ip.address.network.network_address + 1 if config.is_gateway else None


def _serve_gateways(
    host: Netlink, port: Port, config: Config, served: tuple[records.IPInterface, ...]
) -> tuple[Interface, ...]:
    """Add the gateway addresses to the bridge, or to its interface in the VLAN, and enable forwarding."""
    if not served:
        return ()
    holder = _vlan_interface(host, port.bridge, config) if config.vlan else port.bridge
    for address in served:
        _ensure_address(host, holder, address, config.force_address)
    for version in {address.version for address in served}:
        if namespaces.read_sysctl(_FORWARDING[version]) != "1":
            namespaces.write_sysctl(_FORWARDING[version], "1")
    return (_interface(host.link(holder.index)),) if config.vlan else ()


def _vlan_interface(host: Netlink, bridge: Link, config: Config) -> Link:
    """Return `<bridge>.<vlan>`: one end of a pair whose other end is an access port of the bridge. It stays on DEL."""
    name = f"{bridge.name}.{config.vlan}"
    if found := host.find_link(name):
        return found
    name = names.interface(name, "bridge: the gateway's interface in the VLAN", Code.INVALID_CONFIG)
    port = f"veth{os.urandom(4).hex()}"
    with Undo() as undo:
        host.create_veth(port, name, mtu=bridge.mtu, master=bridge.index)
        undo.add(_remove, host, port)
        _set_vlans(host, host.link(port).index, replace(config, trunk=()))
        namespaces.write_sysctl(f"net/ipv6/conf/{port}/accept_ra", "0")
        made = host.link(name)
        host.set_link(made.index, up=True)
        undo.keep()
    return made


def _ensure_address(host: Netlink, holder: Link, wanted: records.IPInterface, force: bool) -> None:
    """Add *wanted* to the bridge; a conflicting address is an error, or is replaced when *force*."""
    for held in host.addresses(holder.index, wanted.version):
        if held.interface == wanted:
            return
        if wanted.version == 4 or held.interface.network.overlaps(wanted.network):
            if not force:
                raise CniError(
                    Code.INTERNAL,
                    f"{holder.name!r} already has an IP address different from {wanted}: {held.interface}",
                    "set 'forceAddress' to replace it",
                )
            host.delete_address(holder.index, held.interface)
    try:
        host.add_address(holder.index, wanted)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:  # a concurrent ADD added it
            raise
    # A bridge has the lowest hardware address of its ports until one is set: with every change of its ports pods would
    # lose their gateway. A bridge without ports has none: then the new port's address is set.
    mac = holder.mac if holder.mac.strip("0:") else host.link(holder.index).mac
    host.set_link(holder.index, mac=mac)


def _interface(link: Link) -> Interface:
    return Interface(link.name, link.mac)
