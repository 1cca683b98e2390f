# SPDX-License-Identifier: Apache-2.0
"""Order and bounds: how many calls are worked on at once, DEL beside the queue of ADDs, one DEL for many that ask."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from multus_py.cni.call import Call

Story = Callable[[], dict[str, Any] | None]


class Lanes:
    """Two lanes with *adds* and *deletes* places: a burst of ADDs never keeps a DEL waiting, nor the other way round.

    Calls for one sandbox wait for each other at its journal page. A DEL that comes while one for the same sandbox is at
    work gets that one's answer.
    """

    def __init__(self, adds: int, deletes: int) -> None:
        self._adds = threading.BoundedSemaphore(adds)
        self._deletes = threading.BoundedSemaphore(deletes)
        self._lock = threading.Lock()
        self._deleting: dict[tuple[str, str], Future[None]] = {}
        self._under_way = 0
        self._idle = threading.Condition(self._lock)

    def run(self, call: Call, story: Story) -> dict[str, Any] | None:
        """Tell *story* for *call* when there is a place."""
        with self._counted():
            if call.verb == "DEL":
                self._delete((call.container_id, call.ifname), story)
                return None
            if call.verb in ("STATUS", "VERSION"):
                return story()
            with self._adds:
                return story()

    def drain(self, seconds: float) -> bool:
        """Wait until nothing is under way; False when *seconds* were not enough."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._under_way, seconds)

    @property
    def under_way(self) -> int:
        """How many calls are being worked on or wait for a place."""
        return self._under_way

    def _delete(self, sandbox: tuple[str, str], story: Story) -> None:
        with self._lock:
            others = self._deleting.get(sandbox)
            if others is None:
                mine = self._deleting[sandbox] = Future()
        if others is not None:
            others.result()
            return
        try:
            with self._deletes:
                story()
        except BaseException as trouble:
            mine.set_exception(trouble)
            raise
        else:
            mine.set_result(None)
        finally:
            with self._lock:
                del self._deleting[sandbox]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._idle:
            self._under_way += 1
        try:
            yield
        finally:
            with self._idle:
                self._under_way -= 1
                self._idle.notify_all()
