# SPDX-License-Identifier: Apache-2.0
"""The sriov delegate: a virtual function of a NIC for one pod, with a lease until DEL succeeded."""

import errno
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from multus_py.cni import names
from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.delegate import Request
from multus_py.cni.errors import CniError, Code, run_all
from multus_py.cni.fields import Fields
from multus_py.cni.result import DNS, IP, Interface, Result
from multus_py.config import delegate_schema
from multus_py.delegates import announce, configure, requested
from multus_py.delegates.sriov import takeover, virtual_function
from multus_py.delegates.sriov.leases import Lease, Leases, Owner, Slot, boot_id
from multus_py.delegates.sriov.takeover import SavedState
from multus_py.delegates.sriov.virtual_function import Before, Function
from multus_py.kernel import namespaces, netlink, records
from multus_py.kernel.errors import NetlinkError, NoNamespace
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.pci import ADDRESS, Bus
from multus_py.kernel.records import Link
from multus_py.kernel.undo import Undo
from multus_py.kernel.virtual_functions import LINK_STATES, NO_MAC, VLAN_PROTOCOLS, VirtualFunction

log = logging.getLogger("multus_py")

SCHEMA: Mapping[str, Any] = delegate_schema.load("sriov")
DATA_DIR = "/var/lib/cni/sriov"
BUS = Bus()
_VLAN_MAX, _QOS_MAX, _RATE_MAX = 4094, 7, 0xFFFFFFFF
_CARRIER_SECONDS = 1.0  # to wait for the link before addresses are given and announced
_MARK = "multus-py"


@dataclass(frozen=True)
class Config:
    """An sriov config, checked. None: leave the function's attribute as it is; *device* "" when none is named yet."""

    device: str
    data_dir: str
    vlan: tuple[int, int, int]
    mac: str
    spoofchk: bool | None
    trust: bool | None
    link_state: str | None
    min_tx_rate: int | None
    max_tx_rate: int | None
    ipam: str
    dns: DNS

    def wanted(self, now: VirtualFunction) -> dict[str, Any]:
        """Return the value of each attribute; a rate that is not configured stays as it is *now*."""
        least = now.rates[0] if self.min_tx_rate is None else self.min_tx_rate
        most = now.rates[1] if self.max_tx_rate is None else self.max_tx_rate
        return {
            "trust": self.trust,
            "spoofchk": self.spoofchk,
            "vlan": self.vlan,
            "rates": (least, most),
            "link_state": self.link_state,
        }


@requested.cached_for_add
def parse(call: Call) -> Config:
    """Read the config and what the call requests; code 7 names the key that is wrong."""
    fields = Fields(call.config, "sriov")
    least, most = _rate(fields, "min_tx_rate"), _rate(fields, "max_tx_rate")
    if least and most and least > most:
        raise _refused(f"min_tx_rate {least} is greater than max_tx_rate {most}", "Mbit/s; 0 is no limit")
    link_state = fields.text("link_state")
    if link_state and link_state not in LINK_STATES:
        raise _refused(f"invalid link_state value {link_state!r:.80}", f"one of {', '.join(LINK_STATES)}")
    device = _device(call, fields)
    if call.verb == "ADD" and not device:
        raise _refused("VF pci addr is required", "'deviceID' says which function; a device plugin chooses one")
    return Config(
        device=device,
        data_dir=fields.text("dataDir") or DATA_DIR,
        vlan=_vlan(fields),
        mac=requested.mac(call, requested.cni_arg_mac(call), ("sriov: 'mac'", fields.text("mac"))),
        spoofchk=_switch(fields, "spoofchk"),
        trust=_switch(fields, "trust"),
        link_state=link_state or None,
        min_tx_rate=least,
        max_tx_rate=most,
        ipam=configure.ipam_type(call),
        dns=results.read({"dns": call.config.get("dns")}, "1.0.0").dns,
    )


def add(request: Request) -> Result:
    """Lease the function, configure it, move its interface to the pod, and add the addresses."""
    call, config = request.call, parse(request.call)
    with Undo() as undo:
        function, mac = _lease_and_move(call, config, undo)
        given = Result()
        if config.ipam:
            undo.add(configure.delete_addresses, request, config.ipam)
            given = configure.add_addresses(request, config.ipam)
        ips = tuple(replace(ip, interface=0) for ip in given.ips)
        mtu = function.physical.mtu
        if not function.has_program_driver:
            link = namespaces.run_in(call.netns, lambda: _configure_in_pod(call, config, function, ips, given))
            mac, mtu = link.mac, link.mtu
        interface = Interface(call.ifname, mac, mtu, call.netns, pci_id=function.address)
        result = Result(interfaces=(interface,), ips=ips, routes=given.routes, dns=_dns(config, given))
        undo.keep()
    return result


def delete(request: Request) -> None:
    """Release the addresses and the function; an error of one does not keep the other from running."""
    call = request.call
    # IPAM first: dhcp releases its lease through the interface.
    run_all(f"delete {call.ifname}", lambda: configure.run_ipam(request), lambda: _release_function(call))


def check(request: Request) -> None:
    """Raise when the lease, the interface, an attribute, an address or a route is not what ADD left."""
    call, config = request.call, parse(request.call)
    configure.run_ipam(request)
    promised = configure.prev_result(call)
    leases = Leases(Path(config.data_dir))
    if config.device not in leases.of(_owner(call)):
        raise _differs(call, f"has no lease of {config.device or 'a function'}")
    with netlink.open() as host:
        function = virtual_function.find(host, BUS, config.device)
        _verify(call, config, function, function.now(host))
    if function.has_program_driver:
        return
    with netlink.open(call.netns) as inside:
        link = inside.find_link(call.ifname)
        if link is None or link.device != function.address:
            raise _differs(call, f"is not the interface of {function}")
        configure.verify_mac(link, promised)
        configure.verify_addresses(inside, link, promised)


def status(request: Request) -> None:
    """Raise when the IPAM plugin could not serve an ADD; which functions are free is for the device plugin to know."""
    parse(request.call)
    configure.run_ipam(request)


# --- the config ------------------------------------------------------------------------------------------------------


def _refused(why: str, details: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"sriov: {why}", details)


def _differs(call: Call, what: str) -> CniError:
    return CniError(Code.INTERNAL, f"interface {call.ifname} {what}", "the pod's network is not what ADD made")


def _device(call: Call, fields: Fields) -> str:
    device = requested.runtime(call).text("deviceID") or fields.text("deviceID") or fields.text("pciBusID")
    if device and not ADDRESS.match(device.lower()):
        raise _refused(f"deviceID {device!r:.80} is not a PCI address", "such as 0000:01:10.0")
    return device.lower()


def _vlan(fields: Fields) -> tuple[int, int, int]:
    """Return id, priority and protocol of the VLAN; without one the function's VLAN is cleared."""
    vid, qos = fields.number("vlan"), fields.number("vlanQoS")
    protocol = fields.text("vlanProto").lower() or "802.1q"
    if vid > _VLAN_MAX:
        raise _refused(f"vlan id {vid} invalid: value must be in the range 0-{_VLAN_MAX}", "0 is no VLAN")
    if qos > _QOS_MAX:
        raise _refused(f"vlan QoS PCP {qos} invalid: value must be in the range 0-{_QOS_MAX}", "0 is the usual one")
    if protocol not in VLAN_PROTOCOLS:
        raise _refused(f"vlan Proto {protocol!r:.80} invalid", f"one of {', '.join(VLAN_PROTOCOLS)}")
    if not vid and (qos or protocol == "802.1ad"):
        key = "vlanQoS" if qos else "vlanProto 802.1ad"
        raise _refused(f"non-zero vlan id must be configured for {key}", "set 'vlan'")
    return vid, qos, VLAN_PROTOCOLS[protocol]


def _switch(fields: Fields, key: str) -> bool | None:
    value = fields.text(key)
    if value not in ("", "on", "off"):
        raise fields.error(key, "on or off")
    return value == "on" if value else None


def _rate(fields: Fields, key: str) -> int | None:
    if fields.get(key) is None:
        return None
    if (rate := fields.number(key)) > _RATE_MAX:
        raise fields.error(key, f"at most {_RATE_MAX}")
    return rate


def _verify(call: Call, config: Config, function: Function, now: VirtualFunction) -> None:
    """Raise when an attribute on the physical side is not what the config asks for."""
    wanted = {**config.wanted(now), "mac": config.mac or None}
    for attribute, value in wanted.items():
        if value is not None and value != (held := getattr(now, attribute)):
            raise _differs(call, f"has {attribute} {held}, not {value}, on {function}")


def _dns(config: Config, given: Result) -> DNS:
    return config.dns if config.dns.to_json() else given.dns


def _owner(call: Call) -> Owner:
    return Owner(call.container_id, call.ifname, call.netns)


# --- ADD -----------------------------------------------------------------------------------------------


def _lease_and_move(call: Call, config: Config, undo: Undo) -> tuple[Function, str]:
    """Lease the function, configure it and move it; return it and its hardware address ("" when none is set).

    All steps run under the lock of the device.
    """
    with netlink.open() as host, Leases(Path(config.data_dir)).hold(config.device) as slot:
        function = virtual_function.find(host, BUS, config.device)
        _make_free(host, slot, _owner(call))
        link = _host_link(host, function)
        before = _without_mark(virtual_function.read(host, function, link))
        undo.add(_release_function, call)
        slot.write(Lease(function.address, _owner(call), before.to_json(), boot_id()))
        if link:
            host.set_link(link.index, up=False, alias=_mark(before.name, call))
        virtual_function.change(host, function, config.wanted(before.function))
        if config.mac:
            virtual_function.set_mac(host, function, link, config.mac)
        if link:
            virtual_function.move(host, function, link, call.netns)
        mac = config.mac or before.function.mac
    return function, "" if mac == NO_MAC else mac


def _make_free(host: Netlink, slot: Slot, owner: Owner) -> None:
    """Raise when the function is in use; one whose owner's namespace was removed is restored first."""
    lease = slot.lease
    if lease is None:
        if slot.foreign and _exists(slot.foreign):
            raise _in_use(slot.device, f"the namespace {slot.foreign}")
        return
    if not lease.owner.same(owner) and lease.boot == boot_id() and _exists(lease.owner.netns):
        raise _in_use(slot.device, f"{lease.owner.ifname} of container {lease.owner.container_id}")
    _restore(host, lease, lease.owner.netns)
    slot.clear()


def _in_use(device: str, whom: str) -> CniError:
    return CniError(
        Code.TRY_AGAIN, f"pci address {device} is already allocated to {whom}", "it is free after that one's DEL"
    )


def _exists(netns: str) -> bool:
    """Tell whether a namespace exists."""
    try:
        netlink.open(netns).close()
    except NoNamespace:
        return False
    return True


def _host_link(host: Netlink, function: Function) -> Link | None:
    """Return the function's interface, None with a user space driver; an error when it is in another namespace."""
    if function.has_program_driver:
        return None
    if not function.driver:
        raise CniError(Code.INVALID_CONFIG, f"{function} has no driver", "load its driver, or bind it to vfio-pci")
    link = host.device(function.address)
    if link is None:
        raise _in_use(function.address, "somebody without a lease: its interface is in another namespace")
    return link


def _mark(name: str, call: Call) -> str:
    """Return the alias of an interface in a pod: its original name and its owner, in case the lease is lost."""
    return ":".join((_MARK, name, call.container_id, call.ifname))


def _without_mark(before: Before) -> Before:
    """Return the state with the original name of an interface that came back without its lease."""
    mark, _, rest = before.alias.partition(":")
    return replace(before, name=_original_name(rest, before.name), alias="") if mark == _MARK and rest else before


def _original_name(marked: str, current: str) -> str:
    """Return the original name in a mark, which a pod may have written; *current* when it is no valid name."""
    name = marked.partition(":")[0]
    return current if names.interface_problem(name) else name


def _configure_in_pod(call: Call, config: Config, function: Function, ips: tuple[IP, ...], given: Result) -> Link:
    """Rename the interface, add addresses and routes, announce them. Runs in the pod's network namespace."""
    with netlink.open() as pod:
        link = pod.device(function.address)
        if link is None:
            raise CniError(Code.INTERNAL, f"the interface of {function} did not arrive in {call.netns}")
        try:
            pod.set_link(link.index, name=call.ifname)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            raise CniError(
                Code.INTERNAL, f"interface {call.ifname} exists already in {call.netns}", "choose another name"
            ) from error
        for setting in ("ipv4/conf/{}/arp_notify", "ipv6/conf/{}/ndisc_notify", "ipv6/conf/{}/optimistic_dad"):
            namespaces.write_sysctl("net/" + setting.format(call.ifname), "1")
        pod.set_link(link.index, up=True)
        expected = function.physical.operstate == records.OPER_UP and config.link_state != "disable"
        link = pod.await_running(link.index, _CARRIER_SECONDS if expected or config.link_state == "enable" else 0)
        if ips:
            configure.configure(pod, link, ips, given.routes)
        if link.operstate == records.OPER_UP:
            _announce(link, ips)
    return link


def _announce(link: Link, ips: tuple[IP, ...]) -> None:
    try:
        announce.announce(link.name, link.mac, [ip.address.ip for ip in ips])
    except OSError as error:  # neighbours learn it from the first packet
        log.warning("addresses of %s were not announced: %s", link.name, error)


# --- DEL --------------------------------------------------------------------------------------------------


def _release_function(call: Call) -> None:
    """Release the function of *call*; one that it does not have belongs to another attachment, or is free."""
    fields = Fields(call.config, "sriov")
    leases = Leases(Path(fields.text("dataDir") or DATA_DIR))
    owner = _owner(call)
    if devices := leases.of(owner):
        run_all("give back", *(partial(_return, leases, device, owner) for device in devices))
    elif saved := takeover.read_saved(leases.folder, owner):
        _restore_saved(leases, saved, owner)
    elif device := _device(call, fields):
        with netlink.open() as host, leases.hold(device) as slot:
            _recover(host, slot, call)


def _return(leases: Leases, device: str, owner: Owner) -> None:
    with netlink.open() as host, leases.hold(device) as slot:
        lease = slot.lease
        if lease and lease.owner.same(owner):  # else another ADD has it now
            _restore(host, lease, owner.netns or lease.owner.netns)
            slot.clear()


def _restore_saved(leases: Leases, saved: SavedState, owner: Owner) -> None:
    """Restore a function that sriov-cni attached, unless another attachment has it now."""
    with netlink.open() as host, leases.hold(saved.device) as slot:
        netns = slot.foreign
        if slot.lease is None and (netns in ("", owner.netns) or not _exists(netns)):
            virtual_function.restore(host, BUS, saved.device, saved.before, owner.netns or netns)
            slot.clear()
        saved.path.unlink(missing_ok=True)


def _restore(host: Netlink, lease: Lease, netns: str) -> None:
    """Make a leased device as it was; after a reboot it is."""
    if lease.boot == boot_id():
        virtual_function.restore(host, BUS, lease.device, Before.from_json(lease.before), netns)


def _recover(host: Netlink, slot: Slot, call: Call) -> None:
    """Restore a function without a lease, when the mark on its interface is that of this attachment."""
    if slot.lease or not BUS.exists(slot.device):
        return
    link = host.device(slot.device) or _inside(call.netns, slot.device)
    mark, _, rest = link.alias.partition(":") if link else ("", "", "")
    owner = rest.partition(":")[2]
    if link is None or mark != _MARK or owner != f"{call.container_id}:{call.ifname}":
        return
    function = virtual_function.find(host, BUS, slot.device)
    now = function.now(host)
    # How it was is lost with the lease: what a function is when its driver makes it is the best that can be had.
    fresh = VirtualFunction(
        number=now.number,
        mac=now.mac,
        spoofchk=None if now.spoofchk is None else True,
        trust=None if now.trust is None else False,
    )
    log.warning("the lease of %s was lost: it is given back with the attributes of a new function", function)
    virtual_function.restore(
        host, BUS, slot.device, Before(fresh, _original_name(rest, link.name), link.mac, link.mtu), call.netns
    )
    slot.clear()


def _inside(netns: str, device: str) -> Link | None:
    if not netns:
        return None
    try:
        with netlink.open(netns) as inside:
            return inside.device(device)
    except NoNamespace:
        return None
