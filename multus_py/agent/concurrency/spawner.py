# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the process that starts executables (`spawner_process`): the daemon itself never forks."""

import contextlib
import itertools
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from multus_py.agent.concurrency import spawner_process
from multus_py.agent.concurrency.child import Child
from multus_py.agent.concurrency.spawner_process import MESSAGE
from multus_py.cni.call import INPUT_LIMIT
from multus_py.cni.errors import CniError, Code
from multus_py.cni.executables import ProcessResult, candidate_paths, retry_while_busy, timeout_error

_CHUNK = 65536
_CHECK_SECONDS = 0.5  # seconds between two checks that the process still runs
_END_SECONDS = 2.0  # seconds for it to end by itself


class Spawner:
    """`Executables` in another process. *chroot* is the folder in which executables are found and run, "" for none.

    *environment* is added to that of the call; *slots* bounds how many run at once; *awaited* is
    called by a thread before it waits for one. A process that dies, or does not reply within *reply_timeout* seconds,
    is code 11 for its callers, and a new one is started for the next call.
    """

    def __init__(
        self,
        chroot: str = "",
        environment: Mapping[str, str] | None = None,
        slots: int = 32,
        awaited: Callable[[], object] = lambda: None,
        reply_timeout: int = 30,
    ) -> None:
        self._chroot = chroot
        self._environment = dict(environment or {})
        self._slots = threading.BoundedSemaphore(slots)
        self._awaited = awaited
        self._reply_timeout = reply_timeout
        self._lock = threading.Lock()
        self._line: _Line | None = None

    def find(self, name: str, folders: tuple[str, ...]) -> Path | None:
        """Return the first regular file of that name in *folders*, as seen inside the chroot."""
        sought = candidate_paths(name, folders)
        if not sought:
            return None
        found = self._connected().answer({"find": name, "in": [str(path.parent) for path in sought]}).get("path")
        return Path(found) if found else None

    def run(self, path: Path, env: Mapping[str, str], stdin: bytes, timeout: float) -> ProcessResult:
        """Run it to its end; code 5 when it cannot be started, 11 when *timeout* seconds were not enough."""
        self._awaited()
        with self._slots:
            return retry_while_busy(path, lambda: self._run(path, env, stdin, timeout), time.sleep)

    def close(self) -> None:
        """End the process and everything that it started."""
        with self._lock:
            line, self._line = self._line, None
        if line:
            line.close()

    def _run(self, path: Path, env: Mapping[str, str], stdin: bytes, timeout: float) -> ProcessResult:
        """Run it; `OSError` when it cannot be started."""
        with contextlib.ExitStack() as ends:
            open_ends: set[int] = set()
            ends.callback(_close, open_ends)
            ours, theirs = _pipes(open_ends)
            line = self._connected()
            number, exit_told = line.ask({"run": str(path), "env": {**self._environment, **env}}, theirs)
            for end in theirs:
                os.close(end)
                open_ends.remove(end)
            talk = _Talk(ours, stdin, open_ends, time.monotonic() + timeout, exit_told)
            if not talk.finished() or not _told_within(exit_told, talk.end):
                line.kill(number, exit_told)
                raise timeout_error(path, timeout)
            status = exit_told.result()
            if "errno" in status:
                raise OSError(status["errno"], "")
            return ProcessResult(
                os.waitstatus_to_exitcode(status["status"]), bytes(talk.output[0]), bytes(talk.output[1])
            )

    def _connected(self) -> "_Line":
        with self._lock:
            if self._line is None or self._line.lost:
                try:
                    self._line = _Line(self._chroot, self._reply_timeout)
                except OSError as cause:
                    raise CniError(
                        Code.TRY_AGAIN, f"the process that starts executables cannot be started: {cause}"
                    ) from cause
            return self._line


class _Line:
    """One process that starts executables, and the callers that wait for its replies."""

    def __init__(self, chroot: str, reply_timeout: int) -> None:
        self._reply_timeout = reply_timeout
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self.lost = False
        program = ["-ISB", spawner_process.__file__, "{line}", chroot]
        self._child = Child(program, {"PATH": os.defpath}, reply_timeout)
        threading.Thread(target=self._listen, name="spawner", daemon=True).start()

    def ask(self, message: dict[str, Any], ends: list[int]) -> tuple[int, Future[dict[str, Any]]]:
        """Send a message and descriptors; return its number, and the answer that will come."""
        number, answer = next(self._numbers), Future[dict[str, Any]]()
        with self._lock:
            if self.lost:
                raise _ended()
            self._waiting[number] = answer
        try:
            self._send({**message, "id": number}, ends)
        except CniError:
            self._waiting.pop(number, None)
            raise
        return number, answer

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Ask what the process answers at once."""
        _, reply = self.ask(message, [])
        try:
            return reply.result(self._reply_timeout)
        except TimeoutError as cause:
            raise self._hangs() from cause

    def kill(self, number: int, exit_told: Future[dict[str, Any]]) -> None:
        """Have an executable ended; return when it is, or when the kernel does not let it end."""
        self._send({"id": number, "kill": True}, [])
        if not _told_within(exit_told, time.monotonic() + self._reply_timeout):
            self._waiting.pop(number, None)
            self.answer({"find": "", "in": []})  # raises when it is the process that hangs

    def close(self) -> None:
        """End the process and everything that it started."""
        self._child.close_input()
        if not self._child.ended(_END_SECONDS):
            self._child.end(with_children=True)

    def _send(self, message: dict[str, Any], ends: list[int]) -> None:
        body = json.dumps(message).encode()
        if len(body) > MESSAGE:
            raise CniError(Code.INVALID_ENVIRONMENT, f"the environment of {message.get('run')} is too large")
        try:
            socket.send_fds(self._child.line, [body], ends)
        except BlockingIOError as cause:
            raise self._hangs() from cause
        except OSError as cause:
            self.lost = True
            raise CniError(Code.TRY_AGAIN, f"the process that starts executables does not answer: {cause}") from cause

    def _hangs(self) -> CniError:
        """Kill the process with all that it started; return the error for its callers."""
        self.lost = True  # at once: who listens learns of the end a moment later
        self._child.end(with_children=True)
        return CniError(
            Code.TRY_AGAIN,
            f"the process that starts executables did not answer within {self._reply_timeout} s and was ended",
            "another one is started for the next call",
        )

    def _listen(self) -> None:
        line = self._child.line
        while True:
            try:
                body = line.recv(MESSAGE)
            except OSError:
                body = b""
            if not body:
                break
            reply = json.loads(body)
            if answer := self._waiting.pop(reply["id"], None):
                answer.set_result(reply)
        with self._lock:  # the process ended: its callers get an error, the next call starts a new one
            self.lost = True
            lost, self._waiting = self._waiting, {}
        for answer in lost.values():
            answer.set_exception(_ended())
        self._child.end()
        line.close()


def _ended() -> CniError:
    return CniError(Code.TRY_AGAIN, "the process that starts executables has ended")


def _pipes(open_ends: set[int]) -> tuple[list[int], list[int]]:
    """Open the pipes for standard input, output and error; return our ends and the executable's, noted each."""
    pairs = []
    for _ in range(3):
        pairs.append(os.pipe2(os.O_CLOEXEC))
        open_ends.update(pairs[-1])
    (stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr) = pairs
    return [to_stdin, from_stdout, from_stderr], [stdin, stdout, stderr]


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
        self.output: tuple[bytearray, bytearray] = (bytearray(), bytearray())

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
            for end, _ in poll.poll(min(pause, _CHECK_SECONDS) * 1000):
                if self._write(end) if end == writer else self._read(end, self.output[readers.index(end)]):
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
    def _read(end: int, output: bytearray) -> bool:
        chunk = os.read(end, _CHUNK)
        if len(output) <= INPUT_LIMIT:
            output += chunk
        return not chunk


def _told_within(answer: Future[dict[str, Any]], end: float) -> bool:
    try:
        answer.result(max(0.0, end - time.monotonic()))
    except TimeoutError:
        return False
    return True
