# SPDX-License-Identifier: Apache-2.0
"""istio-cni: the last of a chain; it writes rules into the pod and hands on the result."""

import sys

from executable import Call, Refused, Role, main
from interfaces import links


def add(call: Call) -> object:
    """Look for the interface that the chain made."""
    if call.previous is None:
        raise Refused("istio-cni must be called as a chained plugin")
    if not any(link["ifname"] == call.ifname for link in links(call.netns)):
        raise Refused(f"no interface {call.ifname}")
    return call.previous


def other_name(name: str) -> int:
    """It does not look at its name."""
    sys.stderr.write(f"unexpected: installed as {name}")
    return 1


main({"istio-cni": Role({"ADD": add, "DEL": lambda call: None, "CHECK": lambda call: None})}, other_name)
