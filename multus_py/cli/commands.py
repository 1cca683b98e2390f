# SPDX-License-Identifier: Apache-2.0
"""The table of commands, each imported only when it runs, and the report of their errors."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from multus_py.cni.errors import CniError

_FAILED = 1


@dataclass(frozen=True)
class Command:
    """A command: the module with its `add_parser(commands)` and `run(args)`, and one line for the overview."""

    module: str
    summary: str


COMMANDS = {
    "plugin": Command("multus_py.cli.plugin", "run as a CNI plugin: CNI_* environment, config on standard input"),
    "daemon": Command("multus_py.cli.daemon", "run the node agent: answer the shim's calls for all pods of this node"),
    "install": Command("multus_py.cli.install", "install the executable and a CNI config file wrapping the first one"),
    "uninstall": Command("multus_py.cli.uninstall", "remove executable and CNI config file, restore the earlier files"),
    "lab": Command("multus_py.cli.lab.command", "attach temporary pods from manifests on this machine, no cluster"),
    "status": Command("multus_py.cli.status", "list the attachments on this node and compare them with the kernel"),
    "forget": Command("multus_py.cli.forget", "remove the journal entry of a sandbox that cannot be detached"),
    "lint": Command("multus_py.cli.lint", "check definitions, pods and configs for mistakes"),
    "doctor": Command("multus_py.cli.doctor.command", "check this node: folders, plugins, kernel, sockets, leftovers"),
}
_EXAMPLE = (
    "example:\n  multus-py lab up examples && multus-py lab show\n\nmultus-py COMMAND --help describes the command."
)


def run(arguments: Sequence[str]) -> int:
    """Run the command in *arguments*; exit status 0 is ok, 1 failed, 2 wrong usage (argparse ends the process)."""
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    args = parser_of(chosen).parse_args(arguments)
    try:
        return int(import_module(COMMANDS[chosen].module).run(args))
    except CniError as error:
        _print_error(error)
    except KeyboardInterrupt:
        print("multus-py: interrupted", file=sys.stderr)
    except BrokenPipeError:
        # The reader of our output ended (`| head`): no message, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _FAILED


def parser_of(chosen: str) -> argparse.ArgumentParser:
    """Return the parser with the chosen command's own options; the other commands have no options."""
    width = max(map(len, COMMANDS))
    overview = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="multus-py",
        usage="multus-py [-h] [--version] COMMAND ...",
        description=f"A meta-CNI: one pod, several network interfaces.\n\ncommands:\n{overview}",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"multus-py {version('multus-py')}")
    commands = parser.add_subparsers(prog="multus-py", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    if chosen:
        import_module(COMMANDS[chosen].module).add_parser(commands)
        return parser
    for name in COMMANDS:
        commands.add_parser(name)
    return parser


def _print_error(error: CniError) -> None:
    print(f"multus-py: {error.msg}", file=sys.stderr)
    for note in [error.details, *getattr(error, "__notes__", ())]:
        if note:
            print(f"  {note}", file=sys.stderr)
