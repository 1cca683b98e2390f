# SPDX-License-Identifier: Apache-2.0
"""The entry point of `multus-py`: calls of a runtime go directly to the plugin, all others to the commands."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0 is ok, 1 failed, 2 wrong usage."""
    command_line = list(sys.argv[1:] if arguments is None else arguments)
    if command_line == ["plugin"]:
        # A runtime waits for it: no parser is imported, only what a verb needs.
        from multus_py.entry.plugin import main as plugin

        return plugin()
    from multus_py.cli import commands

    return commands.run(command_line)


if __name__ == "__main__":
    sys.exit(main())
