# SPDX-License-Identifier: Apache-2.0
"""A word left for the daemon that our conf was taken away on purpose: it goes on serving and puts nothing back.

It is in the folder of the daemon's socket, so it applies to the daemons of this boot, until the next installation.
"""

from pathlib import Path

from multus_py.cni.errors import CniError, Code

_NAME = "withdrawn"


def mark(socket_dir: Path) -> bool:
    """Write the mark; False where no daemon ever served: none would read it."""
    if not socket_dir.is_dir():
        return False
    try:
        (socket_dir / _NAME).touch(mode=0o600)
    except OSError as cause:
        raise CniError(
            Code.IO,
            f"cannot tell the daemon of {socket_dir} to stop installing: {cause.strerror}",
            "stop the daemon first: it would put its conf back",
        ) from cause
    return True


def clear(socket_dir: Path) -> None:
    """Remove the word."""
    try:
        (socket_dir / _NAME).unlink(missing_ok=True)
    except OSError as cause:
        raise CniError(
            Code.IO, f"cannot remove {socket_dir / _NAME}: {cause.strerror}", "the daemon would put nothing in place"
        ) from cause


def is_marked(socket_dir: Path) -> bool:
    """Tell whether the mark exists."""
    return (socket_dir / _NAME).exists()
