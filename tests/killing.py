# SPDX-License-Identifier: Apache-2.0
"""A child process that is killed just before its n-th write: each system call that changes state is one."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

# The built-in functions that change state.
WRITES = frozenset(
    ("send", "sendto", "sendmsg", "pwrite", "write", "fsync", "ftruncate", "rename", "replace", "unlink", "remove",
     "mkdir", "rmdir", "flock", "fork_exec", "symlink", "link", "utime")
)  # fmt: skip


def killed_before(n: int, operation: Callable[[], object]) -> bool:
    """Run *operation* in a child that is killed before its n-th write; return whether it had that many."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

        def called(frame: object, event: str, function: object) -> None:
            if event == "c_call" and getattr(function, "__name__", "") in WRITES:
                count()

        def audited(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and args[2] & os.O_CREAT:  # an open for reading changes nothing
                count()

        threading.setprofile(called)
        sys.setprofile(called)
        sys.addaudithook(audited)
        try:
            operation()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
