# SPDX-License-Identifier: Apache-2.0
"""The program of the worker processes: they attach native networks, one sandbox after the other.

Each message is a pickled `Task` with the write end of a pipe for the pickled `Answer`; no other process has either. The
first process imports everything and forks the others, so that they share its memory.
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

READY = b"ready"  # sent once, when tasks are accepted
MESSAGE = 128 * 1024  # bytes of a task: the size of the socket's buffer


@dataclass(frozen=True)
class Task:
    """The networks of one sandbox, in order; *results* is the folder of the result cache."""

    attachments: tuple[Attachment, ...]
    call: Call
    results: Path
    root: str


@dataclass(frozen=True)
class Answer:
    """The results, and the error (code, message, details) that ended the task; *seen* records each delegate run."""

    done: list[TimedResult]
    error: tuple[int, str, str] | None
    seen: list[tuple[str, str, float, int]]


def run(task: Task) -> Answer:
    """Run the chains; nothing is rolled back here."""
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
    body = error.to_json("")
    return Answer(answer.done, (body["code"], body["msg"], body.get("details", "")), answer.seen)


def main(descriptor: int, count: int) -> None:
    """Run tasks from the socket *descriptor* in *count* processes until its other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the daemon closes the socket instead
        signal.signal(number, signal.SIG_IGN)
    plugins.preload()
    gc.collect()
    gc.freeze()  # a collection would write to these objects, and each process would copy their pages
    line = socket.socket(fileno=descriptor)
    line.set_inheritable(False)  # a process that a delegate starts must not keep it open
    others = {_fork(line) for _ in range(count - 1)}
    line.send(READY)
    while _serve(line):
        others |= {_fork(line) for _ in _ended(others)}  # one died of its task: replace it
    for other in others:
        os.waitpid(other, 0)


def _ended(others: set[int]) -> list[int]:
    """Return the processes that ended since the last call, and remove them from *others*."""
    gone = [pid for pid in others if os.waitpid(pid, os.WNOHANG)[0]]
    others.difference_update(gone)
    return gone


def _fork(line: socket.socket) -> int:
    """Fork this process; return the process id of the fork, which runs tasks as long as this one exists."""
    first = os.getpid()
    if pid := os.fork():
        return pid
    try:
        while _serve(line) and os.getppid() == first:
            pass
        line.setblocking(False)  # it would not be replaced: it runs what is queued, then the daemon starts new ones
        while _serve(line):
            pass
    finally:
        os._exit(0)  # in every case: a fork must not continue as the first process


def _serve(line: socket.socket) -> bool:
    """Run the next task; False when the daemon closed the socket, or when none is queued and it does not block."""
    try:
        task, pipes, *_ = socket.recv_fds(line, MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return False
    if not task:
        return False
    with os.fdopen(pipes[0], "wb") as answer:
        answer.write(pickle.dumps(run(pickle.loads(task))))
    return True
