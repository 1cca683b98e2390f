# SPDX-License-Identifier: Apache-2.0
"""The daemon's line to the process that starts executables (`spawner_process`): the daemon itself never forks."""

import contextlib
import itertools
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from multus_py.agent import spawner_process
from multus_py.agent.spawner_process import MESSAGE
from multus_py.cni.call import INPUT_LIMIT
from multus_py.cni.errors import CniError, Code
from multus_py.executables import Ended, candidates, not_started, too_slow

_CHUNK = 65536
_LOOK = 0.5  # seconds between two looks whether the other process is still there


class Spawner:
    """`Executables` in another process. *chroot* is the folder in which executables are found and run, "" for none.

    *environment* is what executables get beside the call's own; *slots* bounds how many run at once; *awaited* is
    called by a thread before it waits for one.
    """

    def __init__(
        self,
        chroot: str = "",
        environment: Mapping[str, str] | None = None,
        slots: int = 32,
        awaited: Callable[[], object] = lambda: None,
    ) -> None:
        self._chroot = chroot
        self._environment = dict(environment or {})
        self._slots = threading.BoundedSemaphore(slots)
        self._awaited = awaited
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._line: socket.socket | None = None

    def find(self, name: str, folders: tuple[str, ...]) -> Path | None:
        """Return the first regular file of that name in *folders*, as seen inside the chroot."""
        sought = candidates(name, folders)
        if not sought:
            return None
        found = self._ask({"find": name, "in": [str(path.parent) for path in sought]}).result().get("path")
        return Path(found) if found else None

    def run(self, path: Path, env: Mapping[str, str], stdin: bytes, timeout: float) -> Ended:
        """Run it to its end; code 5 when it cannot be started, 11 when *timeout* seconds were not enough."""
        self._awaited()
        with self._slots, contextlib.ExitStack() as ends:
            pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
            theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
            ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
            open_ends = {*theirs, *ours}
            ends.callback(_close, open_ends)
            number, exit_told = self._start(path, env, theirs)
            for end in theirs:
                os.close(end)
                open_ends.remove(end)
            talk = _Talk(ours, stdin, open_ends, time.monotonic() + timeout, exit_told)
            if not talk.finished() or not _told_within(exit_told, talk.end):
                self._send({"id": number, "kill": True})
                exit_told.result()
                raise too_slow(path, timeout)
            status = exit_told.result()
            if "errno" in status:
                raise not_started(path, OSError(status["errno"], ""))
            return Ended(os.waitstatus_to_exitcode(status["status"]), bytes(talk.said[0]), bytes(talk.said[1]))

    def close(self) -> None:
        """End the process and everything that it started."""
        with self._lock:
            line, self._line = self._line, None
        if line:
            line.shutdown(socket.SHUT_RDWR)

    def _start(self, path: Path, env: Mapping[str, str], ends: list[int]) -> tuple[int, Future[dict[str, Any]]]:
        number = next(self._numbers)
        message = {"id": number, "run": str(path), "env": {**self._environment, **env}}
        return number, self._ask(message, ends)

    def _ask(self, message: dict[str, Any], ends: list[int] | None = None) -> Future[dict[str, Any]]:
        answer: Future[dict[str, Any]] = Future()
        number = message.setdefault("id", next(self._numbers))
        with self._lock:
            self._waiting[number] = answer
        try:
            self._send(message, ends or [])
        except OSError as cause:
            self._waiting.pop(number, None)
            raise CniError(Code.TRY_AGAIN, f"the process that starts executables does not answer: {cause}") from cause
        return answer

    def _send(self, message: dict[str, Any], ends: list[int] | None = None) -> None:
        body = json.dumps(message).encode()
        if len(body) > MESSAGE:
            raise CniError(Code.INVALID_ENVIRONMENT, f"the environment of {message.get('run')} is too large")
        socket.send_fds(self._connected(), [body], ends or [])

    def _connected(self) -> socket.socket:
        with self._lock:
            if self._line is None:
                self._line = self._launched()
            return self._line

    def _launched(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.set_inheritable(True)
        program = [sys.executable, "-ISB", spawner_process.__file__, str(theirs.fileno()), self._chroot]
        os.posix_spawn(sys.executable, program, {"PATH": os.defpath}, setsigmask=[])
        theirs.close()
        threading.Thread(target=self._listen, args=(ours,), name="spawner", daemon=True).start()
        return ours

    def _listen(self, line: socket.socket) -> None:
        while True:
            try:
                body = line.recv(MESSAGE)
            except OSError:
                body = b""
            if not body:
                break
            told = json.loads(body)
            if answer := self._waiting.pop(told["id"], None):
                answer.set_result(told)
        with self._lock:  # the process is gone: whoever waits is told, the next call starts another
            self._line = None if self._line is line else self._line
            lost, self._waiting = self._waiting, {}
        for answer in lost.values():
            answer.set_exception(CniError(Code.TRY_AGAIN, "the process that starts executables has ended"))
        line.close()


def _close(ends: set[int]) -> None:
    for end in ends:
        os.close(end)


class _Talk:
    """Standard input in, standard output and error out, until both are closed or the time is over."""

    def __init__(
        self, ends: list[int], stdin: bytes, open_ends: set[int], end: float, exit_told: Future[dict[str, Any]]
    ) -> None:
        self._ends, self._open, self.end, self._exit_told = ends, open_ends, end, exit_told
        self._left = memoryview(stdin)
        self.said: tuple[bytearray, bytearray] = (bytearray(), bytearray())

    def finished(self) -> bool:
        """Talk to the end; False when the time was over before."""
        writer, *readers = self._ends
        os.set_blocking(writer, False)
        poll = select.poll()
        poll.register(writer, select.POLLOUT)
        for reader in readers:
            poll.register(reader, select.POLLIN)
        while any(reader in self._open for reader in readers):
            pause = self.end - time.monotonic()
            if pause <= 0:
                return False
            if self._exit_told.done():
                self._exit_told.result()  # raises when the process that started it is lost
            for end, _ in poll.poll(min(pause, _LOOK) * 1000):
                if self._write(end) if end == writer else self._read(end, self.said[readers.index(end)]):
                    poll.unregister(end)
                    os.close(end)
                    self._open.discard(end)
        return True

    def _write(self, end: int) -> bool:
        try:
            self._left = self._left[os.write(end, self._left[:_CHUNK]) :]
        except BrokenPipeError:
            return True  # it does not read its input: its own business
        return not self._left

    @staticmethod
    def _read(end: int, said: bytearray) -> bool:
        chunk = os.read(end, _CHUNK)
        if len(said) <= INPUT_LIMIT:
            said += chunk
        return not chunk


def _told_within(answer: Future[dict[str, Any]], end: float) -> bool:
    try:
        answer.result(max(0.0, end - time.monotonic()))
    except TimeoutError:
        return False
    return True
