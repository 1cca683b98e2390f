# SPDX-License-Identifier: Apache-2.0
"""A child process that is killed just before its n-th deed: each call that changes the world is one."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

# What changes the world, by the names of the built-in functions that do it.
DEEDS = frozenset(
    ("send", "sendto", "sendmsg", "pwrite", "write", "fsync", "ftruncate", "rename", "replace", "unlink", "remove",
     "mkdir", "rmdir", "flock", "fork_exec", "symlink", "link", "utime")
)  # fmt: skip


def killed_before(n: int, errand: Callable[[], object]) -> bool:
    """Run *errand* in a child that is killed before its n-th deed; return whether it came so far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

        def called(frame: object, event: str, function: object) -> None:
            if event == "c_call" and getattr(function, "__name__", "") in DEEDS:
                count()

        def audited(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and args[2] & os.O_CREAT:  # whoever only reads changes nothing
                count()

        threading.setprofile(called)
        sys.setprofile(called)
        sys.addaudithook(audited)
        try:
            errand()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
