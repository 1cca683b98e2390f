# SPDX-License-Identifier: Apache-2.0
"""Links as the scripted executables make and remove them: by iproute2, on the node and in the pod."""

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from executable import Call, Refused


def ip(*words: str, netns: str = "", lines: str = "") -> str:
    """Run iproute2, in the namespace *netns* if there is one; what it refuses is refused."""
    inside = ["-n", Path(netns).name] if netns else []
    done = subprocess.run(["ip", *inside, *words], input=lines, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"ip {' '.join(words)} {lines}: {done.stderr.strip()}")
    return done.stdout


def links(netns: str = "") -> list[dict[str, Any]]:
    """Return the links of a namespace in the order of their index."""
    return json.loads(ip("-d", "-j", "link", netns=netns) or "[]")


def veth(call: Call, host: str, *settings: str) -> None:
    """Make a pair, its inner end under the asked name in the pod, and apply *settings* (lines of `ip`) there."""
    ip("link", "add", host, "type", "veth", "peer", "name", call.ifname, "netns", Path(call.netns).name)
    ip("link", "set", host, "up")
    up = [f"link set {call.ifname} up", *(line.replace("IF", call.ifname) for line in settings)]
    ip("-batch", "-", netns=call.netns, lines="\n".join(up))


def by_link_local(*addresses: str) -> list[str]:
    """Return the settings of a pod whose routes all go by 169.254.1.1: Calico, AWS and Azure do so."""
    given = [f"addr add {address} dev IF{' nodad' if ':' in address else ''}" for address in addresses]
    return [*given, "route add 169.254.1.1 dev IF scope link", "route add default via 169.254.1.1 dev IF"]


def remove(call: Call, host: str = "") -> None:
    """Remove the pod's interface, or the pair by its host end; what is gone is gone."""
    with contextlib.suppress(Refused):
        if call.netns:
            ip("link", "del", call.ifname, netns=call.netns)
    with contextlib.suppress(Refused):
        if host:
            ip("link", "del", host)


def mac(name: str, netns: str = "") -> str:
    """Return the hardware address of a link."""
    return next(link["address"] for link in links(netns) if link["ifname"] == name)
