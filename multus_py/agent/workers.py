# SPDX-License-Identifier: Apache-2.0
"""Processes that attach natively beside the daemon's own: threads of one interpreter share one processor, these do not.

They are there for bursts. As long as one call comes at a time nobody is asked and none of them is started.
"""

import logging
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from multus_py import small_files
from multus_py.agent import worker_process
from multus_py.agent.lanes import Lanes
from multus_py.agent.worker_process import MESSAGE, READY, Answer, Task
from multus_py.chain import Chain
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.node import Done
from multus_py.plan import Attachment

log = logging.getLogger("multus_py")


class Workers:
    """At most *count* processes that take tasks from one line. *observed* is told of every delegate that ran in one."""

    def __init__(self, count: int, lanes: Lanes, observed: Callable[[str, str, float, int], None]) -> None:
        self._count = count
        self._lanes = lanes
        self._observed = observed
        self._lock = threading.Lock()
        self._group: _Group | None = None
        self._starting = self._closed = False

    def wanted(self) -> bool:
        """Tell whether this process has other calls to work on."""
        return self._count > 0 and self._lanes.under_way > 1

    def add(self, attachments: tuple[Attachment, ...], call: Call, chain: Chain) -> list[Done] | None:
        """Have the chains of a sandbox run; None when nobody is there to do it. Code 11 when a process dies of it."""
        task = pickle.dumps(Task(attachments, replace(call, config={}), chain.cache.folder, chain.plugins.root))
        if len(task) > MESSAGE or (group := self._ready()) is None:
            return None
        with self._lanes.adds.turn.lent():
            try:
                answer = group.ask(task)
            except ConnectionError:
                self._lost(group)
                return None
        if answer is None:
            raise CniError(Code.TRY_AGAIN, "the process that attached died", "what it began is taken back")
        for one in answer.seen:
            self._observed(*one)
        if answer.error:
            raise CniError(*answer.error)
        return answer.done

    def close(self) -> None:
        """End the processes, those at work when they have answered."""
        with self._lock:
            self._closed = True
            group, self._group = self._group, None
        if group:
            group.close()

    def _ready(self) -> "_Group | None":
        """Return the processes; when there are none, have them started for the calls after this."""
        with self._lock:
            if self._group is None and not self._starting and not self._closed:
                self._starting = True
                threading.Thread(target=self._start, name="workers", daemon=True).start()
            return self._group

    def _start(self) -> None:
        try:
            group = _Group(self._count)
        except OSError as cause:
            log.warning("no process to attach in can be started, calls that come at once take longer: %s", cause)
            return  # and is not tried again: *starting* stays
        if not group.is_ready():
            log.warning("the processes to attach in ended at their start, calls that come at once take longer")
            group.close()
            return
        with self._lock:
            self._starting = False
            if not self._closed:
                self._group = group
                return
        group.close()

    def _lost(self, group: "_Group") -> None:
        with self._lock:
            if self._group is not group:
                return
            self._group = None
        group.close()


class _Group:
    """The processes and the line to them; the first one keeps up their number."""

    def __init__(self, count: int) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.set_inheritable(True)
            start = f"from {worker_process.__name__} import main; main({theirs.fileno()}, {count})"
            program = [sys.executable, "-B", "-c", start]
            self._pid = os.posix_spawn(sys.executable, program, os.environ, setsigmask=[])

    def is_ready(self) -> bool:
        """Wait until tasks can come; False when the first process ended instead."""
        try:
            return self._line.recv(len(READY)) == READY
        except OSError:
            return False

    def ask(self, task: bytes) -> Answer | None:
        """Ask and wait for the answer; None when who took the task died. ConnectionError when nobody is left."""
        answer, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                socket.send_fds(self._line, [task], [theirs])
            finally:
                os.close(theirs)  # from here on only the line and who takes the task have it: its end is our end
            told = small_files.rest(answer)
        finally:
            os.close(answer)
        return pickle.loads(told) if told else None

    def close(self) -> None:
        """Let the processes end, and wait for the first, which waits for the others."""
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)
        with suppress(ChildProcessError):  # as process 1 we reap everything elsewhere
            os.waitpid(self._pid, 0)
        self._line.close()
