# SPDX-License-Identifier: Apache-2.0
"""`multus-py uninstall`: take launcher and conf away; what the plugin attached stays until its pods go."""

import argparse
import json
from typing import Any

from multus_py.cli.install import add_place
from multus_py.entry import install

_DESCRIPTION = """\
Remove the launcher and the conf file that `multus-py install` wrote, and nothing else. The runtime goes back to the
primary's own conf. Running it twice is fine."""
_EPILOG = """\
example:
  multus-py uninstall --standalone --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d"""


def add_parser(commands: Any) -> None:
    """Add the command to *commands*."""
    parser = commands.add_parser(
        "uninstall", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="print what was removed as JSON")


def run(args: argparse.Namespace) -> int:
    """Uninstall and say what was removed."""
    removed = [str(path) for path in install.uninstall(install.Folders(args.cni_bin_dir, args.cni_conf_dir), args.name)]
    if args.json:
        print(json.dumps({"removed": removed}, indent=2))
    else:
        print("\n".join(f"removed   {path}" for path in removed) or "nothing to remove")
    return 0
