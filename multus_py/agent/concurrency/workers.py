# SPDX-License-Identifier: Apache-2.0
"""Worker processes that attach native networks: threads of one interpreter share one processor, processes do not.

They serve bursts: as long as one call is in progress at a time, none is started or used.
"""

import logging
import os
import pickle
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from multus_py.agent.concurrency import worker_process
from multus_py.agent.concurrency.call_limits import CallLimits
from multus_py.agent.concurrency.child import Child
from multus_py.agent.concurrency.worker_process import MESSAGE, READY, Answer, Task
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.plan.attachment import Attachment
from multus_py.verbs.chain import Chain
from multus_py.verbs.node import TimedResult

log = logging.getLogger("multus_py")

_CHUNK = 65536
_END_SECONDS = 5.0  # seconds for the processes to end their tasks
_RETRY_SECONDS = 60.0  # seconds until a failed start is retried


class Workers:
    """At most *count* processes that read tasks from one socket. *observed* is called for each delegate run.

    They have *start_timeout* seconds to start.
    """

    def __init__(
        self,
        count: int,
        limits: CallLimits,
        observed: Callable[[str, str, float, int], None],
        start_timeout: float = 60.0,
    ) -> None:
        self._count = count
        self._limits = limits
        self._observed = observed
        self._start_timeout = start_timeout
        self._retry_at = 0.0  # monotonic: no start before
        self._lock = threading.Lock()
        self._group: _Group | None = None
        self._starting = self._closed = False

    def is_needed(self) -> bool:
        """Tell whether more than one call is in progress."""
        return self._count > 0 and self._limits.in_progress > 1

    def add(self, attachments: tuple[Attachment, ...], call: Call, chain: Chain) -> list[TimedResult] | None:
        """Run the chains of a sandbox in a worker; None when there is none.

        Code 11 when the worker dies, or when none answers within `execTimeout`: then all are killed.
        """
        task = pickle.dumps(Task(attachments, replace(call, config={}), chain.cache.folder, chain.plugins.root))
        if len(task) > MESSAGE or (group := self._ready()) is None:
            return None
        with self._limits.adds.compute_lock.released():
            answer = self._send(group, task, chain.plugins.timeout)
        if answer is None:
            return None
        for one in answer.seen:
            self._observed(*one)
        if answer.error:
            raise CniError(*answer.error)
        return answer.done

    def _send(self, group: "_Group", task: bytes, seconds: float) -> Answer | None:
        """Send *task* and return its answer; None when no worker accepted it."""
        try:
            return group.ask(task, seconds)
        except BlockingIOError:
            return None  # the socket is full
        except TimeoutError as cause:
            log.warning("the processes to attach in did not answer within %g s and are started anew", seconds)
            self._lost(group, 0)
            raise CniError(
                Code.TRY_AGAIN,
                f"the process that attached did not answer within {seconds:g} s and was ended",
                "what it began is taken back; raise 'execTimeout' if it is slow by nature",
            ) from cause
        except OSError:
            self._lost(group, _END_SECONDS)
            return None

    def close(self) -> None:
        """End the processes, after their current tasks."""
        with self._lock:
            self._closed = True
            group, self._group = self._group, None
        if group:
            group.close(_END_SECONDS)

    def _ready(self) -> "_Group | None":
        """Return the processes; when there are none, start them for later calls."""
        with self._lock:
            startable = self._group is None and not self._starting and not self._closed
            if startable and time.monotonic() >= self._retry_at:
                self._starting = True
                threading.Thread(target=self._start, name="workers", daemon=True).start()
            return self._group

    def _start(self) -> None:
        group = self._started()
        with self._lock:
            self._starting = False
            if group and not self._closed:
                self._group = group
                return
            self._retry_at = time.monotonic() + _RETRY_SECONDS
        if group:
            group.close(_END_SECONDS)

    def _started(self) -> "_Group | None":
        words = "calls that come at once take longer until it is tried again"
        try:
            group = _Group(self._count)
        except OSError as cause:
            log.warning("no process to attach in can be started, %s: %s", words, cause)
            return None
        if group.is_ready(self._start_timeout):
            return group
        log.warning(
            "the processes to attach in ended at their start, or did not end it in %g s: %s", self._start_timeout, words
        )
        group.close(0)
        return None

    def _lost(self, group: "_Group", seconds: float) -> None:
        with self._lock:
            if self._group is not group:
                return
            self._group = None
        group.close(seconds)


class _Group:
    """The processes and the socket to them; the first one replaces the others."""

    def __init__(self, count: int) -> None:
        start = f"from {worker_process.__name__} import main; main({{line}}, {count})"
        self._first = Child(["-B", "-c", start], os.environ, send_timeout=1)

    def is_ready(self, seconds: float) -> bool:
        """Wait until tasks are accepted; False when the first process ended, or after *seconds*."""
        line = self._first.line
        line.settimeout(seconds)
        try:
            return line.recv(len(READY)) == READY
        except OSError:
            return False
        finally:
            line.settimeout(None)

    def ask(self, task: bytes, seconds: float) -> Answer | None:
        """Send a task and wait for the answer.

        `BlockingIOError` when the socket is full, `TimeoutError` after *seconds*, another `OSError` when no process is
        left; code 11 when the process with the task died.
        """
        answer, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                socket.send_fds(self._first.line, [task], [theirs], socket.MSG_DONTWAIT)
            finally:
                os.close(theirs)  # now only the worker has it: its death closes the pipe
            return _read_answer(_read_all(answer, time.monotonic() + seconds))
        finally:
            os.close(answer)

    def close(self, seconds: float) -> None:
        """Let the processes end after their current tasks; kill them after *seconds*."""
        self._first.close_input()
        if not self._first.ended(seconds):
            self._first.end()
        self._first.line.close()


def _read_all(pipe: int, end: float) -> bytes:
    """Read a pipe until its other end is closed; `TimeoutError` at *end* (monotonic)."""
    poll, pieces = select.poll(), []
    poll.register(pipe, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise TimeoutError
        pieces.append(os.read(pipe, _CHUNK))
        if not pieces[-1]:
            return b"".join(pieces)


def _read_answer(data: bytes) -> Answer:
    """Return the answer; code 11 when it is incomplete: the process with the task died."""
    try:
        answer: Answer = pickle.loads(data)
    except (EOFError, pickle.UnpicklingError) as cause:
        raise CniError(Code.TRY_AGAIN, "the process that attached died", "what it began is taken back") from cause
    return answer
