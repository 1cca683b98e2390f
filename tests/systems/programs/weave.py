# SPDX-License-Identifier: Apache-2.0
"""weave-net and weave-ipam: links to a program that is a tool for people under every other name."""

import sys

from datastore import lease, release
from executable import VERSIONS, Call, Refused, Role, execute, main
from interfaces import ip, links, remove, veth
from results import address, result

_GATEWAY = "10.32.0.1"


def add(call: Call) -> object:
    """Attach to the bridge `weave` of the host; the veth is named by the container."""
    if not any(link["ifname"] == "weave" for link in links()):
        raise Refused("there is no bridge weave: is this the host's network?")
    cidr = execute(call, "weave-ipam", call.config)["ip4"]["ip"]
    host = f"vethwepl{call.container[:7]}"
    veth(call, host, f"addr add {cidr} dev IF", f"route add default via {_GATEWAY} dev IF")
    ip("link", "set", host, "master", "weave")
    return result(call, ips=[address(call, cidr, _GATEWAY)])


def delete(call: Call) -> None:
    """Remove the interface and free the container's address."""
    remove(call)
    execute(call, "weave-ipam", call.config)


def ipam_add(call: Call) -> object:
    """Ask the router for the container's address: it has one, however often it is asked."""
    cidr = lease("weave", call.container, (f"10.32.0.{n}/12" for n in range(5, 250)))
    return {"cniVersion": "0.2.0", "ip4": {"ip": cidr, "gateway": _GATEWAY}}


def ipam_delete(call: Call) -> None:
    """Free the container's address, whichever interface is named."""
    release("weave", call.container)


def other_name(name: str) -> int:
    """Print how people use it."""
    sys.stdout.write(f"usage: {name} <command> [<arg>...]\n")
    return 1


_SPOKEN = VERSIONS[:3]
# It says 0.3.1 and does not take it.
_SAYS = {"cniVersion": "0.3.1"}
main({"weave-net": Role({"ADD": add, "DEL": delete}, _SPOKEN, _SAYS),
      "weave-ipam": Role({"ADD": ipam_add, "DEL": ipam_delete}, _SPOKEN, _SAYS)}, other_name)  # fmt: skip
