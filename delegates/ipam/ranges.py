# SPDX-License-Identifier: Apache-2.0
"""Ranges of addresses, and the order in which addresses are tried. No file is read here."""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multus_py.cni.addresses import read_address, read_cidr
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.cni.result import DNS, Address, Cidr, InvalidResult, Network, Route
from multus_py.cni.result import read as read_result


@dataclass(frozen=True)
class Range:
    """Addresses *start* to *end*, both included, of a subnet; the gateway's own is never assigned."""

    subnet: Network
    start: Address
    end: Address
    gateway: Address

    def holds(self, address: Address) -> bool:
        """Tell whether *address* is one of the range."""
        return address.version == self.subnet.version and int(self.start) <= int(address) <= int(self.end)

    def overlaps(self, other: "Range") -> bool:
        """Tell whether the two have an address in common."""
        same = self.subnet.version == other.subnet.version
        return same and int(self.start) <= int(other.end) and int(other.start) <= int(self.end)

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


RangeSet = tuple[Range, ...]  # one address is taken from each set


@dataclass(frozen=True)
class Candidate:
    """An address that may be free, with the prefix of its subnet, and its gateway."""

    address: Cidr
    gateway: Address


def address(text: str, what: str) -> Address:
    """Read an address; an IPv4-mapped one (`::ffff:192.0.2.1`) is an IPv4 address, as in Go."""
    try:
        read_range = read_address(text)
    except ValueError as cause:
        raise CniError(Code.INVALID_CONFIG, f"{what}: cannot understand ip {text!r:.80}", "an address") from cause
    return _plain(read_range)


def cidr(text: str, what: str) -> Cidr:
    """Read an address with its prefix length."""
    try:
        read_range = read_cidr(text)
    except ValueError as cause:
        raise CniError(
            Code.INVALID_CONFIG, f"{what}: {text!r:.80} is not in CIDR notation", "an address and its prefix length"
        ) from cause
    if read_range.version == 6 and read_range.network.prefixlen >= 96 and (mapped := read_range.ip.ipv4_mapped):
        return ipaddress.ip_interface((mapped, read_range.network.prefixlen - 96))
    return read_range


def routes_and_dns(ipam: Fields) -> tuple[tuple[Route, ...], DNS]:
    """Return the routes and DNS settings of an `ipam` object; code 7 says which key is wrong."""
    try:
        result = read_result({"routes": ipam.get("routes"), "dns": ipam.get("dns")}, "1.1.0")
    except InvalidResult as cause:
        raise CniError(
            Code.INVALID_CONFIG, f"{ipam.where}: {cause.why}", 'a route is as {"dst": "10.1.0.0/16", "gw": "10.9.0.1"}'
        ) from cause
    return result.routes, result.dns


def read_range(body: Mapping[str, Any], where: str) -> Range:
    """Read one range; code 7 says what is wrong with it. The gateway is the first address unless it is named."""
    fields = Fields(body, where)
    subnet = _subnet(fields, where)
    first = _plain(subnet.network_address + 1)
    # The last address of an IPv4 subnet is its broadcast address.
    last = subnet.broadcast_address - 1 if subnet.version == 4 else subnet.broadcast_address
    found = Range(
        subnet=subnet,
        start=_edge(fields, "rangeStart", first),
        end=_edge(fields, "rangeEnd", last),
        gateway=_edge(fields, "gateway", first),
    )
    for key, edge in (("RangeStart", found.start), ("RangeEnd", found.end)):
        if edge not in subnet:
            raise _refused(where, f"{key} {edge} not in network {subnet}")
    if int(found.end) < int(found.start):
        raise _refused(where, f"RangeEnd {found.end} is before RangeStart {found.start}")
    return found


def read_set(items: Sequence[Mapping[str, Any]], where: str) -> RangeSet:
    """Read a set of ranges: of one family, without overlap."""
    if not items:
        raise _refused(where, "empty range set")
    found = tuple(read_range(item, f"{where}[{n}]") for n, item in enumerate(items))
    if len({part.subnet.version for part in found}) > 1:
        raise _refused(where, "mixed address families")
    for n, part in enumerate(found):
        for other in found[n + 1 :]:
            if part.overlaps(other):
                raise _refused(where, f"subnets {part} and {other} overlap")
    return found


def refuse_overlap(sets: Sequence[RangeSet]) -> None:
    """Raise when an address is in two sets."""
    for n, one in enumerate(sets):
        for m, other in enumerate(sets[n + 1 :], n + 1):
            if any(part.overlaps(another) for part in one for another in other):
                raise _refused("host-local", f"range set {n} overlaps with {m}")


def holder(ranges: RangeSet, wanted: Address) -> Range | None:
    """Return the range that holds *wanted*."""
    return next((part for part in ranges if part.holds(wanted)), None)


def candidates(ranges: RangeSet, last: Address | None) -> Iterator[Candidate]:
    """Yield every address of the set once, starting after *last* and wrapping around; the gateways' are left out."""
    at = next((n for n, part in enumerate(ranges) if last and part.holds(last)), None)
    if at is None or last is None:
        spans = [(part, int(part.start), int(part.end)) for part in ranges]
    else:
        rest = [*ranges[at + 1 :], *ranges[:at]]
        spans = [
            (ranges[at], int(last) + 1, int(ranges[at].end)),
            *((part, int(part.start), int(part.end)) for part in rest),
            (ranges[at], int(ranges[at].start), int(last)),
        ]
    for part, first, final in spans:
        kind = type(part.start)
        for number in range(first, final + 1):
            if number != int(part.gateway):
                yield candidate(part, kind(number))


def candidate(part: Range, wanted: Address) -> Candidate:
    """Return *wanted* as an address of the range *part*."""
    return Candidate(ipaddress.ip_interface((wanted, part.subnet.prefixlen)), part.gateway)


def _plain(read_range: Address) -> Address:
    return read_range.ipv4_mapped or read_range if isinstance(read_range, ipaddress.IPv6Address) else read_range


def _subnet(fields: Fields, where: str) -> Network:
    text = fields.text("subnet")
    if not text:
        raise _refused(where, "has no 'subnet'")
    given = cidr(text, f"{where}: subnet")
    if given.ip != given.network.network_address:
        raise _refused(
            where,
            f"Network has host bits set. For a subnet mask of length {given.network.prefixlen} "
            f"the network address is {given.network.network_address}",
        )
    if given.network.prefixlen > given.network.max_prefixlen - 2:
        raise _refused(where, f"Network {given.network} too small to allocate from")
    return given.network


def _edge(fields: Fields, key: str, default: Address) -> Address:
    text = fields.text(key)
    return address(text, f"{fields.where}: {key}") if text else default


def _refused(where: str, why: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"{where}: {why}", "see 'ranges' of host-local")
