# SPDX-License-Identifier: Apache-2.0
"""What iproute2 says of a site, with all that differs from run to run taken out: our own netlink code is no witness."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from namespaces import Site

from multus_py.kernel import namespaces

_RANDOM = re.compile(r"veth[0-9a-f]{8}\Z")
_LINK_KEYS = ("ifname", "flags", "mtu", "qdisc", "operstate", "master", "link_type", "promiscuity", "group")
# Timers, identities and counters of a bridge and its ports.
_VOLATILE = re.compile(
    r".*(timer|_id|_root|designated.*|group_addr|root_port|cost|no|root_id|bridge_id|config_pending|topology.*|state)\Z"
)
_SYSCTLS = {
    "host": {
        "": ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"),
        "{}": ("net/ipv6/conf/{}/accept_ra", "net/ipv4/conf/{}/forwarding"),
    },
    "pod": {
        "": ("net/ipv6/conf/lo/disable_ipv6",),
        "{}": (
            "net/ipv4/conf/{}/arp_notify",
            "net/ipv6/conf/{}/accept_dad",
            "net/ipv6/conf/{}/enhanced_dad",
            "net/ipv6/conf/{}/disable_ipv6",
            "net/ipv6/conf/{}/accept_ra",
            "net/ipv6/conf/{}/ndisc_notify",
            "net/ipv6/conf/{}/keep_addr_on_down",
        ),
    },
}
_ADDRESS_KEYS = ("family", "local", "prefixlen", "broadcast", "scope", "label", "address")
_ROUTE_KEYS = ("type", "dst", "gateway", "dev", "protocol", "scope", "prefsrc", "metric", "flags", "table", "metrics")


def ip(netns: str, *words: str) -> Any:
    """Return what `ip -json` prints in a namespace."""
    done = namespaces.run_in(
        netns, lambda: subprocess.run(["ip", "-d", "-j", *words], capture_output=True, check=True, text=True)
    )
    return json.loads(done.stdout or "[]")


def state(place: Site) -> set[str]:
    """Return all that a plugin may change in both namespaces, as lines: two states differ in what only one has."""
    return {f"{role} {line}" for role in ("host", "pod") for line in _namespace(role, getattr(place, role))}


def reservations(folder: Path) -> dict[str, str]:
    """Return the files of an address pool but for the lock."""
    if not folder.is_dir():
        return {}
    return {file.name: file.read_bytes().decode() for file in folder.iterdir() if file.name != "lock"}


def named(result: dict[str, Any], place: Site) -> dict[str, Any]:
    """Return a result without random names, hardware addresses and paths, which are compared with the kernel first."""
    body: dict[str, Any] = json.loads(json.dumps(result))
    # Go's older structs write an empty dns, newer ones leave it out.
    body = {key: value for key, value in body.items() if value != {}}
    for interface in body.get("interfaces", []):
        where = place.pod if interface.get("sandbox") else place.host
        assert interface.get("sandbox") in (None, place.pod)
        (link,) = ip(where, "link", "show", "dev", interface["name"])
        assert interface["mac"] == link["address"]
        interface.update(name=plain(interface["name"]), mac="", sandbox=bool(interface.get("sandbox")))
    return body


def without_carrier(line: str) -> str:
    """Return a line of `state` without what the kernel notices of a carrier in its own time after a port is gone."""
    return re.sub(r"'(NO-CARRIER|LOWER_UP|linkdown)',? ?|(?<=operstate=)[A-Z]+", "", line).replace(", ]", "]")


def plain(name: str) -> str:
    """Return a name of a link with what is random in it taken out."""
    return _RANDOM.sub("veth*", name)


def _namespace(role: str, netns: str) -> Iterator[str]:
    links = ip(netns, "link")
    for link in links:
        yield from (f"link {plain(link['ifname'])} {key}={value}" for key, value in _link(link).items())
    for link in ip(netns, "addr"):
        yield from (f"address {_address(link, item)}" for item in link["addr_info"])
    yield from (f"route {route}" for route in _routes(netns))
    yield from (f"neighbour {_kept(item, ('dst', 'dev', 'state'))}" for item in _neighbours(netns))
    settings = namespaces.run_in(netns, lambda: _sysctls(role, [link["ifname"] for link in links]))
    yield from (f"sysctl {name}={value}" for name, value in settings.items())


def _link(link: dict[str, Any]) -> dict[str, Any]:
    info = link.get("linkinfo", {})
    body = _kept(link, _LINK_KEYS)
    body["flags"] = sorted(body["flags"])
    body["kind"] = info.get("info_kind", "")
    for part in ("info_data", "info_slave_data"):
        body |= {f"{part}.{key}": value for key, value in info.get(part, {}).items() if not _VOLATILE.match(key)}
    return body


def _address(link: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    if item["local"].startswith("fe80:"):
        return {"dev": plain(link["ifname"]), "local": "link-local"}
    return {"dev": plain(link["ifname"]), **_kept(item, _ADDRESS_KEYS)}


def _routes(netns: str) -> list[dict[str, Any]]:
    told = [*ip(netns, "-4", "route", "show", "table", "all"), *ip(netns, "-6", "route", "show", "table", "all")]
    chosen = [route for route in told if route.get("table") != "local" and not route["dst"].startswith("fe80:")]
    return [_kept(route, _ROUTE_KEYS) for route in chosen]


def _neighbours(netns: str) -> list[dict[str, Any]]:
    return [item for item in ip(netns, "neigh") if "PERMANENT" in item.get("state", [])]


def _kept(body: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: plain(value) if isinstance(value, str) else value for key, value in body.items() if key in keys}


def _sysctls(role: str, links: list[str]) -> dict[str, str | None]:
    names = list(_SYSCTLS[role][""])
    names += [pattern.format(link) for link in links if link != "lo" for pattern in _SYSCTLS[role]["{}"]]
    return {re.sub(r"veth[0-9a-f]{8}", "veth*", name): namespaces.read_sysctl(name) for name in names}
