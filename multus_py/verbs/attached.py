# SPDX-License-Identifier: Apache-2.0
"""What is attached on this node: the journal's word beside the kernel's, and every difference between them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from multus_py.cni import result as results
from multus_py.cni.errors import CniError
from multus_py.cni.result import Result
from multus_py.kernel import netlink
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.pci import Bus
from multus_py.kernel.virtual_functions import VirtualFunction
from multus_py.plan.attachment import Attachment
from multus_py.state.journal import Journal
from multus_py.state.journal_entry import Entry
from multus_py.state.result_cache import ResultCache
from multus_py.verbs import default_route

_PCI = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]\Z")
_SHOWN = ("vlan", "spoofchk", "trust", "link_state", "rates")


@dataclass(frozen=True)
class Interface:
    """One attachment. *drift* says in words what differs from what ADD left, empty when nothing does.

    *device* has `pci`, `driver`, `resource`, and for a virtual function what the physical one tells of it now: `pf`,
    `vf`, `mac`, `vlan` (id, priority, protocol), `spoofchk`, `trust`, `link_state`, `rates` (least and most Mbit/s).
    """

    ifname: str
    network: str
    ips: tuple[str, ...]
    mac: str
    mtu: int
    drift: tuple[str, ...]
    device: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Failed:
    """A network that never came to be and whose DEL fails; *final*: it is not tried any more."""

    ifname: str
    network: str
    reason: str
    tries: int
    final: bool


@dataclass(frozen=True)
class Sandbox:
    """One sandbox of the journal; *trouble* says why its interfaces cannot be looked at."""

    namespace: str
    pod: str
    container: str
    netns: str
    interfaces: tuple[Interface, ...] = ()
    trouble: str = ""
    failed: tuple[Failed, ...] = ()

    @property
    def drifted(self) -> bool:
        """Tell whether anything is not as it was left."""
        return bool(self.trouble or self.failed) or any(interface.drift for interface in self.interfaces)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `multus-py status --json` prints."""
        return {**asdict(self), "drifted": self.drifted}


@dataclass(frozen=True)
class Survey:
    """Where to look: the journal, the kept results, the machine's PCI devices."""

    journal: Journal
    cache: ResultCache
    bus: Bus

    def sandboxes(self) -> Iterator[Sandbox]:
        """Look at every sandbox of the journal; nothing is waited for and nothing is changed."""
        with netlink.open() as host:
            for container_id, ifname in self.journal.sandboxes():
                yield self._sandbox(container_id, ifname, host)

    def _sandbox(self, container_id: str, ifname: str, host: Netlink) -> Sandbox:
        try:
            entry = self.journal.read(container_id, ifname)
        except CniError as error:
            return Sandbox("", "", container_id, "", trouble=str(error))
        named = (entry.pod.namespace, entry.pod.name) if entry.pod else ("", "")
        failed = tuple(
            Failed(one.attachment.ifname, one.attachment.name, one.reason, one.tries, one.is_final)
            for one in entry.failures
        )
        known = Sandbox(*named, container_id, entry.netns, failed=failed)
        if not entry.attachments:
            return known
        try:
            with netlink.open(entry.netns) as kernel:
                return replace(known, interfaces=tuple(self._interfaces(entry, kernel, host)))
        except CniError as error:
            return replace(known, trouble=f"its namespace cannot be looked into: {error.msg}")

    def _interfaces(self, entry: Entry, kernel: Netlink, host: Netlink) -> Iterator[Interface]:
        claimed = default_route.claims(entry.attachments)
        for attachment in entry.attachments:
            kept = self.cache.result(attachment, entry.container_id)
            result = results.read(kept, attachment.conflist.version) if kept else None
            device = self._device(attachment, result, host)
            link = kernel.find_link(attachment.ifname)
            if link is None:
                promised = result is None or result.interfaces or result.ips
                for_program = device and device["driver"] in _FOR_PROGRAMS
                gone = ("the interface is not there",) if promised and not for_program else ()
                yield Interface(attachment.ifname, attachment.name, (), "", 0, gone, device)
                continue
            ips = tuple(
                address.interface.with_prefixlen
                for address in kernel.addresses(link.index)
                if not address.interface.is_link_local
            )
            drift = [*_differences(attachment, result, ips, link.mac), *([] if link.up else ["it is down"])]
            mine = [claim for claim in claimed if claim.ifname == attachment.ifname]
            drift += [*_lost_routes(kernel, result), *(said for _, said in default_route.missing(kernel, mine))]
            yield Interface(attachment.ifname, attachment.name, ips, link.mac, link.mtu, tuple(drift), device)

    def _device(self, attachment: Attachment, result: Result | None, host: Netlink) -> dict[str, Any] | None:
        """Return what is known of the attachment's device; None when it has none."""
        told = next((item.pci_id for item in result.interfaces if item.pci_id), "") if result else ""
        address = told or (attachment.device.id if attachment.device else "") or str(_configured(attachment))
        if not _PCI.match(address) or not self.bus.exists(address):
            return None
        shown: dict[str, Any] = {"pci": address, "driver": self.bus.driver(address),
                                 "resource": attachment.device.resource if attachment.device else ""}  # fmt: skip
        if place := self.bus.place(address):
            for name in self.bus.interfaces(place.physical)[:1]:
                function = _function(host, name, place.number)
                shown |= {"pf": name, "vf": place.number, **({"mac": function.mac} if function else {})}
                shown |= {key: getattr(function, key) for key in _SHOWN} if function else {}
        return shown


# Drivers that hand a device to a program in the pod: there is no interface to look for.
_FOR_PROGRAMS = ("vfio-pci", "uio_pci_generic", "igb_uio")


def _configured(attachment: Attachment) -> Any:
    return next((plugin.get("deviceID", "") for plugin in attachment.conflist.plugins), "")


def _function(host: Netlink, name: str, number: int) -> VirtualFunction | None:
    link = host.find_link(name)
    listed = host.virtual_functions(link.index) if link else []
    return next((function for function in listed if function.number == number), None)


def _differences(attachment: Attachment, result: Result | None, ips: tuple[str, ...], mac: str) -> Iterator[str]:
    """Say what of the kept result the interface does not have."""
    if result is None:
        yield "no result is kept"
        return
    own = {
        n for n, item in enumerate(result.interfaces) if item.name == attachment.ifname and item.sandbox.startswith("/")
    }
    for ip in result.ips:
        if (ip.interface is None or ip.interface in own) and ip.address.with_prefixlen not in ips:
            yield f"address {ip.address.with_prefixlen} is not there"
    for n in own:
        told = result.interfaces[n].mac.lower()
        if len(told) == len(mac) and told != mac:
            yield f"the MAC was {told}"


def _lost_routes(kernel: Netlink, result: Result | None) -> list[str]:
    """Say which routes of the kept result are in no table: plugins that route by source have tables of their own."""
    if result is None or not result.routes:
        return []
    there = {route.dst for route in kernel.routes(table=0) if route.table != default_route.WAITING_TABLE}
    return [f"the route to {route.dst} is not there" for route in result.routes if route.dst not in there]
