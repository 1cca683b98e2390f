# SPDX-License-Identifier: Apache-2.0
"""`multus-py uninstall`: remove executable and conf; existing attachments stay until their pods end."""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from multus_py.cli.install import add_folder_options, conf_folder
from multus_py.cni.errors import CniError, Code
from multus_py.install import installation
from multus_py.install.cni_conf import Folders
from multus_py.install.installation import UninstallRequest, UninstallResult

_DESCRIPTION = """\
Remove the conf file and the executable that `multus-py install` wrote, restore what it set aside, and change nothing
else. The runtime uses the default network's own conf again; running pods keep their interfaces. A running daemon is
notified and continues to serve existing pods. It can be run several times.

As long as sandboxes that we attached exist, the executable stays: CRI-O calls it for their DEL, with the config that it
stored. containerd calls the default network alone, and the daemon, or `multus-py daemon --once`, releases the rest when
the sandbox is removed. Run it again after that, or let --drain wait for it."""
_EPILOG = """\
examples:
  multus-py uninstall --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d
  multus-py uninstall --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d --drain --timeout 3600

exit status: 0 done; 1 something could not be removed, or --drain ran out of time; 2 wrong usage"""
_INTERVAL = 1.0  # seconds between two checks of what remains


def add_parser(commands: Any) -> None:
    """Add the command to *commands*."""
    parser = commands.add_parser(
        "uninstall", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_folder_options(parser)
    parser.add_argument("--cni-dir", type=Path, metavar="DIR", help="folder of the journal (default: as in our conf)")
    parser.add_argument(
        "--socket-dir", type=Path, metavar="DIR", help="folder of the daemon's socket (default: as in our conf)"
    )
    parser.add_argument("--keep-shim", action="store_true", help="do not remove the executable")
    parser.add_argument("--drain", action="store_true", help="wait until no sandbox that we attached is left")
    parser.add_argument(
        "--timeout", type=float, default=0.0, metavar="SECONDS", help="how long --drain waits (default: without limit)"
    )
    parser.add_argument("--json", action="store_true", help="print what was removed as JSON")


def run(args: argparse.Namespace) -> int:
    """Uninstall and print what was removed."""
    request = UninstallRequest(
        Folders(args.cni_bin_dir, conf_folder(args)), args.name, args.keep_shim, args.cni_dir, args.socket_dir
    )
    done = installation.uninstall(request)
    if args.drain and done.remaining:
        if not args.json:
            _print_result(done)
        _drain(done.cni_dir, args.timeout)
        before = done
        # Our conf is removed by now: only the first call could read the folders from it.
        done = installation.uninstall(replace(request, cni_dir=before.cni_dir, socket_dir=before.socket_dir))
        if args.json:
            done.removed, done.restored = before.removed + done.removed, before.restored + done.restored
    if args.json:
        print(json.dumps(_to_json(done), indent=2))
    else:
        _print_result(done)
    return 0


def _drain(cni_dir: Path, seconds: float) -> None:
    end = time.monotonic() + seconds if seconds else float("inf")
    while left := installation.remaining(cni_dir):
        if time.monotonic() >= end:
            raise CniError(
                Code.TRY_AGAIN,
                f"{left.sandboxes} sandboxes and {left.tombstones} waiting DELs are left after {seconds:g} s",
                "is the daemon running? `multus-py daemon --config FILE --once` does its work once; `multus-py doctor` "
                "tells why one stays, `multus-py forget` drops it",
            )
        time.sleep(_INTERVAL)


def _print_result(done: UninstallResult) -> None:
    lines = [f"removed     {path}" for path in done.removed] + [f"given back  {path}" for path in done.restored]
    if done.results:
        lines.append(f"removed     {done.results} results that the runtime kept of sandboxes that are gone")
    if done.kept:
        lines.append(f"kept        {done.kept}")
    if done.remaining.failures:
        lines.append(
            f"{done.remaining.failures} networks never came to be and cannot be cleaned up: `multus-py doctor` lists "
            "them, `multus-py forget` drops them"
        )
    if done.remaining:
        lines += [
            f"{done.remaining.sandboxes} sandboxes are left in {done.cni_dir}, and {done.remaining.tombstones} DELs "
            "that wait for the daemon. Their interfaces stay until they end;",
            "what they hold is released by the daemon, or by `multus-py daemon --config FILE --once`.",
        ]
    print("\n".join(lines) or "nothing to remove")


def _to_json(done: UninstallResult) -> dict[str, Any]:
    return {
        "removed": [str(path) for path in done.removed],
        "givenBack": [str(path) for path in done.restored],
        "results": done.results,
        "kept": str(done.kept) if done.kept else None,
        "sandboxes": done.remaining.sandboxes,
        "tombstones": done.remaining.tombstones,
        "failures": done.remaining.failures,
    }
