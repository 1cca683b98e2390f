# SPDX-License-Identifier: Apache-2.0
"""Connections whose request was not read yet: few enough, and none for ever, whatever their peers do."""

import socket
import threading
import time
from contextlib import suppress


class SilentConnections:
    """At most *limit* connections, each for at most *seconds*, the oldest first.

    One that is there for *grace* seconds has to make room for a new one when there are too many.
    """

    def __init__(self, limit: int, seconds: float, grace: float = 1.0) -> None:
        self._limit, self._seconds, self._grace = limit, seconds, grace
        self._changed = threading.Condition()
        self._waiting: dict[socket.socket, float] = {}  # since when (monotonic)

    def add(self, connection: socket.socket) -> None:
        """Add a connection; waits *grace* seconds at most while too many new ones are silent."""
        with self._changed:
            while len(self._waiting) >= self._limit:
                oldest, since = next(iter(self._waiting.items()))
                left = since + self._grace - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                else:
                    self._close_input(oldest)
            self._waiting[connection] = time.monotonic()

    def remove(self, connection: socket.socket) -> None:
        """Let one go: its request was read, or it ended."""
        with self._changed:
            if self._waiting.pop(connection, None) is not None:
                self._changed.notify()

    def close_late(self) -> None:
        """Close those that exceeded their time, however much they sent meanwhile."""
        with self._changed:
            late = time.monotonic() - self._seconds
            for connection in [one for one, since in self._waiting.items() if since <= late]:
                self._close_input(connection)

    def _close_input(self, connection: socket.socket) -> None:
        """Have its thread read the end of its request."""
        del self._waiting[connection]
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RD)
