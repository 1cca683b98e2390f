# SPDX-License-Identifier: Apache-2.0
"""What is attached on this node, for `status`: the journal compared with the kernel."""

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
    """One attachment. *drift* describes the differences from the results of ADD, empty without any.

    *device* has `pci`, `driver`, `resource`, and for a virtual function its settings on the physical one: `pf`,
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
    """A network whose ADD did not complete and whose DEL fails; *final*: it is not retried."""

    ifname: str
    network: str
    reason: str
    tries: int
    final: bool


@dataclass(frozen=True)
class Sandbox:
    """One sandbox of the journal; *trouble* is the error when its interfaces cannot be read."""

    namespace: str
    pod: str
    container: str
    netns: str
    interfaces: tuple[Interface, ...] = ()
    trouble: str = ""
    failed: tuple[Failed, ...] = ()

    @property
    def drifted(self) -> bool:
        """Tell whether anything differs from what was attached."""
        return bool(self.trouble or self.failed) or any(interface.drift for interface in self.interfaces)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `multus-py status --json` prints."""
        return {**asdict(self), "drifted": self.drifted}


@dataclass(frozen=True)
class Survey:
    """Reads the state of all sandboxes: from journal, cached results and the PCI devices of the node."""

    journal: Journal
    cache: ResultCache
    bus: Bus

    def sandboxes(self) -> Iterator[Sandbox]:
        """Yield every sandbox of the journal; without its lock, and without changes."""
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
        sandbox = Sandbox(*named, container_id, entry.netns, failed=failed)
        if not entry.attachments:
            return sandbox
        try:
            with netlink.open(entry.netns) as kernel:
                return replace(sandbox, interfaces=tuple(self._interfaces(entry, kernel, host)))
        except CniError as error:
            return replace(sandbox, trouble=f"its namespace cannot be looked into: {error.msg}")

    def _interfaces(self, entry: Entry, kernel: Netlink, host: Netlink) -> Iterator[Interface]:
        claimed = default_route.claims(entry.attachments)
        for attachment in entry.attachments:
            cached = self.cache.result(attachment, entry.container_id)
            result = results.read(cached, attachment.conflist.version) if cached else None
            device = self._device(attachment, result, host)
            link = kernel.find_link(attachment.ifname)
            if link is None:
                expected = result is None or result.interfaces or result.ips
                for_program = device and device["driver"] in _USERSPACE_DRIVERS
                gone = ("the interface is not there",) if expected and not for_program else ()
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
        """Return the device of an attachment; None when it has none."""
        reported = next((item.pci_id for item in result.interfaces if item.pci_id), "") if result else ""
        address = reported or (attachment.device.id if attachment.device else "") or str(_configured(attachment))
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


# Drivers that give a device to a program in the pod: it has no interface.
_USERSPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")


def _configured(attachment: Attachment) -> Any:
    return next((plugin.get("deviceID", "") for plugin in attachment.conflist.plugins), "")


def _function(host: Netlink, name: str, number: int) -> VirtualFunction | None:
    link = host.find_link(name)
    listed = host.virtual_functions(link.index) if link else []
    return next((function for function in listed if function.number == number), None)


def _differences(attachment: Attachment, result: Result | None, ips: tuple[str, ...], mac: str) -> Iterator[str]:
    """Yield what of the cached result the interface does not have."""
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
        recorded = result.interfaces[n].mac.lower()
        if len(recorded) == len(mac) and recorded != mac:
            yield f"the MAC was {recorded}"


def _lost_routes(kernel: Netlink, result: Result | None) -> list[str]:
    """Return which routes of the cached result are in no table (the sbr plugin uses tables of its own)."""
    if result is None or not result.routes:
        return []
    existing = {route.dst for route in kernel.routes(table=0) if route.table != default_route.WAITING_TABLE}
    return [f"the route to {route.dst} is not there" for route in result.routes if route.dst not in existing]
