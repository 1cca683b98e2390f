# SPDX-License-Identifier: Apache-2.0
"""Events that are sent in the background: a bounded queue, and one thread that sends."""

import logging
import threading
from collections import deque
from collections.abc import Callable

from multus_py.cni.errors import CniError
from multus_py.kube.http import Request

log = logging.getLogger("multus_py")


class EventQueue:
    """Requests in the order in which they were posted; *send* is called with each on one thread.

    When more than *limit* wait, the oldest is dropped. What is dropped or cannot be sent is logged and counted.
    """

    def __init__(self, send: Callable[[Request], None], limit: int = 1000) -> None:
        self._send = send
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._sending = False
        self._over = False
        self._thread = threading.Thread(target=self._run, name="tell Events", daemon=True)
        self.lost = 0  # dropped or refused, since the start

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def post(self, request: Request) -> None:
        """Have it sent some time soon; never waits."""
        with self._changed:
            dropped = self._waiting.popleft() if len(self._waiting) >= self._limit else None
            self._waiting.append(request)
            self._changed.notify_all()
        if dropped:
            self._lose(f"cannot {dropped.doing}: more than {self._limit} Events wait")

    def flush(self, seconds: float) -> bool:
        """Wait until all is sent; False after *seconds*."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._sending, seconds)

    def stop(self, seconds: float) -> None:
        """Send what waits, as long as the time allows, and have the thread end."""
        if self._thread.ident:
            self.flush(seconds)
        with self._changed:
            self._over, left = True, len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        if left:
            self._lose(f"{left} Events were not told before the end", left)

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, so long at most."""
        if self._thread.ident:
            self._thread.join(seconds)

    def _run(self) -> None:
        while (request := self._next()) is not None:
            try:
                self._send(request)
            except CniError as error:
                self._lose(str(error))
            except Exception:  # a thread that ends would leave all later ones untold
                log.exception("a defect in sending: cannot %s", request.doing)
                self._lose("one Event is lost to it")
            finally:
                with self._changed:
                    self._sending = False
                    self._changed.notify_all()

    def _next(self) -> Request | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over)
            if not self._waiting:
                return None
            self._sending = True
            return self._waiting.popleft()

    def _lose(self, why: str, count: int = 1) -> None:
        with self._changed:
            self.lost += count
        log.warning("%s", why)
