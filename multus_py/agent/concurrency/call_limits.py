# SPDX-License-Identifier: Apache-2.0
"""Order and bounds: how many calls are worked on at once, DEL beside the queue of ADDs, one DEL for many that ask."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager

from multus_py.cni.call import Call

_TURN = 0.03  # seconds: three times what an ADD of three networks takes when it waits for nobody


class Turn:
    """Who computes now. One at a time, for threads of one interpreter only get in each other's way.

    A native ADD asks the kernel four hundred times and hands the interpreter over each time: eight of them at once took
    a quarter longer than one after the other, eight DELs half as long again (`bench/attach.py`). Whoever waits for a
    process gives its turn up, and whoever has had it for long loses it: nothing waits for a call that waits itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[tuple[int, threading.Event]] = deque()  # who wants it, in the order they came
        self._holder = 0  # a thread, 0: nobody
        self._until = 0.0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the turn for the time of the block, or until it is given up or lost."""
        self._take(self._queue.append)
        try:
            yield
        finally:
            self.give_up()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let others compute for the time of the block; who had the turn gets it back before those who wait for one."""
        had = self.give_up()
        try:
            yield
        finally:
            if had:
                self._take(self._queue.appendleft)

    def give_up(self) -> bool:
        """Let the next one begin; False when the calling thread has not the turn."""
        with self._lock:
            if self._holder != threading.get_ident():
                return False
            self._pass_on()
            return True

    def wanted(self) -> bool:
        """Tell whether somebody waits for it."""
        return bool(self._queue)

    def _take(self, line_up: Callable[[tuple[int, threading.Event]], None]) -> None:
        mine = threading.Event()
        with self._lock:
            line_up((threading.get_ident(), mine))
            if not self._holder:
                self._pass_on()
        while not mine.wait(_TURN):
            with self._lock:
                if time.monotonic() >= self._until:
                    self._pass_on()  # whoever has it does not compute: it waits for something that nobody foresaw

    def _pass_on(self) -> None:
        """Give the turn to the first in the queue, or to nobody; the caller holds the lock."""
        self._holder, come = self._queue.popleft() if self._queue else (0, None)
        self._until = time.monotonic() + _TURN
        if come:
            come.set()


class Lane:
    """Room for *places* calls at once: one of them computes, the others wait for it or for the kernel."""

    def __init__(self, places: int) -> None:
        self._places = threading.BoundedSemaphore(places)
        self.turn = Turn()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have a place for the time of the block, and begin it with the turn."""
        with self._places, self.turn.taken():
            yield


class Lanes:
    """Two lanes with *adds* and *deletes* places: a burst of ADDs never keeps a DEL waiting, nor the other way round.

    Calls for one sandbox wait for each other at its journal page, before they have a place: who waits for a sandbox
    keeps nobody else waiting. A DEL that comes while one for the same sandbox is at work gets that one's answer.
    """

    def __init__(self, adds: int, deletes: int) -> None:
        self.adds, self.deletes = Lane(adds), Lane(deletes)
        self._lock = threading.Lock()
        self._deleting: dict[tuple[str, str], Future[None]] = {}
        self._under_way = 0
        self._idle = threading.Condition(self._lock)

    @contextmanager
    def admitted(self, call: Call) -> Iterator[bool]:
        """Count the call as under way for the time of the block, which takes a `place` when it has its sandbox.

        False when a DEL of the same sandbox was under way: its outcome is this call's, an error is raised here, too.
        """
        with self._counted():
            sandbox = (call.container_id, call.ifname)
            if call.verb != "DEL":
                yield True
            elif other := self._other_delete(sandbox):
                other.result()
                yield False
            else:
                with self._deletes(sandbox):
                    yield True

    def place(self, verb: str) -> AbstractContextManager[None]:
        """Have a place in the lane of *verb* for the time of the block."""
        return (self.deletes if verb == "DEL" else self.adds).entered()

    def give_up(self) -> None:
        """Let the next call compute; for a thread that waits for an executable."""
        self.adds.turn.give_up()
        self.deletes.turn.give_up()

    def drain(self, seconds: float) -> bool:
        """Wait until nothing is under way; False when *seconds* were not enough."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._under_way, seconds)

    @property
    def under_way(self) -> int:
        """How many calls are being worked on or wait for a place."""
        return self._under_way

    def _other_delete(self, sandbox: tuple[str, str]) -> "Future[None] | None":
        """Return the outcome of the DEL that is under way for a sandbox; None when this one is the first now."""
        with self._lock:
            if other := self._deleting.get(sandbox):
                return other
            self._deleting[sandbox] = Future()
            return None

    @contextmanager
    def _deletes(self, sandbox: tuple[str, str]) -> Iterator[None]:
        """Tell the outcome of the block to the DELs that came for the same sandbox meanwhile."""
        outcome = self._deleting[sandbox]
        try:
            yield
        except BaseException as trouble:
            outcome.set_exception(trouble)
            raise
        else:
            outcome.set_result(None)
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
