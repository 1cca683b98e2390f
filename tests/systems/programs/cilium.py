# SPDX-License-Identifier: Apache-2.0
"""cilium-cni: asks an agent, registers endpoints by container id alone, may stand last in another system's chain."""

import json
import sys
import time
from pathlib import Path

from datastore import kept, release
from executable import Call, Refused, Role, digest, execute, main
from interfaces import ip, links, mac, remove, veth
from results import address, result

_RUN = Path("/var/run/cilium")
_AGENT_WAIT = 0.3  # seconds; the real one asks for half a minute
_CHAINED_NAMES = ("generic-veth", "aws-cni", "azure", "flannel")  # network names that mean chaining by themselves
_MTU = 1450


def _agent(call: Call) -> None:
    """Wait for the agent's socket; it opens the pod's namespace by the base name of CNI_NETNS."""
    end = time.monotonic() + _AGENT_WAIT
    while not (_RUN / "cilium.sock").exists():
        if time.monotonic() > end:
            raise Refused("unable to connect to Cilium agent", 50 if call.verb == "STATUS" else 11)
        time.sleep(0.05)
    if call.netns and not (_RUN / "netns" / Path(call.netns).name).exists():
        raise Refused(f"the agent has no namespace {Path(call.netns).name}")


def _chained(call: Call) -> bool:
    mode = call.config.get("chaining-mode")
    if mode:
        return mode != "portmap"
    return call.config["name"] in (*_CHAINED_NAMES, *call.settings.get("chained-names", ()))


def _host(call: Call) -> str:
    return f"lxc{digest(f'{call.container}:{call.ifname}')}"


def _endpoint(call: Call, ifname: str) -> None:
    """Register an endpoint: the agent finds it again by the container id."""
    (kept("cilium-endpoints") / f"{call.container}:{ifname}").write_text(call.pod)


def _endpoints(call: Call) -> list[Path]:
    return [path for path in kept("cilium-endpoints").iterdir() if path.name.startswith(f"{call.container}:")]


def add(call: Call) -> object:
    """Attach alone, or register what the chain before made."""
    _agent(call)
    if call.previous is None:
        return _alone(call)
    if not _chained(call):
        raise Refused(f"prevResult supplied, but not in chaining mode (network {call.config['name']})")
    first = next(
        (link["ifname"] for link in links(call.netns) if link.get("linkinfo", {}).get("info_kind") == "veth"), None
    )
    if first is None:
        raise Refused("no veth found in the namespace")
    _endpoint(call, first)
    return call.previous


def _alone(call: Call) -> object:
    host = _host(call)
    if any(link["ifname"] == call.ifname for link in links(call.netns)):
        ip("link", "del", call.ifname, netns=call.netns)
    families = [6, 4] if call.settings.get("dual-stack") else [4]  # where it has both, IPv6 comes first
    parts = [_leased(call, family) for family in families]
    veth(call, host, *(f"addr add {cidr} dev IF{' nodad' if ':' in cidr else ''}" for cidr, _ in parts))
    for _, gateway in parts:
        _route(call, gateway)
        _route(call, "default", "via", gateway, "mtu", str(_MTU), "onlink")
    _endpoint(call, call.ifname)
    inside = {"mac": mac(call.ifname, call.netns), "name": call.ifname, "sandbox": call.netns}
    routes = [route for cidr, gateway in parts for route in _routes(gateway)]
    return result(call, interfaces=[{"name": host, "mac": mac(host)}, inside], routes=routes,
                  ips=[address(call, cidr, gateway, 1) for cidr, gateway in parts])  # fmt: skip


def _route(call: Call, *words: str) -> None:
    """Add a route; one that is there already stays."""
    family = "-6" if any(":" in word for word in words) else "-4"
    try:
        ip(family, "route", "add", *words, "dev", call.ifname, netns=call.netns)
    except Refused as refused:
        if "File exists" not in str(refused):
            raise


def _routes(gateway: str) -> list[dict[str, object]]:
    bits, anywhere = (128, "::/0") if ":" in gateway else (32, "0.0.0.0/0")
    return [{"dst": f"{gateway}/{bits}"}, {"dst": anywhere, "gw": gateway, "mtu": _MTU}]


def _leased(call: Call, family: int) -> tuple[str, str]:
    if plugin := call.config.get("ipam", {}).get("type"):
        given = execute(call, plugin, call.config)["ips"][0]
        return given["address"].partition("/")[0] + "/32", "10.244.1.23"
    folder = kept(f"cilium-ipv{family}")
    taken = {path.read_text() for path in folder.iterdir()}
    base, bits, gateway = ("10.0.1.{}", 32, "10.0.1.23") if family == 4 else ("fd00::1:{}", 128, "fd00::1:23")
    cidr = next(found for n in range(77, 255) if (found := f"{base.format(n)}/{bits}") not in taken)
    (folder / f"{call.container}:{call.ifname}").write_text(cidr)
    return cidr, gateway


def delete(call: Call) -> None:
    """Delete every endpoint of the container, whichever interface was named; chained, the interface is not ours."""
    if not (_RUN / "cilium.sock").exists():
        (_RUN / "deleteQueue").mkdir(exist_ok=True)
        (_RUN / "deleteQueue" / f"{time.time_ns()}.delete").write_text(json.dumps({"container-id": call.container}))
        return
    if call.config.get("ipam", {}).get("type"):
        execute(call, call.config["ipam"]["type"], call.config)
    for path in _endpoints(call):
        path.unlink(missing_ok=True)
        for family in (4, 6):
            release(f"cilium-ipv{family}", path.name)
    if not _chained(call):
        remove(call, _host(call))


def check(call: Call) -> None:
    """Ask the agent for the endpoint."""
    _agent(call)
    if not _endpoints(call):
        raise Refused(f"no endpoint of container {call.container}", 3)
    if call.previous is None:
        raise Refused("prevResult is required for CHECK")


def other_name(name: str) -> int:
    """It does not look at its name."""
    sys.stderr.write(f"unexpected: installed as {name}")
    return 1


main({"cilium-cni": Role({"ADD": add, "DEL": delete, "CHECK": check, "STATUS": _agent, "GC": lambda call: None})},
     other_name)  # fmt: skip
