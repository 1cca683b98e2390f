# SPDX-License-Identifier: Apache-2.0
"""Small files of the attach path, read and written whole with as few system calls as it takes.

A pod's start reads and writes two dozen of them. Python's own file objects ask the kernel eight times where four are
enough, and in a daemon each time lets another thread run first.
"""

import errno
import os
import stat
from pathlib import Path

_PIECE = 64 * 1024  # bytes asked for at once: nearly every file has fewer


def read(path: Path | str) -> bytes:
    """Return what is in a file; OSError as open(2) and read(2) say."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe would block
    try:
        return rest(file)
    finally:
        os.close(file)


def read_regular(path: Path | str, limit: int) -> bytes:
    """Return what is in a file whose path another program chose; OSError for what is no regular file or is larger.

    A pipe would be waited for, and a device has no end.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        text = os.read(file, limit + 1)
        while len(text) <= limit and (piece := os.read(file, _PIECE)):  # /proc and /sys give a page at a time
            text += piece
    finally:
        os.close(file)
    if len(text) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return text


def rest(file: int) -> bytes:
    """Return what is left to read from an open file or a pipe, up to its end."""
    text = piece = os.read(file, _PIECE)
    while piece:
        piece = os.read(file, _PIECE)
        text += piece
    return text


def put(path: Path, draft: Path, text: bytes) -> None:
    """Write *path* (0600) completely or not at all, as *draft* first, a name that only one writer may use at a time.

    The folder is created (0700) when it does not exist. OSError when the file system refuses.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        file = os.open(draft, flags, 0o600)
    except FileNotFoundError:
        draft.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(draft, flags, 0o600)
    try:
        left = memoryview(text)
        while left:  # a full disk takes a part first, and refuses the next one
            left = left[os.write(file, left) :]
    finally:
        os.close(file)
    draft.rename(path)
