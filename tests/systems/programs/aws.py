# SPDX-License-Identifier: Apache-2.0
"""aws-cni and egress-cni: numbers as strings, state inside the result, which DEL must get back as it was."""

import contextlib
import json
import sys
from pathlib import Path

from datastore import kept, lease, release
from executable import VERSIONS, Call, Refused, Role, digest, execute, main
from interfaces import by_link_local, ip, remove, veth
from results import address, result

_IPAMD = Path("/var/run/aws-node/ipamd.sock")
_OLD = "1.5"


def _typed(call: Call) -> None:
    """Refuse a config whose strings became something else."""
    keys = ("vethPrefix",) if call.settings.get("release") == _OLD else ("vethPrefix", "mtu", "podSGEnforcingMode")
    for key in keys:
        call.wanted(key, str)


def _key(call: Call) -> str:
    """Return the key of ipamd: network, container and interface."""
    return f"{call.config['name']}:{call.container}:{call.ifname}"


def _annotations(call: Call) -> dict[str, str]:
    return call.config.get("runtimeConfig", {}).get("io.kubernetes.cri.pod-annotations", {})


def add(call: Call) -> object:
    """Attach: table, VLAN and card number travel in the result's `mac` and `sandbox`."""
    _typed(call)
    if call.settings.get("release") == _OLD and call.version > "0.3.1":
        raise Refused(f"incompatible CNI versions; config is {call.version}", 1)
    if not call.args.get("K8S_POD_INFRA_CONTAINER_ID"):
        raise Refused("CNI_ARGS lacks K8S_POD_INFRA_CONTAINER_ID")
    if not _IPAMD.exists():
        raise Refused("failed to connect to ipamd")
    name = digest(call.pod)
    cidr = lease("aws-ipamd", _key(call), (f"192.168.42.{n}/32" for n in range(17, 250)))
    branch = bool(call.settings.get("branch-eni"))
    host = f"vlan{name}" if branch else f"{call.config['vethPrefix']}{name}"
    try:
        veth(call, host, *by_link_local(cidr))
    except Refused as refused:
        release("aws-ipamd", _key(call))
        with contextlib.suppress(Refused):
            ip("link", "del", call.ifname, netns=call.netns)
        raise Refused(f"add cmd: failed to setup network: failed to add default route: {refused}") from refused
    interfaces = [{"name": host}, {"name": call.ifname, "mac": "7" if branch else "254", "sandbox": call.netns}]
    ips = [address(call, cidr, "192.168.32.1" if branch else "", 1)]
    if "k8s.amazonaws.com/nicConfig" in _annotations(call):
        interfaces += _second_card(call)
        ips.append(address(call, "192.168.77.9/32", "", 3))
    if call.settings.get("release") != _OLD:
        dummy = {"name": f"dummy{name}", "mac": "7" if branch else "0"}
        interfaces.append(dummy if branch else {**dummy, "sandbox": "0"})
    said = result(call, interfaces=interfaces, ips=ips)
    (kept("aws-results") / _key(call)).write_text(json.dumps(said["interfaces"], sort_keys=True))
    return said


def _second_card(call: Call) -> list[dict[str, str]]:
    host = f"eni{digest(call.pod + '.1')}"
    ip("link", "add", host, "type", "veth", "peer", "name", "mNicIf1", "netns", Path(call.netns).name)
    lines = "link set mNicIf1 up\naddr add 192.168.77.9/32 dev mNicIf1"
    ip("-batch", "-", netns=call.netns, lines=lines)
    return [{"name": host}, {"name": "mNicIf1", "mac": "10101", "sandbox": call.netns}]


def delete(call: Call) -> None:
    """Tear down by the result of ADD; the rules of a pod whose result was lost or tidied stay behind."""
    _typed(call)
    said = kept("aws-results") / _key(call)
    if not said.exists():
        return
    if call.version >= "0.4.0":
        previous = (call.previous or {}).get("interfaces", [])
        mine = json.loads(said.read_text())
        if [item for item in previous if item in mine] != mine:
            raise Refused(f"prevResult is not what ADD said: {previous}")
    said.unlink()
    remove(call, f"{call.config['vethPrefix']}{digest(call.pod)}")
    with contextlib.suppress(Refused):
        ip("link", "del", f"eni{digest(call.pod + '.1')}")
    if _IPAMD.exists():
        release("aws-ipamd", _key(call))


def _egress(call: Call) -> dict | None:
    """Return the config for the IPAM when egress is on; refuse a config whose strings became something else."""
    for key in ("mtu", "enabled", "nodeIP", "randomizeSNAT"):
        call.wanted(key, str)
    call.wanted("ipam", dict)
    return call.config if call.config["enabled"] == "true" else None


def egress_add(call: Call) -> object:
    """Give the pod an address of the other family if that is on; hand on the result."""
    if call.previous is None:
        raise Refused("must be called as a chained plugin")
    if config := _egress(call):
        given = execute(call, config["ipam"]["type"], config)["ips"][0]["address"]
        ip("link", "add", f"veth{digest(call.pod)}", "type", "veth", "peer", "name", "v4if0", "netns",
           Path(call.netns).name)  # fmt: skip
        ip("-batch", "-", netns=call.netns, lines=f"link set v4if0 up\naddr add {given} dev v4if0")
    return call.previous


def egress_delete(call: Call) -> None:
    """Take back what egress gave."""
    if config := _egress(call):
        execute(call, config["ipam"]["type"], config)
        with contextlib.suppress(Refused):
            ip("link", "del", f"veth{digest(call.pod)}")


def other_name(name: str) -> int:
    """These are two programs; neither looks at its name."""
    sys.stderr.write(f"unexpected: installed as {name}")
    return 1


def nothing(call: Call) -> None:
    """CHECK asks nothing."""


_EGRESS = Role({"ADD": egress_add, "DEL": egress_delete, "CHECK": nothing}, VERSIONS)
main({"aws-cni": Role({"ADD": add, "DEL": delete, "CHECK": nothing}, VERSIONS), "egress-cni": _EGRESS}, other_name)
