# SPDX-License-Identifier: Apache-2.0
"""calico and calico-ipam: one program of two names, one veth a pod, an IPAM of its own or host-local."""

import contextlib
import sys
from pathlib import Path

from datastore import lease, release
from executable import VERSIONS, Call, Refused, Role, digest, execute, main
from interfaces import by_link_local, ip, mac, remove, veth
from results import address, result

_NODENAME = Path("/var/lib/calico/nodename")
_POD_RANGE = "10.244.1.0/24"


def _configured(call: Call) -> None:
    """Read what both ADD and DEL need: a config without it leaks every address."""
    if call.wanted("datastore_type", str) != "kubernetes":
        raise Refused("unknown datastore type")
    kubeconfig = Path(call.wanted("kubernetes", dict).get("kubeconfig", ""))
    if not kubeconfig.is_file():
        raise Refused(f"error loading the kubeconfig {str(kubeconfig)!r}")
    call.wanted("policy", dict)
    call.wanted("mtu", int)
    if not call.config.get("nodename_file_optional") and not _NODENAME.exists():
        raise Refused(f"stat {_NODENAME}: no such file or directory: check that the calico/node container is running")


def _ipam(call: Call) -> dict:
    """Return the config for the IPAM plugin: `usePodCidr` becomes the node's range."""
    ipam = dict(call.wanted("ipam", dict))
    if ipam.get("subnet") == "usePodCidr":
        ipam["subnet"] = _POD_RANGE
    if "ranges" in ipam:
        ipam["ranges"] = [
            [{**one, "subnet": _POD_RANGE} if one["subnet"] == "usePodCidr" else one for one in several]
            for several in ipam["ranges"]
        ]
    return {**call.config, "ipam": ipam}


def _host(call: Call) -> str:
    return f"cali{digest(call.pod)}"


def add(call: Call) -> object:
    """Attach: a veth that is there under the pod's name is replaced, whichever interface it belonged to."""
    _configured(call)
    given = execute(call, call.config["ipam"]["type"], _ipam(call))
    own = [one["address"].partition("/")[0] + ("/128" if ":" in one["address"] else "/32") for one in given["ips"]]
    host = _host(call)
    with contextlib.suppress(Refused):
        ip("link", "del", host)
    veth(call, host, *by_link_local(*own))
    release = call.settings.get("release", "3.32")
    if release < "3.31":
        return result(call, interfaces=[{"name": host}], ips=[address(call, cidr) for cidr in own])
    inside = {"name": call.ifname, "mac": mac(call.ifname, call.netns), "sandbox": call.netns}
    inside |= {"mtu": 1450} if call.version >= "1.0.0" else {}
    pool = call.config["ipam"]["type"] == "calico-ipam"
    routes = [{"dst": cidr} for cidr in own] if pool and release >= "3.32" else []
    return result(call, interfaces=[{"name": host}, inside], ips=[address(call, cidr, "", 1) for cidr in own],
                  routes=routes)  # fmt: skip


def delete(call: Call) -> None:
    """Release the address, then the veth; both by a config as complete as that of ADD."""
    _configured(call)
    execute(call, call.config["ipam"]["type"], _ipam(call))
    remove(call, _host(call))


def check(call: Call) -> str:
    """Say that all is well, in words that are no JSON."""
    _configured(call)
    return "OK"


def ipam_add(call: Call) -> object:
    """Assign one address of each wanted family to the handle, which is network and container."""
    ipam = call.config["ipam"]
    for key in ("assign_ipv4", "assign_ipv6"):
        if not isinstance(ipam.get(key, ""), str):
            raise Refused(f"json: cannot unmarshal {ipam[key]!r} into field {key} of type string", 6)
    handle = f"{call.config['name']}.{call.container}"
    cidrs = [lease("calico-ipam", handle, (f"192.168.171.{n}/32" for n in range(130, 250)))]
    if call.settings.get("dual-stack"):
        cidrs.append(lease("calico-ipam6", handle, (f"fd10:244::c4{n:02x}/128" for n in range(130, 250))))
    return result(call, ips=[address(call, cidr) for cidr in cidrs])


def ipam_delete(call: Call) -> None:
    """Release all addresses of the handle."""
    for pool in ("calico-ipam", "calico-ipam6"):
        release(pool, f"{call.config['name']}.{call.container}")


def other_name(name: str) -> int:
    """End as a Go program that met what it did not expect."""
    sys.stderr.write(f"panic: Unknown binary name: {name}\n")
    return 2


main({"calico": Role({"ADD": add, "DEL": delete, "CHECK": check}, VERSIONS[:6]),
      "calico-ipam": Role({"ADD": ipam_add, "DEL": ipam_delete}, VERSIONS[:6])}, other_name)  # fmt: skip
