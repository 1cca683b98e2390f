# SPDX-License-Identifier: Apache-2.0
"""Processes that attach natively beside the daemon's own: threads of one interpreter share one processor, these do not.

They are there for bursts. As long as one call comes at a time nobody is asked and none of them is started.
"""

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from multus_py.agent import worker_process
from multus_py.agent.lanes import Turn
from multus_py.agent.worker_process import READY
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code

log = logging.getLogger("multus_py")


class Workers:
    """At most *count* processes, each with one call at a time. *observed* is told of every delegate that ran in one."""

    def __init__(self, count: int, turn: Turn, observed: Callable[[str, str, float, int], None]) -> None:
        self._turn = turn
        self._observed = observed
        self._lock = threading.Lock()
        self._unstarted = count
        self._idle: list[_Worker] = []
        self._closed = False

    def wanted(self) -> bool:
        """Tell whether somebody waits for this process to compute."""
        return self._turn.wanted()

    def run(self, plugin_type: str, call: Call, root: str = "/") -> dict[str, Any] | None:
        """Have ADD of a native delegate done by a process that is idle; None when none is. Code 11 when it dies."""
        if (worker := self._free()) is None:
            return None
        with self._turn.lent():
            try:
                told = worker.ask(
                    {"plugin": plugin_type, "root": root, "call": {**vars(call), "config": dict(call.config)}}
                )
            except (OSError, ValueError) as cause:
                self._lost(worker)
                raise CniError(Code.TRY_AGAIN, f"plugin {plugin_type}: the process that attached died") from cause
        self._has_time(worker)
        for one in told["seen"]:
            self._observed(*one)
        if error := told.get("error"):
            raise CniError(error["code"], error["msg"], error.get("details", ""))
        result: dict[str, Any] = told["result"]
        return result

    def close(self) -> None:
        """End the processes, those at work when they have answered."""
        with self._lock:
            self._closed, self._unstarted = True, 0
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def _free(self) -> "_Worker | None":
        """Return a process without work; when there is none, start one for the calls after this."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if self._unstarted:
                self._unstarted -= 1
                threading.Thread(target=self._start, name="worker", daemon=True).start()
            return None

    def _start(self) -> None:
        try:
            worker = _Worker()
        except OSError as cause:
            log.warning("no process to attach in can be started, calls that come at once take longer: %s", cause)
            return
        if worker.is_ready():
            self._has_time(worker)
        else:
            log.warning("a process to attach in ended at its start, calls that come at once take longer")
            worker.close()

    def _has_time(self, worker: "_Worker") -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
                return
        worker.close()

    def _lost(self, worker: "_Worker") -> None:
        worker.close()
        with self._lock:
            self._unstarted += not self._closed


class _Worker:
    """One process and the line to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.set_inheritable(True)
            program = [sys.executable, "-B", "-m", worker_process.__name__, str(theirs.fileno())]
            self._pid = os.posix_spawn(sys.executable, program, os.environ, setsigmask=[])
            self._talk = ours.makefile("rwb")

    def is_ready(self) -> bool:
        """Wait until the process can take a call; False when it ended instead."""
        try:
            return self._talk.readline() == READY
        except OSError:
            return False

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Ask and wait for the answer; OSError or ValueError when the process is gone."""
        self._talk.write(json.dumps(message).encode() + b"\n")
        self._talk.flush()
        told: dict[str, Any] = json.loads(self._talk.readline())
        return told

    def close(self) -> None:
        """Let the process end, and wait for it."""
        with suppress(OSError):
            self._talk.close()
        with suppress(ChildProcessError):  # as process 1 we reap everything elsewhere
            os.waitpid(self._pid, 0)
