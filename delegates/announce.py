# SPDX-License-Identifier: Apache-2.0
"""Announce addresses of a new interface on the link: gratuitous ARP (RFC 5227), unsolicited NA (RFC 4861)."""

import ipaddress
import socket
import struct
from collections.abc import Iterable

_BROADCAST = b"\xff" * 6
_ALL_NODES = ipaddress.IPv6Address("ff02::1").packed
_ALL_NODES_MAC = bytes.fromhex("333300000001")


def announce(ifname: str, mac: str, addresses: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    """Send one frame per address from the interface *ifname* of the calling thread's namespace; OSError when it cannot.

    Switches learn the port of the hardware address, neighbours update their tables.
    """
    own = bytes.fromhex(mac.replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as wire:
        wire.bind((ifname, 0))
        for address in addresses:
            wire.send(arp(own, address) if address.version == 4 else advertisement(own, address))


def arp(mac: bytes, address: ipaddress.IPv4Address) -> bytes:
    """Return an ARP announcement: a request with the address as sender and target (RFC 5227, 2.3)."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address.packed + bytes(6) + address.packed
    return (_BROADCAST + mac + struct.pack("!H", 0x0806) + body).ljust(60, b"\0")


def advertisement(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """Return a neighbour advertisement to all nodes with the override flag (RFC 4861, 4.4 and 7.2.6)."""
    flags = struct.pack("!I", 0x20000000)
    option = struct.pack("!BB", 2, 1) + mac
    body = flags + address.packed + option
    length = 4 + len(body)
    pseudo = address.packed + _ALL_NODES + struct.pack("!II", length, 58)
    checksum = _checksum(pseudo + struct.pack("!BBH", 136, 0, 0) + body)
    header = struct.pack("!IHBB", 0x60000000, length, 58, 255) + address.packed + _ALL_NODES
    return _ALL_NODES_MAC + mac + struct.pack("!H", 0x86DD) + header + struct.pack("!BBH", 136, 0, checksum) + body


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
