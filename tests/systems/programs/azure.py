# SPDX-License-Identifier: Apache-2.0
"""azure-vnet and its IPAMs: serial by a lock, keyed by eight characters and the interface, CHECK is another verb."""

import fcntl
import json
import sys
from pathlib import Path

from datastore import lease, release
from executable import VERSIONS, Call, Refused, Role, digest, execute, main
from interfaces import by_link_local, remove, veth
from results import address, result

_STATE = Path("/var/run/azure-vnet.json")
_GATEWAY = "10.241.0.1"


def _locked() -> dict:
    """Take the lock of the node, which this process holds to its end, and read the state."""
    folder = Path("/var/run/azure-vnet")
    folder.mkdir(exist_ok=True)
    global _lock  # noqa: PLW0603  closed by the end of the process
    _lock = (folder / "azure-vnet.lock").open("w")
    fcntl.flock(_lock, fcntl.LOCK_EX)
    return json.loads(_STATE.read_text()) if _STATE.exists() else {}


def _key(call: Call) -> str:
    return f"{call.container[:8]}-{call.ifname}"


def _typed(call: Call) -> None:
    """Refuse what its structures do not take: empty objects and lists must stay what they are."""
    kinds = {"mode": str, "ipsToRouteViaHost": list, "ipam": dict, "dns": dict, "runtimeConfig": dict,
             "windowsSettings": dict, "podNamespaceForDualNetwork": list, "enableExactMatchForPodName": bool,
             "infraVnetAddressSpace": str, "multiTenancy": bool, "executionMode": str}  # fmt: skip
    call.wanted("mode", str)
    call.wanted("ipam", dict)
    for key in kinds.keys() & call.config.keys():
        call.wanted(key, kinds[key])


def add(call: Call) -> object:
    """Attach, with the pod's own route by 169.254.1.1 and another one in the result."""
    _typed(call)
    state = _locked()
    pod = call.pod
    ipam = call.config["ipam"]
    host = f"azv{digest(pod)}"
    if ipam["type"] == "azure-vnet-ipam":
        cidrs = [one["address"] for one in execute(call, "azure-vnet-ipam", call.config)["ips"]]
    else:
        cidrs = _from_cns(call)
    try:
        veth(call, host, *by_link_local(*(cidr.partition("/")[0] for cidr in cidrs)))
    except Refused:
        release("azure-cns", _key(call))
        remove(call)
        raise
    _STATE.write_text(json.dumps({**state, _key(call): {"pod": pod, "host": host, "ips": cidrs}}))
    routes = [{"dst": "0.0.0.0/0", "gw": _GATEWAY}]
    ips = [address(call, cidr, "fd11::1" if ":" in cidr else _GATEWAY) for cidr in cidrs]
    return result(call, interfaces=[{"name": call.ifname}], ips=ips, routes=routes)


def _from_cns(call: Call) -> list[str]:
    """Ask the node's container networking service, by a key that is short."""
    cidrs = [lease("azure-cns", _key(call), (f"10.241.0.{n}/16" for n in range(21, 250)))]
    if call.config["ipam"].get("mode") == "dualStackOverlay":
        cidrs.append(lease("azure-cns6", _key(call), (f"fd11::{n:x}/64" for n in range(21, 250))))
    return cidrs


def delete(call: Call) -> None:
    """Undo by the state file; an attachment that it does not know is gone."""
    _typed(call)
    state = _locked()
    known = state.pop(_key(call), None)
    if known is None:
        return
    if call.config["ipam"]["type"] == "azure-vnet-ipam":
        execute(call, "azure-vnet-ipam", call.config)
    for pool in ("azure-cns", "azure-cns6"):
        release(pool, _key(call))
    remove(call, known["host"])
    _STATE.write_text(json.dumps(state))


def get(call: Call) -> str:
    """Print the state of the attachment in a shape that is no result."""
    return json.dumps({"ContainerInterfaces": _locked().get(_key(call))}) + "\nnot what CHECK means\n"


def ipam_add(call: Call) -> object:
    """Give an address of the pool."""
    cidr = lease("azure-ipam", f"{call.container}:{call.ifname}", (f"10.244.1.{n}/24" for n in range(77, 250)))
    return result(call, ips=[address(call, cidr, "10.244.1.1")])


def ipam_delete(call: Call) -> None:
    """Take it back."""
    release("azure-ipam", f"{call.container}:{call.ifname}")


def nothing(call: Call) -> None:
    """CHECK asks nothing."""


def other_name(name: str) -> int:
    """These are three programs; none looks at its name."""
    sys.stderr.write(f"unexpected: installed as {name}")
    return 1


# It says 1.0.0 and lists less.
_SAYS = {"cniVersion": "1.0.0"}
_IPAM = {"ADD": ipam_add, "DEL": ipam_delete, "CHECK": nothing}
main({"azure-vnet": Role({"ADD": add, "DEL": delete, "CHECK": get}, VERSIONS[:5], _SAYS),
      "azure-vnet-ipam": Role(_IPAM), "azure-ipam": Role(_IPAM)}, other_name)  # fmt: skip
