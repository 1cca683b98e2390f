# SPDX-License-Identifier: Apache-2.0
"""Where a node's files are seen by a process that lives in a container, with the node's root mounted at some folder."""

from pathlib import Path, PurePosixPath

_LINKS = 40  # of one path, as the kernel counts them (path_resolution(7))


def within(root: Path, path: str) -> Path:
    """Return where the node's *path* is seen from here: a link that starts at "/" starts at *root*."""
    if root == Path("/"):
        return Path(path)  # the kernel finds the way
    ahead = list(reversed(PurePosixPath(path).parts))
    here, links = root, 0
    while ahead:
        part = ahead.pop()
        if part == "/":
            here = root
        elif part == "..":
            here = here if here == root else here.parent
        elif links < _LINKS and (here / part).is_symlink():
            links += 1
            ahead += reversed(PurePosixPath((here / part).readlink()).parts)
        else:
            here /= part
    return here
