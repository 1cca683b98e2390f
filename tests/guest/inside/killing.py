# SPDX-License-Identifier: Apache-2.0
"""A child process that is killed just before its n-th deed: each call that changes the world is one."""

import os
import signal
import threading
from collections.abc import Callable

# What changes the world, by the names of the built-in functions that do it.
DEEDS = frozenset(
    ("send", "sendto", "write", "fsync", "rename", "replace", "unlink", "mkdir", "flock", "touch", "open")
)


def killed_before(n: int, errand: Callable[[], object]) -> bool:
    """Run *errand* in a child that is killed before its n-th deed; tell whether it came so far. n = 0: never killed."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(frame: object, event: str, function: object) -> None:
            nonlocal seen
            if event == "c_call" and getattr(function, "__name__", "") in DEEDS:
                seen += 1
                if seen == n:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            threading.setprofile(count)  # the threads that visit namespaces
            errand_thread = threading.Thread(target=errand)
            errand_thread.start()
            errand_thread.join()
            status = 0
        finally:
            os._exit(status)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
