# SPDX-License-Identifier: Apache-2.0
"""`multus-py daemon`: the node agent."""

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """example:
  multus-py daemon --config /etc/cni/net.d/multus.d/daemon-config.json

The file supports every key of multus-cni's daemon-config.json and of its CNI config. It is read again on SIGHUP, and
when it changes; SIGTERM drains and ends.

With --once nothing is served: DELs in the spool are replayed, and what removed sandboxes held is released. This is for
a node whose daemon was removed.

exit status: 0 ended by a signal, or with --once everything was released; 1 cannot start, or something is left; 2 wrong
usage"""


def add_parser(commands: Any) -> None:
    """Add `daemon` to the commands."""
    parser = commands.add_parser(
        "daemon",
        description="Serve the shim's calls on this node: one process for all pods.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the daemon's config file")
    parser.add_argument("--once", action="store_true", help="clean up after removed sandboxes, and end")


def run(args: argparse.Namespace) -> int:
    """Run the daemon until a signal ends it, or clean up once."""
    from multus_py.entry import daemon

    if args.once:
        left = daemon.once(args.config)
        print(f"{left.sandboxes} sandboxes and {left.tombstones} waiting DELs are left")
        if left.gone:
            print(f"{left.gone} of the sandboxes are gone and could not be released: the log says why")
        if left.failures:
            print(f"{left.failures} networks never came to be and cannot be cleaned up: see `multus-py doctor`")
        return int(bool(left.tombstones or left.gone or left.failures))
    return daemon.main(args.config)
