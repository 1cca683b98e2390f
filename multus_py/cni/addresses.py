# SPDX-License-Identifier: Apache-2.0
"""Addresses and networks from their texts, read once: an ADD meets the same few a dozen times, a node for every pod.

What is remembered is bounded in number and size: the texts are those of users, and a zone (`fe80::1%...`) may be long.
"""

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
_REMEMBERED = 1024
_LONGEST = 64  # characters: an IPv6 address in full, a prefix length


def _remembered(read: Callable[[str], T]) -> Callable[[str], T]:
    known = lru_cache(_REMEMBERED)(read)
    return lambda text: known(text) if len(text) <= _LONGEST else read(text)


@_remembered
def read_cidr(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """Read `<address>/<length>` as Go's net.ParseCIDR does; `ValueError` for a bare address, a netmask or a zone.

    All that others read in Go is held to it: a network without its length would be one host here and nothing there.
    """
    address, _, length = text.partition("/")
    if "%" in address or not length.isdigit():
        raise ValueError(f"{text!r:.80} is not in CIDR notation")
    return ipaddress.ip_interface(text)


@_remembered
def read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address as Go's net.ParseIP does; `ValueError` for one with a zone."""
    if "%" in text:
        raise ValueError(f"{text!r:.80} has a zone")
    return ipaddress.ip_address(text)
