# SPDX-License-Identifier: Apache-2.0
"""Waiting for what another thread or process does in its own time."""

import threading
import time
from collections.abc import Callable


def eventually(promise: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until the promise holds."""
    until = time.monotonic() + seconds
    pause = threading.Event()
    while not promise():
        assert time.monotonic() < until, "it did not come true in time"
        pause.wait(0.005)
