# SPDX-License-Identifier: Apache-2.0
"""One virtual function of an SR-IOV NIC: find it, change it, move its interface to a pod, and restore it."""

import errno
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from multus_py.cni.errors import CniError, Code, run_all
from multus_py.kernel import netlink
from multus_py.kernel.errors import NetlinkError, NoNamespace
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.pci import Bus
from multus_py.kernel.records import Link
from multus_py.kernel.virtual_functions import ATTRIBUTES, NO_MAC, VLAN_PROTOCOLS, VirtualFunction

log = logging.getLogger("multus_py")

# Drivers for programs in user space: there is no interface to move.
PROGRAM_DRIVERS = frozenset(("vfio-pci", "uio_pci_generic", "igb_uio"))
_HOST_NAMESPACE = "/proc/thread-self/ns/net"
_RETURN_SECONDS = 5.0  # seconds until the kernel has moved the devices of a removed namespace back
_CODES = {errno.EOPNOTSUPP: Code.UNSUPPORTED_FIELD, errno.EPROTONOSUPPORT: Code.UNSUPPORTED_FIELD,
          errno.EINVAL: Code.INVALID_CONFIG, errno.ERANGE: Code.INVALID_CONFIG}  # fmt: skip
_PROTOCOL_WORDS = {value: name for name, value in VLAN_PROTOCOLS.items()}
# An attribute's value as a person writes it.
_WORDS: dict[str, Callable[[Any], str]] = {
    "trust": lambda value: f"trust {'on' if value else 'off'}",
    "spoofchk": lambda value: f"spoofchk {'on' if value else 'off'}",
    "vlan": lambda value: f"vlan {value[0]} (vlanQoS {value[1]}, vlanProto {_PROTOCOL_WORDS.get(value[2], value[2])})",
    "rates": lambda value: f"min_tx_rate {value[0]}, max_tx_rate {value[1]}",
    "link_state": lambda value: f"link_state {value}",
    "mac": lambda value: f"mac {value}",
}


@dataclass(frozen=True)
class Function:
    """A virtual function: its PCI address and driver, its physical function's interface, and its number there."""

    address: str
    driver: str
    physical: Link
    physical_driver: str
    number: int

    @property
    def has_program_driver(self) -> bool:
        """Tell whether its driver is one for programs in user space."""
        return self.driver in PROGRAM_DRIVERS

    @property
    def temporary_name(self) -> str:
        """A unique name, used while it is moved, and where its original name is in use."""
        return "vf" + self.address.replace(":", "").replace(".", "")[-13:]

    def __str__(self) -> str:
        return f"VF {self.number} ({self.address}) of {self.physical.name} ({self.physical_driver})"

    def now(self, host: Netlink) -> VirtualFunction:
        """Return its settings as the physical function has them."""
        found = [one for one in host.virtual_functions(self.physical.index) if one.number == self.number]
        if not found:
            raise CniError(Code.INTERNAL, f"{self} is not told by the kernel", "were its functions just made anew?")
        return found[0]


@dataclass(frozen=True)
class Before:
    """The original state of a function; *name* "" for one without an interface, *mtu* 0 when unknown."""

    function: VirtualFunction
    name: str = ""
    mac: str = ""
    mtu: int = 0
    alias: str = ""
    altnames: tuple[str, ...] = ()
    up: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as plain objects."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Before":
        """Read what `to_json` wrote."""
        settings = dict(body["function"])
        function = VirtualFunction(**{**settings, "vlan": tuple(settings["vlan"]), "rates": tuple(settings["rates"])})
        return cls(**{**body, "function": function, "altnames": tuple(body["altnames"])})


def find(host: Netlink, bus: Bus, address: str) -> Function:
    """Return the virtual function with a PCI address; code 7 says what the device is instead."""
    if not bus.exists(address):
        raise _invalid_device(f"there is no PCI device {address}", "was it removed, or its port's functions made anew?")
    place = bus.place(address)
    if place is None:
        raise _invalid_device(f"PCI device {address} is no virtual function", "name the address of one in 'deviceID'")
    names = bus.interfaces(place.physical)
    physical = next((link for name in names if (link := host.find_link(name))), None)
    if physical is None:
        raise _invalid_device(
            f"the physical function {place.physical} of {address} has no interface", "is its driver loaded?"
        )
    if physical.device != place.physical:
        raise CniError(Code.NOT_AVAILABLE, "this kernel does not tell an interface's device", "Linux 5.14 does")
    return Function(address, bus.driver(address), physical, bus.driver(place.physical), place.number)


def read(host: Netlink, function: Function, link: Link | None) -> Before:
    """Return the current state of a function and of its interface in the host's namespace."""
    now = function.now(host)
    if link is None:
        return Before(now)
    return Before(now, link.name, link.mac, link.mtu, link.alias, link.altnames, link.up)


def change(host: Netlink, function: Function, wanted: Mapping[str, Any]) -> None:
    """Set the attributes that differ from *wanted*, and no others."""
    now = function.now(host)
    for attribute in ATTRIBUTES:
        value = wanted.get(attribute)
        if value is not None and value != getattr(now, attribute):
            _set(host, function, attribute, value)


def set_mac(host: Netlink, function: Function, link: Link | None, mac: str) -> None:
    """Set the hardware address of a function on both sides; *link* is its interface, down in the host's namespace."""
    # The function side first: once the physical side has set one, many NICs refuse changes by untrusted functions.
    if link:
        _try_own_mac(host, link, mac)
    change(host, function, {"mac": mac})
    if link:
        _ensure_mac(host, function, link, mac)


def move(host: Netlink, function: Function, link: Link, netns: str) -> None:
    """Move an interface into a namespace under its temporary name, without its alternative names."""
    for name in link.altnames:
        host.delete_altname(link.index, name)
    # Renamed and moved in one request: its name may exist in the other namespace.
    host.set_link(link.index, up=False)
    host.set_link(link.index, name=function.temporary_name, netns=netns)


def restore(host: Netlink, bus: Bus, address: str, before: Before, netns: str) -> None:
    """Move a function's interface back to the host and restore its original state; only what differs is changed.

    *netns* is where the interface was moved. A device that does not exist is success. All steps run before an error is
    raised.
    """
    if not bus.exists(address):
        return
    function = find(host, bus, address)
    link = _move_to_host(host, bus, function, netns) if before.name else None
    steps: list[Callable[[], None]] = []
    if link:
        if link.up:
            host.set_link(link.index, up=False)
        steps += [partial(_restore_macs, host, function, link, before), partial(_restore_link, host, link, before)]
    else:
        steps.append(lambda: change(host, function, {"mac": before.function.mac}))
    attributes = [attribute for attribute in ATTRIBUTES if attribute != "mac"]
    steps += [partial(change, host, function, {one: getattr(before.function, one)}) for one in attributes]
    if link:
        steps += [
            partial(_restore_names, host, function, link, before),
            partial(host.set_link, link.index, up=before.up, alias=before.alias),
        ]
    run_all(f"give back {function}", *steps)


def _invalid_device(why: str, details: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, why, details)


def _set(host: Netlink, function: Function, attribute: str, value: Any) -> None:
    try:
        host.set_virtual_function(function.physical.index, function.number, attribute, value)
    except NetlinkError as error:
        raise CniError(
            _CODES.get(error.errno, Code.INTERNAL),
            f"{function} refuses {_WORDS[attribute](value)}: {error.reason}",
            f"its driver {function.physical_driver} does not take it: leave the key out, or ask for less",
        ) from error


def _try_own_mac(host: Netlink, link: Link, mac: str) -> None:
    with suppress(NetlinkError):  # it is seen in what the interface has afterwards
        host.set_link(link.index, mac=mac)


def _ensure_mac(host: Netlink, function: Function, link: Link, mac: str) -> None:
    """Make sure that the interface has the address of its physical side; some drivers read it when it is set up."""
    if host.link(link.index).mac == mac:
        return
    _try_own_mac(host, link, mac)
    if host.link(link.index).mac != mac:
        host.set_link(link.index, up=True)
        host.set_link(link.index, up=False)
    if (held := host.link(link.index).mac) != mac:
        raise CniError(
            Code.INTERNAL, f"{function} keeps the hardware address {held}, not {mac}", "set trust, or no mac"
        )


# --- giving back -----------------------------------------------------------------------------------------------------


def _move_to_host(host: Netlink, bus: Bus, function: Function, netns: str) -> Link | None:
    """Return the function's interface, moved back from *netns* when it is there; None when it has none."""
    if link := host.device(function.address):
        return link
    if netns:
        with suppress(NoNamespace), netlink.open(netns) as inside:
            if link := inside.device(function.address):
                inside.set_link(link.index, up=False)
                inside.set_link(link.index, name=function.temporary_name, netns=_HOST_NAMESPACE)
    if bus.driver(function.address) in (*PROGRAM_DRIVERS, ""):
        return None
    if link := host.await_device(function.address, _RETURN_SECONDS):
        return link
    raise CniError(
        Code.TRY_AGAIN,
        f"the interface of {function} did not come home from {netns or 'its namespace'}",
        "something still holds the namespace: a process, or a file that it is mounted on",
    )


def _restore_macs(host: Netlink, function: Function, link: Link, before: Before) -> None:
    """Restore the hardware addresses of both sides."""
    if before.function.mac == NO_MAC:  # then the function may set its own address
        change(host, function, {"mac": NO_MAC})
    if host.link(link.index).mac != before.mac:
        _try_own_mac(host, link, before.mac)
    change(host, function, {"mac": before.function.mac})
    _ensure_mac(host, function, link, before.mac)


def _restore_link(host: Netlink, link: Link, before: Before) -> None:
    if before.mtu not in (0, host.link(link.index).mtu):
        host.set_link(link.index, mtu=before.mtu)


def _restore_names(host: Netlink, function: Function, link: Link, before: Before) -> None:
    """Restore an interface's name, or use the temporary one when it is in use, and its alternative names."""
    for name in (before.name, function.temporary_name):
        if host.link(link.index).name == name:
            break
        try:
            host.set_link(link.index, name=name)
            break
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            log.warning("%s cannot be %s again, another interface has this name now", function, name)
    for name in set(before.altnames) - set(host.link(link.index).altnames):
        try:
            host.add_altname(link.index, name)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            log.warning("%s cannot be called %s again, another interface has this name now", function, name)
