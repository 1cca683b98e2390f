# SPDX-License-Identifier: Apache-2.0
"""The options of `multus-py lab`: up, show, exec, down. What they do is in `subcommands.py`."""

import argparse
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Temporary pods on this machine: every pod of the manifests becomes a network namespace, attached by the same plugin
that a runtime calls. The lab has a host namespace of its own; the machine's network is not changed."""
_EPILOG = """\
example:
  multus-py lab up examples
  multus-py lab show
  multus-py lab exec caller -- ping -c 1 10.30.0.11
  multus-py lab down"""


def add_parser(commands: Any) -> None:
    """Add the command and its subcommands to *commands*."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("lab", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw)
    subcommands = parser.add_subparsers(metavar="up|show|exec|down", required=True)

    def subcommand(name: str, description: str, *examples: str) -> argparse.ArgumentParser:
        epilog = "\n  ".join(["example:", *(f"multus-py lab {example}" for example in examples)])
        made: argparse.ArgumentParser = subcommands.add_parser(
            name, description=description, epilog=epilog, formatter_class=raw
        )
        made.add_argument("--name", default="lab", metavar="LAB", help="name of the lab (default: %(default)s)")
        made.set_defaults(subcommand=name)
        return made

    up = subcommand(
        "up",
        "Create the lab and attach the pods of the manifests; in an existing lab, the new ones.",
        "up examples",
        "up networks.yaml pods.yaml --backend builtin",
    )
    up.add_argument("files", nargs="+", type=Path, metavar="FILE", help="manifests, or folders of them")
    up.add_argument("--primary", type=Path, metavar="FILE", help="conf of the default network (default: a bridge)")
    up.add_argument("--backend", choices=("auto", "builtin", "exec"), help="who runs the delegates (default: auto)")

    show = subcommand("show", "Show the interfaces of each pod in the kernel.", "show --json")
    how = show.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("--status", metavar="POD", help="print the network-status that was published for a pod")

    inside = subcommand(
        "exec", "Run a command in a pod's network namespace; its exit status is ours.", "exec caller -- ip address"
    )
    inside.add_argument("pod", metavar="POD", help="name, or namespace/name")
    inside.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...", help="command with its arguments")

    subcommand("down", "Detach the pods and remove the lab, also one that is incomplete.", "down")


def run(args: argparse.Namespace) -> int:
    """Run one subcommand."""
    # Imported here: it imports netlink, which takes longer than everything that `--help` needs.
    from multus_py.cli.lab import subcommands

    return subcommands.SUBCOMMANDS[args.subcommand](args)
