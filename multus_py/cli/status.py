# SPDX-License-Identifier: Apache-2.0
"""`multus-py status`: what is attached on this node, and what is no longer as it was left."""

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

Read from the journal and checked against the kernel; nothing is changed. It needs root, to look into the pods.

exit status: 0 all is as it was left; 1 something drifted, or no such pod; 2 wrong usage"""
_HEADING = ("POD", "INTERFACE", "NETWORK", "ADDRESSES", "MAC", "MTU", "DEVICE", "DRIFT")


def add_parser(commands: Any) -> None:
    """Add `status` to the commands."""
    parser = commands.add_parser(
        "status",
        description="Show the attachments on this node, from the journal, checked against the kernel.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pod", nargs="?", default="", metavar="POD", help="a pod, as NAME or NAMESPACE/NAME")
    parser.add_argument(
        "--cni-dir", type=Path, default=Path("/var/lib/cni/multus"), metavar="DIR", help="the plugin's cniDir"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what is attached; 1 when something drifted or the pod is not known."""
    from multus_py.kernel.pci import Bus
    from multus_py.state.journal import Journal
    from multus_py.state.result_cache import ResultCache
    from multus_py.verbs.attached import Survey

    survey = Survey(Journal(args.cni_dir / "attachments"), ResultCache(args.cni_dir / "results"), Bus())
    found = [sandbox for sandbox in survey.sandboxes() if _is_meant(args.pod, sandbox)]
    if args.json:
        print(json.dumps([sandbox.to_json() for sandbox in found], indent=2))
    elif found:
        print(columns(_rows(found)))
    if args.pod and not found:
        print(f"multus-py status: no sandbox of pod {args.pod} in {args.cni_dir}/attachments", file=sys.stderr)
        return 1
    return int(any(sandbox.drifted for sandbox in found))


def _is_meant(pod: str, sandbox: Any) -> bool:
    namespace, _, name = pod.rpartition("/")
    return not pod or (sandbox.pod == name and namespace in ("", sandbox.namespace))


def _rows(found: Iterable[Any]) -> Iterator[tuple[str, ...]]:
    yield _HEADING
    for sandbox in found:
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


def _device(told: Any) -> str:
    words = [told.get("pci", ""), told.get("driver", "")]
    if "vf" in told:
        words.append(f"{told['pf']} vf {told['vf']}")
    if told.get("vlan", (0,))[0]:
        words.append(f"vlan {told['vlan'][0]}")
    if any(told.get("rates", ())):
        words.append("rates {}-{} Mbit/s".format(*told["rates"]))
    return " ".join(filter(None, words))
