# SPDX-License-Identifier: Apache-2.0
"""The macvlan delegate: an interface in the pod that shares a device of the host, with its own hardware address."""

import errno
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
from multus_py.cni.result import DNS, IP, Interface, Result
from multus_py.config import delegate_schema
from multus_py.delegates import configure, requested
from multus_py.kernel import namespaces, netlink, records
from multus_py.kernel.errors import NetlinkError
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.records import Link
from multus_py.kernel.undo import Undo

SCHEMA: Mapping[str, Any] = delegate_schema.load("macvlan")
OWNS_INTERFACE = True  # DEL removes the sandbox's interface and no other link
_QUEUE_MAX = 0xFFFFFFFF


@dataclass(frozen=True)
class Config:
    """A macvlan config, checked. *master* "": the interface of the default route; *queue* None: the kernel's choice."""

    master: str
    mode: str
    mtu: int
    mac: str
    queue: int | None
    inside: bool
    ipam: str
    dns: DNS


@requested.cached_for_add
def parse(call: Call) -> Config:
    """Read the config and what the call requests; code 7 names the key that is wrong."""
    fields = Fields(call.config, "macvlan")
    mode = fields.text("mode") or "bridge"
    if mode not in records.MACVLAN_MODES:
        raise CniError(
            Code.INVALID_CONFIG, f"unknown macvlan mode: {mode!r:.80}", f"one of {', '.join(records.MACVLAN_MODES)}"
        )
    master = fields.text("master")
    queue = fields.number("bcqueuelen")
    if queue > _QUEUE_MAX:
        raise fields.error("bcqueuelen", f"at most {_QUEUE_MAX}")
    return Config(
        master=names.interface(master, "macvlan: 'master'", Code.INVALID_CONFIG) if master else "",
        mode=mode,
        mtu=fields.number("mtu"),
        mac=requested.mac(call, requested.cni_arg_mac(call), ("macvlan: 'mac'", fields.text("mac"))),
        queue=queue or None,
        inside=fields.flag("linkInContainer"),
        ipam=configure.ipam_type(call),
        dns=results.read({"dns": call.config.get("dns")}, "1.0.0").dns,
    )


def add(request: Request) -> Result:
    """Create the interface in the pod and add its addresses; on an error everything is rolled back."""
    call, config = request.call, parse(request.call)
    with netlink.open(call.netns if config.inside else None) as host, Undo() as undo:
        made = _create_interface(host, call, config, undo)
        given = Result()
        if config.ipam:
            undo.add(configure.delete_addresses, request, config.ipam)
            given = configure.add_addresses(request, config.ipam)
        ips = tuple(replace(ip, interface=0) for ip in given.ips)
        pod = namespaces.run_in(call.netns, lambda: _configure_in_pod(call, made, ips, given, undo))
        result = Result(
            interfaces=(Interface(pod.name, pod.mac, sandbox=call.netns),), ips=ips, routes=given.routes, dns=config.dns
        )
        undo.keep()
    return result


def delete(request: Request) -> None:
    """Remove the interface and release the addresses; an error of one does not keep the other from running."""
    call = request.call
    # IPAM first: dhcp releases its lease through the interface.
    run_all(
        f"delete {call.ifname}",
        lambda: configure.run_ipam(request),
        lambda: configure.remove_interface(call.netns, call.ifname),
    )


def check(request: Request) -> None:
    """Raise when the interface, its master, its mode, an address or a route is not what ADD returned."""
    call, config = request.call, parse(request.call)
    configure.run_ipam(request)
    promised = configure.prev_result(call)
    with netlink.open(call.netns) as inside:
        pod = configure.pod_interface(inside, call, "macvlan")
        configure.verify_mac(pod, promised)
        configure.verify_addresses(inside, pod, promised)
    if pod.macvlan_mode != config.mode:
        raise CniError(
            Code.INTERNAL, f"interface {call.ifname} has the mode {pod.macvlan_mode}, not {config.mode}", "make it anew"
        )
    with netlink.open(call.netns if config.inside else None) as host:
        master = _master(host, config)
        if master.index != pod.parent:
            raise CniError(
                Code.INTERNAL, f"the master of {call.ifname} is not {master.name}", "its master went away, or came anew"
            )


def status(request: Request) -> None:
    """Raise code 50 when the master is missing, or what the IPAM plugin raises."""
    config = parse(request.call)
    if not config.inside:
        with netlink.open() as host:
            try:
                _master(host, config)
            except CniError as cause:
                raise CniError(Code.NOT_AVAILABLE, cause.msg, cause.details) from cause
    configure.run_ipam(request)


def _create_interface(host: Netlink, call: Call, config: Config, undo: Undo) -> str:
    """Create the interface in the pod; return its name there: the requested one or a random one."""
    made = _create(host, call, config)
    undo.add(configure.remove_interface, call.netns, made)
    return made


def _create(host: Netlink, call: Call, config: Config) -> str:
    master = _master(host, config)
    if config.mtu > master.mtu:
        raise CniError(
            Code.INVALID_CONFIG,
            f"invalid MTU {config.mtu}, must be [0, master MTU({master.mtu})]",
            f"macvlan cannot send what {master.name} cannot",
        )
    # The kernel checks the name of a new link in the namespace of the request, not in that of the link. A name that is
    # used there is refused although it is free in the pod, so the link gets a random one and is renamed inside.
    try:
        return _create_named(host, call.ifname, master, call, config)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
    return _create_named(host, f"macv{os.urandom(4).hex()}", master, call, config)


def _create_named(host: Netlink, name: str, master: Link, call: Call, config: Config) -> str:
    netns = "" if config.inside else call.netns
    host.create_macvlan(
        name, master.index, config.mode, netns=netns, mtu=config.mtu, mac=config.mac, queue=config.queue
    )
    return name


def _master(host: Netlink, config: Config) -> Link:
    """Return the named master, else the interface of the default route; code 7 when there is neither."""
    if config.master:
        try:
            return host.link(config.master)
        except NetlinkError as error:
            raise error.with_context("macvlan: 'master'") from error
    for family in (4, 6):
        for route in sorted(host.default_routes(family), key=lambda route: route.priority):
            if index := route.ifindex or next((hop.ifindex for hop in route.hops), 0):
                return host.link(index)
    raise CniError(Code.INVALID_CONFIG, "no default route interface found", "name the device in 'master'")


def _configure_in_pod(call: Call, made: str, ips: tuple[IP, ...], given: Result, undo: Undo) -> Link:
    """Rename the interface, add addresses and routes, set it up. Runs in the pod's network namespace."""
    with netlink.open() as pod:
        link = pod.link(made)
        if made != call.ifname:
            undo.add(configure.remove_index, call.netns, link.index)  # its name changes
            pod.set_link(link.index, name=call.ifname)
            link = replace(link, name=call.ifname)
        if not ips:
            pod.set_link(link.index, up=True)
            return link
        namespaces.write_sysctl(f"net/ipv4/conf/{call.ifname}/arp_notify", "1")
        namespaces.write_sysctl(f"net/ipv6/conf/{call.ifname}/ndisc_notify", "1")
        configure.configure(pod, link, ips, given.routes)
        return link
