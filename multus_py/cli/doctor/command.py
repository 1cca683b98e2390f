# SPDX-License-Identifier: Apache-2.0
"""`multus-py doctor`: its options, the areas that it examines, and the report of the findings."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from multus_py.cli.table import columns
from multus_py.config.plugin import TYPE

_DESCRIPTION = """\
Check this node: the runtime's folders, the plugins, the kernel, the sockets, access to the API server, and leftovers
on disk. Nothing is changed; the kernel may load modules for the kinds of links that are tried."""
_EPILOG = """\
examples:
  multus-py doctor
  multus-py doctor --config /etc/multus-py/daemon-config.json --json
  kubectl -n kube-system exec daemonset/multus-py -- multus-py doctor --config /etc/multus-py/daemon-config.json

exit status: 0 no check failed; 1 a check failed; 2 wrong usage"""

_LEVEL_WIDTH = 7  # of the longest level, also when no finding has it


def add_parser(commands: Any) -> None:
    """Add `doctor` to the commands."""
    parser = commands.add_parser(
        "doctor", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="", metavar="FILE", help="the daemon's config file, which is checked, too")
    parser.add_argument(
        "--root", default="", metavar="DIR", help="where the node's / is mounted (default: chrootDir, or /)"
    )
    detected = "(default: as in the runtime's config)"
    parser.add_argument("--cni-conf-dir", default="", metavar="DIR", help=f"folder of CNI conf files {detected}")
    parser.add_argument("--cni-bin-dir", default="", metavar="DIR", help=f"folder of CNI plugins {detected}")
    parser.add_argument("--socket-dir", default="", metavar="DIR", help="folder of the daemon's socket")
    parser.add_argument("--name", default=TYPE, help="name of the plugin (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Examine all areas; 1 when a check failed."""
    from multus_py.cli.doctor import folders, kernel, leftovers, services, software
    from multus_py.cli.doctor.node import Options, examined_node
    from multus_py.cli.doctor.node_finding import Level

    node = examined_node(
        Options(args.root, args.config, args.cni_conf_dir, args.cni_bin_dir, args.socket_dir, args.name)
    )
    found = [each for area in (software, folders, kernel, services, leftovers) for each in area.findings(node)]
    fit = not any(finding.level is Level.FAILED for finding in found)
    if args.json:
        print(json.dumps({"fit": fit, "findings": [finding.to_json() for finding in found]}, indent=2))
    else:
        _print(found, fit)
    return 0 if fit else 1


def _print(found: Sequence[Any], fit: bool) -> None:
    rows: list[tuple[str, str, str]] = []
    for finding in found:
        rows.append((finding.level, finding.area, finding.fact))
        if finding.advice:
            rows.append(("", "", f"-> {finding.advice}"))
    print(columns(rows, widths=(_LEVEL_WIDTH,)))
    print("this node is fit" if fit else "this node is NOT fit", file=sys.stdout if fit else sys.stderr)
