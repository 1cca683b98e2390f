# SPDX-License-Identifier: Apache-2.0
"""The first step of `multus-py`: a runtime's call goes straight to the plugin, a person's words to the commands."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0 is ok, 1 failed, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["plugin"]:
        # A runtime waits for this one: no parser, nothing that a verb does not need.
        from multus_py.entry.plugin import main as plugin

        return plugin()
    from multus_py.cli import commands

    return commands.run(words)


if __name__ == "__main__":
    sys.exit(main())
