# SPDX-License-Identifier: Apache-2.0
"""Limits of calls: how many are in progress, ADDs and DELs apart, and one DEL for several calls of one sandbox."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager

from multus_py.cni.call import Call

_COMPUTE_SECONDS = 0.03  # three times the duration of an ADD of three networks that does not wait


class ComputeLock:
    """A lock for computing: one thread at a time, in order of arrival. A holder loses it after `_COMPUTE_SECONDS`.

    A native ADD makes four hundred system calls and releases the interpreter lock at each: eight of them at once took a
    quarter longer than one after the other, eight DELs half as long again (`bench/attach.py`). A thread that waits for
    a process releases the lock; it expires, so that no call waits for one that waits itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[tuple[int, threading.Event]] = deque()  # waiting threads, in order of arrival
        self._holder = 0  # a thread; 0: none
        self._until = 0.0

    @contextmanager
    def acquired(self) -> Iterator[None]:
        """Hold the lock for the time of the block, or until it is released or expires."""
        self._acquire(self._queue.append)
        try:
            yield
        finally:
            self.release()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Release the lock for the time of the block; its holder acquires it again before the threads that wait."""
        had = self.release()
        try:
            yield
        finally:
            if had:
                self._acquire(self._queue.appendleft)

    def release(self) -> bool:
        """Release the lock; False when the calling thread does not hold it."""
        with self._lock:
            if self._holder != threading.get_ident():
                return False
            self._grant_next()
            return True

    def wanted(self) -> bool:
        """Tell whether a thread waits for it."""
        return bool(self._queue)

    def _acquire(self, enqueue: Callable[[tuple[int, threading.Event]], None]) -> None:
        mine = threading.Event()
        with self._lock:
            enqueue((threading.get_ident(), mine))
            if not self._holder:
                self._grant_next()
        while not mine.wait(_COMPUTE_SECONDS):
            with self._lock:
                if time.monotonic() >= self._until:
                    self._grant_next()  # expired: the holder waits for something unforeseen

    def _grant_next(self) -> None:
        """Grant it to the first in the queue, if there is one; the caller holds `_lock`."""
        self._holder, granted = self._queue.popleft() if self._queue else (0, None)
        self._until = time.monotonic() + _COMPUTE_SECONDS
        if granted:
            granted.set()


class VerbLimit:
    """At most *slots* calls in progress: one computes, the others wait for the lock or for the kernel."""

    def __init__(self, slots: int) -> None:
        self._slots = threading.BoundedSemaphore(slots)
        self.compute_lock = ComputeLock()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot for the time of the block, and the compute lock from its start."""
        with self._slots, self.compute_lock.acquired():
            yield


class CallLimits:
    """Two limits, *adds* and *deletes* slots: a burst of ADDs does not delay a DEL, nor the other way round.

    Calls of one sandbox wait for its journal file before they have a slot, so they do not delay calls of others. A DEL
    that arrives while another one of the same sandbox is in progress gets the outcome of that one.
    """

    def __init__(self, adds: int, deletes: int) -> None:
        self.adds, self.deletes = VerbLimit(adds), VerbLimit(deletes)
        self._lock = threading.Lock()
        self._deleting: dict[tuple[str, str], Future[None]] = {}
        self._in_progress = 0
        self._idle = threading.Condition(self._lock)

    @contextmanager
    def admitted(self, call: Call) -> Iterator[bool]:
        """Count the call as in progress for the time of the block, which takes a `slot` once it has locked its sandbox.

        False when a DEL of the same sandbox was in progress: its outcome is that of this call, errors included.
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

    def slot(self, verb: str) -> AbstractContextManager[None]:
        """Hold a slot for *verb* for the time of the block."""
        return (self.deletes if verb == "DEL" else self.adds).slot()

    def release(self) -> None:
        """Release the compute lock; for a thread that waits for an executable."""
        self.adds.compute_lock.release()
        self.deletes.compute_lock.release()

    def drain(self, seconds: float) -> bool:
        """Wait until no call is in progress; False after *seconds*."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._in_progress, seconds)

    @property
    def in_progress(self) -> int:
        """How many calls are in progress or wait for a slot."""
        return self._in_progress

    def _other_delete(self, sandbox: tuple[str, str]) -> "Future[None] | None":
        """Return the outcome of the DEL in progress of a sandbox; None when this call is the first, which is noted."""
        with self._lock:
            if other := self._deleting.get(sandbox):
                return other
            self._deleting[sandbox] = Future()
            return None

    @contextmanager
    def _deletes(self, sandbox: tuple[str, str]) -> Iterator[None]:
        """Give the outcome of the block to the DELs of the same sandbox that arrived meanwhile."""
        outcome = self._deleting[sandbox]
        try:
            yield
        except BaseException as error:
            outcome.set_exception(error)
            raise
        else:
            outcome.set_result(None)
        finally:
            with self._lock:
                del self._deleting[sandbox]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._idle:
            self._in_progress += 1
        try:
            yield
        finally:
            with self._idle:
                self._in_progress -= 1
                self._idle.notify_all()
