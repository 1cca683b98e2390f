# SPDX-License-Identifier: Apache-2.0
"""Processes that attach natively beside the daemon's own: threads of one interpreter share one processor, these do not.

They are there for bursts. As long as one call comes at a time nobody is asked and none of them is started.
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
from multus_py.agent.concurrency.child import Child
from multus_py.agent.concurrency.lanes import Lanes
from multus_py.agent.concurrency.worker_process import MESSAGE, READY, Answer, Task
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.plan.attachment import Attachment
from multus_py.verbs.chain import Chain
from multus_py.verbs.node import TimedResult

log = logging.getLogger("multus_py")

_CHUNK = 65536
_FAREWELL = 5.0  # seconds for the processes to do what they are at, when no more tasks come
_REST = 60.0  # seconds until a start that failed is tried again


class Workers:
    """At most *count* processes that take tasks from one line. *observed* is told of every delegate that ran in one.

    They have *patience* seconds to start.
    """

    def __init__(
        self, count: int, lanes: Lanes, observed: Callable[[str, str, float, int], None], patience: float = 60.0
    ) -> None:
        self._count = count
        self._lanes = lanes
        self._observed = observed
        self._patience = patience
        self._rest_until = 0.0  # monotonic: none is started before
        self._lock = threading.Lock()
        self._group: _Group | None = None
        self._starting = self._closed = False

    def is_needed(self) -> bool:
        """Tell whether this process has other calls to work on."""
        return self._count > 0 and self._lanes.under_way > 1

    def add(self, attachments: tuple[Attachment, ...], call: Call, chain: Chain) -> list[TimedResult] | None:
        """Have the chains of a sandbox run; None when nobody is there to do it.

        Code 11 when a process dies of it, or when none answers within the time that an executable has: all end then.
        """
        task = pickle.dumps(Task(attachments, replace(call, config={}), chain.cache.folder, chain.plugins.root))
        if len(task) > MESSAGE or (group := self._ready()) is None:
            return None
        with self._lanes.adds.turn.lent():
            answer = self._asked(group, task, chain.plugins.timeout)
        if answer is None:
            return None
        for one in answer.seen:
            self._observed(*one)
        if answer.error:
            raise CniError(*answer.error)
        return answer.done

    def _asked(self, group: "_Group", task: bytes, seconds: float) -> Answer | None:
        """Ask for the answer to *task*; None when nobody took it."""
        try:
            return group.ask(task, seconds)
        except BlockingIOError:
            return None  # the line is full
        except TimeoutError as cause:
            log.warning("the processes to attach in did not answer within %g s and are started anew", seconds)
            self._lost(group, 0)
            raise CniError(
                Code.TRY_AGAIN,
                f"the process that attached did not answer within {seconds:g} s and was ended",
                "what it began is taken back; raise 'execTimeout' if it is slow by nature",
            ) from cause
        except OSError:
            self._lost(group, _FAREWELL)
            return None

    def close(self) -> None:
        """End the processes, those at work when they have answered."""
        with self._lock:
            self._closed = True
            group, self._group = self._group, None
        if group:
            group.close(_FAREWELL)

    def _ready(self) -> "_Group | None":
        """Return the processes; when there are none, have them started for the calls after this."""
        with self._lock:
            startable = self._group is None and not self._starting and not self._closed
            if startable and time.monotonic() >= self._rest_until:
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
            self._rest_until = time.monotonic() + _REST
        if group:
            group.close(_FAREWELL)

    def _started(self) -> "_Group | None":
        words = "calls that come at once take longer until it is tried again"
        try:
            group = _Group(self._count)
        except OSError as cause:
            log.warning("no process to attach in can be started, %s: %s", words, cause)
            return None
        if group.is_ready(self._patience):
            return group
        log.warning(
            "the processes to attach in ended at their start, or did not end it in %g s: %s", self._patience, words
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
    """The processes and the line to them; the first one keeps up their number."""

    def __init__(self, count: int) -> None:
        start = f"from {worker_process.__name__} import main; main({{line}}, {count})"
        self._first = Child(["-B", "-c", start], os.environ, patience=1)

    def is_ready(self, seconds: float) -> bool:
        """Wait until tasks can come; False when the first process ended instead, or *seconds* were not enough."""
        line = self._first.line
        line.settimeout(seconds)
        try:
            return line.recv(len(READY)) == READY
        except OSError:
            return False
        finally:
            line.settimeout(None)

    def ask(self, task: bytes, seconds: float) -> Answer | None:
        """Ask and wait for the answer.

        `BlockingIOError` when the line has no room, `TimeoutError` when *seconds* were not enough, another `OSError`
        when nobody is left; code 11 when who took the task died.
        """
        answer, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                socket.send_fds(self._first.line, [task], [theirs], socket.MSG_DONTWAIT)
            finally:
                os.close(theirs)  # from here on only the line and who takes the task have it: its end is our end
            return _read(_said(answer, time.monotonic() + seconds))
        finally:
            os.close(answer)

    def close(self, seconds: float) -> None:
        """Let the processes end when they have done what they are at; end them after *seconds*."""
        self._first.hang_up()
        if not self._first.ended(seconds):
            self._first.end()
        self._first.line.close()


def _said(pipe: int, end: float) -> bytes:
    """Read all that comes on a pipe until its other end is closed, until *end* (monotonic)."""
    poll, pieces = select.poll(), []
    poll.register(pipe, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise TimeoutError
        pieces.append(os.read(pipe, _CHUNK))
        if not pieces[-1]:
            return b"".join(pieces)


def _read(told: bytes) -> Answer:
    """Return the answer; code 11 when it is cut short: who took the task died of it."""
    try:
        answer: Answer = pickle.loads(told)
    except (EOFError, pickle.UnpicklingError) as cause:
        raise CniError(Code.TRY_AGAIN, "the process that attached died", "what it began is taken back") from cause
    return answer
