# SPDX-License-Identifier: Apache-2.0
"""The program of the processes that attach natively for the daemon: one sandbox after the other, until it is gone.

Each message is a pickled `Task` and comes with the writing end of a pipe, which gets the pickled `Answer`: nobody else
writes to either. The first process imports everything and divides itself, so that the others share its memory.
"""

import gc
import os
import pickle
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from multus_py.cni import serve
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, to_cni_error
from multus_py.plan.attachment import Attachment
from multus_py.state.result_cache import ResultCache
from multus_py.verbs import plugins
from multus_py.verbs.chain import Chain
from multus_py.verbs.node import TimedResult
from multus_py.verbs.plugins import Plugins

READY = b"ready"  # said once, when the first task can come
MESSAGE = 128 * 1024  # bytes of a task: what a socket's buffer takes at once


@dataclass(frozen=True)
class Task:
    """The networks of one sandbox, in order; *results* is the folder for what their plugins say."""

    attachments: tuple[Attachment, ...]
    call: Call
    results: Path
    root: str


@dataclass(frozen=True)
class Answer:
    """What was done, and the error (code, message, details) that ended it; *seen* tells of every delegate that ran."""

    done: list[TimedResult]
    error: tuple[int, str, str] | None
    seen: list[tuple[str, str, float, int]]


def run(task: Task) -> Answer:
    """Run the chains; nothing is taken back here."""
    answer = Answer([], None, [])
    own = Plugins("builtin", observed=lambda *one: answer.seen.append(one), root=task.root)
    chain = Chain(own, ResultCache(task.results))
    for attachment in task.attachments:
        started = time.monotonic()
        try:
            body = chain.add(attachment, task.call)
        except CniError as error:
            return _failed(answer, error.with_context(str(attachment)))
        except Exception as error:  # noqa: BLE001  the boundary: the next task must find this process
            serve.log_unexpected_error(error)
            return _failed(answer, to_cni_error(error))
        answer.done.append((body, time.monotonic() - started))
    return answer


def _failed(answer: Answer, error: CniError) -> Answer:
    told = error.to_json("")
    return Answer(answer.done, (told["code"], told["msg"], told.get("details", "")), answer.seen)


def main(descriptor: int, count: int) -> None:
    """Have *count* processes do the tasks that come on the socket *descriptor* until its other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the daemon says when it is over: by going
        signal.signal(number, signal.SIG_IGN)
    plugins.preload()
    gc.collect()
    gc.freeze()  # what is there stays there: a look for garbage that writes to it would make the others copy it
    line = socket.socket(fileno=descriptor)
    line.set_inheritable(False)  # what a delegate starts must not hold the line open
    others = {_divided(line) for _ in range(count - 1)}
    line.send(READY)
    while _serve(line):
        others |= {_divided(line) for _ in _ended(others)}  # it died of its task: the next ones need another
    for other in others:
        os.waitpid(other, 0)


def _ended(others: set[int]) -> list[int]:
    """Return who has ended since the last look, and forget them."""
    gone = [pid for pid in others if os.waitpid(pid, os.WNOHANG)[0]]
    others.difference_update(gone)
    return gone


def _divided(line: socket.socket) -> int:
    """Return the process id of a copy of this process that does tasks for as long as this one is there."""
    first = os.getpid()
    if pid := os.fork():
        return pid
    try:
        while _serve(line) and os.getppid() == first:
            pass
        line.setblocking(False)  # nobody replaces it any more: it does what waits, and lets the daemon start anew
        while _serve(line):
            pass
    finally:
        os._exit(0)  # whatever happens: this copy must not go on as the first process


def _serve(line: socket.socket) -> bool:
    """Do the next task; False when there is none and the daemon is gone, or when nobody waits for tasks."""
    try:
        task, pipes, *_ = socket.recv_fds(line, MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return False
    if not task:
        return False
    with os.fdopen(pipes[0], "wb") as answer:
        answer.write(pickle.dumps(run(pickle.loads(task))))
    return True
