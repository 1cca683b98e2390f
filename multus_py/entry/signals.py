# SPDX-License-Identifier: Apache-2.0
"""The signals that a process was sent, for its main thread to ask for.

A handler runs between two instructions of the main thread, which may hold any lock just then: one that takes a lock
itself, `threading.Event.set` for one, may wait for ever. So the handlers here do nothing; the interpreter writes the
number of each signal to a pipe.
"""

import os
import select
import signal
from collections.abc import Iterable

_MANY = 4096  # bytes, each of them a signal


class Signals:
    """Takes up the signals *numbers* for this process."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._pipe, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _nothing)
        self._poll = select.poll()
        self._poll.register(self._pipe, select.POLLIN)

    def wait(self, seconds: float) -> frozenset[int]:
        """Return which came since the last call; wait for the first of them, so long at most."""
        return frozenset(os.read(self._pipe, _MANY)) if self._poll.poll(seconds * 1000) else frozenset()


def _nothing(*_: object) -> None:
    """Do nothing: a signal without a handler would end the process, an ignored one would not be reported."""
