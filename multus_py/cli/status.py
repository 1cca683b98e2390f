# SPDX-License-Identifier: Apache-2.0
"""`multus-py status`: the attachments on this node, and their differences from what ADD recorded."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from multus_py.cli.table import columns

_EPILOG = """examples:
  multus-py status
  multus-py status default/my-pod --json

The journal is compared with the kernel; nothing is changed. Reading the pods' namespaces needs root.

exit status: 0 no drift; 1 drift, or no such pod; 2 wrong usage"""
_HEADING = ("POD", "INTERFACE", "NETWORK", "ADDRESSES", "MAC", "MTU", "DEVICE", "DRIFT")


def add_parser(commands: Any) -> None:
    """Add `status` to the commands."""
    parser = commands.add_parser(
        "status",
        description="Show the attachments on this node, from the journal, compared with the kernel.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pod", nargs="?", default="", metavar="POD", help="a pod, as NAME or NAMESPACE/NAME")
    parser.add_argument(
        "--cni-dir", type=Path, default=Path("/var/lib/cni/multus"), metavar="DIR", help="the plugin's cniDir"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the attachments; 1 on drift or when the pod is unknown."""
    from multus_py.kernel.pci import Bus
    from multus_py.state.journal import Journal
    from multus_py.state.result_cache import ResultCache
    from multus_py.verbs.attached import Survey

    survey = Survey(Journal(args.cni_dir / "attachments"), ResultCache(args.cni_dir / "results"), Bus())
    sandboxes = [sandbox for sandbox in survey.sandboxes() if _is_selected(args.pod, sandbox)]
    if args.json:
        print(json.dumps([sandbox.to_json() for sandbox in sandboxes], indent=2))
    elif sandboxes:
        print(columns(_rows(sandboxes)))
    if args.pod and not sandboxes:
        print(f"multus-py status: no sandbox of pod {args.pod} in {args.cni_dir}/attachments", file=sys.stderr)
        return 1
    return int(any(sandbox.drifted for sandbox in sandboxes))


def _is_selected(pod: str, sandbox: Any) -> bool:
    namespace, _, name = pod.rpartition("/")
    return not pod or (sandbox.pod == name and namespace in ("", sandbox.namespace))


def _rows(sandboxes: Iterable[Any]) -> Iterator[tuple[str, ...]]:
    yield _HEADING
    for sandbox in sandboxes:
        name = f"{sandbox.namespace}/{sandbox.pod}" if sandbox.pod else sandbox.container[:12]
        if sandbox.trouble:
            yield (name, "", "", "", "", "", "", sandbox.trouble)
        for n, item in enumerate(sandbox.interfaces):
            yield (
                "" if n else name, item.ifname, item.network, " ".join(item.ips), item.mac, str(item.mtu or ""),
                _device(item.device or {}), "; ".join(item.drift),
            )  # fmt: skip
        for item in sandbox.failed:
            end = "given up" if item.final else "it is tried again"
            words = f"never came to be, DEL failed {item.tries} times, {end}: {item.reason}"
            yield (name, item.ifname, item.network, "", "", "", "", words)


def _device(device: Any) -> str:
    words = [device.get("pci", ""), device.get("driver", "")]
    if "vf" in device:
        words.append(f"{device['pf']} vf {device['vf']}")
    if device.get("vlan", (0,))[0]:
        words.append(f"vlan {device['vlan'][0]}")
    if any(device.get("rates", ())):
        words.append("rates {}-{} Mbit/s".format(*device["rates"]))
    return " ".join(filter(None, words))
