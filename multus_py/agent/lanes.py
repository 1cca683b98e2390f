# SPDX-License-Identifier: Apache-2.0
"""Order and bounds: how many calls are worked on at once, DEL beside the queue of ADDs, one DEL for many that ask."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from multus_py.cni.call import Call

Story = Callable[[], dict[str, Any] | None]
_TURN = 0.03  # seconds: three times what an ADD of three networks takes when it waits for nobody


class Turn:
    """Who computes now. One at a time, for threads of one interpreter only get in each other's way.

    A native ADD asks the kernel four hundred times and hands the interpreter over each time: eight of them at once took
    a quarter longer than one after the other (`bench/attach.py`). Whoever waits for an executable gives its turn up,
    and whoever has had it for long loses it: nothing waits for an ADD that waits itself.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._queue: deque[threading.Event] = deque()  # in the order they came; the first is told so
        self._holder = 0
        self._until = 0.0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the turn for the time of the block, or until it is given up or lost."""
        first = threading.Event()
        with self._free:
            self._queue.append(first)
            if self._queue[0] is first:
                first.set()
        first.wait()
        with self._free:
            while self._holder and (left := self._until - time.monotonic()) > 0:
                self._free.wait(left)
            self._holder, self._until = threading.get_ident(), time.monotonic() + _TURN
            self._queue.popleft()
            if self._queue:
                self._queue[0].set()
        try:
            yield
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Let the next one begin, if the calling thread has the turn."""
        with self._free:
            if self._holder == threading.get_ident():
                self._holder = 0
                self._free.notify()


class Lanes:
    """Two lanes with *adds* and *deletes* places: a burst of ADDs never keeps a DEL waiting, nor the other way round.

    Calls for one sandbox wait for each other at its journal page. A DEL that comes while one for the same sandbox is at
    work gets that one's answer.
    """

    def __init__(self, adds: int, deletes: int) -> None:
        self._adds = threading.BoundedSemaphore(adds)
        self._deletes = threading.BoundedSemaphore(deletes)
        self.turn = Turn()
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
            with self._adds, self.turn.taken():
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
