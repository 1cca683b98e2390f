# SPDX-License-Identifier: Apache-2.0
"""Parse addresses and networks, with a cache: one ADD parses the same few a dozen times.

The cache is bounded in number and size, because the texts come from users, and a zone (`fe80::1%...`) may be long.
"""

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
_CACHE_SIZE = 1024
_LONGEST = 64  # characters: an IPv6 address in full, a prefix length


def _cached(read: Callable[[str], T]) -> Callable[[str], T]:
    cached = lru_cache(_CACHE_SIZE)(read)
    return lambda text: cached(text) if len(text) <= _LONGEST else read(text)


@_cached
def read_cidr(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """Read `<address>/<length>` as Go's net.ParseCIDR does; `ValueError` for a bare address, a netmask or a zone.

    Stricter than `ipaddress`, as plugins in Go are: they refuse a network without its length, which would be one host
    here.
    """
    address, _, length = text.partition("/")
    if "%" in address or not length.isdigit():
        raise ValueError(f"{text!r:.80} is not in CIDR notation")
    return ipaddress.ip_interface(text)


@_cached
def read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address as Go's net.ParseIP does; `ValueError` for one with a zone."""
    if "%" in text:
        raise ValueError(f"{text!r:.80} has a zone")
    return ipaddress.ip_address(text)
