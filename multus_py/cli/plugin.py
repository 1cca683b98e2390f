# SPDX-License-Identifier: Apache-2.0
"""The help of `multus-py plugin`; calls of a runtime do not pass through here (see `main.py`)."""

import argparse
from typing import Any

from multus_py.entry.plugin import main

_DESCRIPTION = """\
Run as a CNI plugin, as a container runtime calls it: the verb and the sandbox in CNI_* variables, the network's
config on standard input, the result or the error as JSON on standard output."""
_EPILOG = """\
example:
  echo '{"cniVersion": "1.1.0"}' | CNI_COMMAND=VERSION multus-py plugin"""


def add_parser(commands: Any) -> None:
    """Add the command to *commands*."""
    commands.add_parser(
        "plugin", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run(_args: argparse.Namespace) -> int:
    """Serve one call."""
    return main()
