# SPDX-License-Identifier: Apache-2.0
"""Addresses and networks from their texts, read once: an ADD meets the same few a dozen times, a node for every pod.

What is remembered is bounded in number and size: the texts are those of users, and a zone (`fe80::1%...`) may be long.
"""

import ipaddress
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TypeVar

T = TypeVar("T")
_REMEMBERED = 1024
_LONGEST = 64  # characters: an IPv6 address in full, a prefix length, a zone as long as an interface's name


def _remembered(read: Callable[[str], T]) -> Callable[[str], T]:
    known = lru_cache(_REMEMBERED)(read)
    return lambda text: known(text) if len(text) <= _LONGEST else read(text)


read_address = _remembered(ipaddress.ip_address)
read_interface = _remembered(ipaddress.ip_interface)
read_network = _remembered(partial(ipaddress.ip_network, strict=False))
