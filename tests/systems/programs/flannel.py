# SPDX-License-Identifier: Apache-2.0
"""flannel: makes a bridge config of subnet.env and the `delegate` key, and keeps it by container id alone."""

import json
import sys
from pathlib import Path

from executable import Call, Refused, Role, execute, main


def _subnet(call: Call) -> dict[str, str]:
    path = Path(call.config.get("subnetFile") or "/run/flannel/subnet.env")
    try:
        lines = path.read_text().split()
    except OSError as cause:
        raise Refused(f"loadFlannelSubnetEnv failed: open {path}: no such file or directory") from cause
    return dict(line.split("=", 1) for line in lines)


def _scratch(call: Call) -> Path:
    return Path(call.config.get("dataDir") or "/var/lib/cni/flannel") / call.container


def add(call: Call) -> object:
    """Run the delegate with name, version, ipam, runtimeConfig and what `delegate` says: nothing else reaches it."""
    subnet = _subnet(call)
    wanted = dict(call.wanted("delegate", dict))
    if strange := {"name", "ipam"} & set(wanted):
        raise Refused(f"'delegate' dictionary must not have {sorted(strange)}")
    config = {
        "name": call.config["name"],
        "type": "bridge",
        "isGateway": True,
        "ipMasq": subnet["FLANNEL_IPMASQ"] != "true",
        "mtu": int(subnet["FLANNEL_MTU"]),
        **wanted,
        "cniVersion": call.version,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": f"{subnet['FLANNEL_SUBNET'].rpartition('.')[0]}.0/24"}]],
            "routes": [{"dst": subnet["FLANNEL_NETWORK"]}],
        },
    }
    if "runtimeConfig" in call.config:
        config["runtimeConfig"] = call.config["runtimeConfig"]
    sys.stderr.write(f"map[string]interface {{}}{{{json.dumps(config)}}}\n")
    _scratch(call).parent.mkdir(parents=True, exist_ok=True)
    _scratch(call).write_text(json.dumps(config))
    return execute(call, config["type"], config)


def delete(call: Call) -> None:
    """Undo by the scratch file, which goes first; without one nothing is undone and all is well."""
    try:
        config = json.loads(_scratch(call).read_text())
    except FileNotFoundError:
        return
    _scratch(call).unlink()
    if "prevResult" in call.config:
        config["prevResult"] = call.config["prevResult"]
    execute(call, config["type"], config)


def other_name(name: str) -> int:
    """It does not look at its name."""
    sys.stderr.write(f"unexpected: installed as {name}")
    return 1


main({"flannel": Role({"ADD": add, "DEL": delete, "CHECK": lambda call: None})}, other_name)
