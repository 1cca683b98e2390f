# SPDX-License-Identifier: Apache-2.0
"""Formats of texts in configs and annotations: the test of each, and its name in messages."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from multus_py.cni import names

_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")
# As the API server checks the names of extended resources: a domain, then a name.
_RESOURCE = re.compile(r"[^/]+/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")


class Format(NamedTuple):
    """One form: *accepts* tests a text, *noun* and *example* are for messages."""

    accepts: Callable[[str], bool]
    noun: str
    example: str


def is_address(text: str) -> bool:
    """Return whether *text* is an IP address without a prefix length."""
    return "/" not in text and is_address_or_cidr(text)


def is_address_or_cidr(text: str) -> bool:
    """Return whether *text* is an IP address, with or without a prefix length.

    A netmask ("10.0.0.1/255.0.0.0") or a zone ("fe80::1%eth0") is refused: plugins do not read them.
    """
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return "%" not in text and text.partition("/")[2].isdigit() == ("/" in text)


def is_resource(text: str) -> bool:
    """Return whether *text* is the name of an extended resource, `<domain>/<name>`."""
    return bool(_RESOURCE.match(text)) and names.is_subdomain(text.partition("/")[0])


def is_claim(text: str) -> bool:
    """Return whether *text* names a resource claim of a pod: `<claim>` or `<claim>/<request>`."""
    claim, slash, request = text.partition("/")
    return names.is_subdomain(claim) and names.is_label(request) == bool(slash)


FORMATS: Mapping[str, Format] = {
    "ip": Format(is_address, "an IP address", "10.1.2.3"),
    "ip-or-cidr": Format(is_address_or_cidr, "an IP address", "10.1.2.3/24"),
    "cidr": Format(
        lambda text: "/" in text and is_address_or_cidr(text),
        "a network with its prefix length",
        "10.1.0.0/16 (0.0.0.0/0 is everything)",
    ),
    "mac": Format(names.is_mac, "a hardware address of 6 bytes, or of 20 (InfiniBand)", "02:00:00:00:00:01"),
    "guid": Format(names.is_guid, "an InfiniBand GUID of 8 bytes", "11:22:33:44:55:66:77:88"),
    "label": Format(names.is_label, "a DNS label", "team-a"),
    "subdomain": Format(names.is_subdomain, "the name of an object", "net-a"),
    "interface": Format(lambda text: not names.interface_problem(text), "an interface name", "net1 (at most 15 bytes)"),
    "network": Format(lambda text: bool(_IDENTIFIER.match(text)), "the name of a network", "net-a"),
    "plugin-type": Format(
        lambda text: bool(_IDENTIFIER.match(text)) or text.startswith("_"), "the file name of a plugin", "bridge"
    ),
    "device-id": Format(lambda text: "/" not in text and ".." not in text, "a device id", "0000:01:00.1"),
    "resource": Format(is_resource, "the name of a resource", "intel.com/sriov_a"),
    "claim": Format(is_claim, "a claim", "vf or vf/request-name"),
}
