# SPDX-License-Identifier: Apache-2.0
"""A process that works for the daemon at the other end of a line, and whose end is never waited for without bound.

Whoever else holds the other end hides its death: no descriptor of the daemon is ever inheritable, not for a moment.
"""

import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_LINE, _OTHER = 3, 4  # the descriptor of the line in the process: one that differs from ours, see `_started`
_GRACE = 2.0  # seconds for a process that was killed to be gone


class Child:
    """A Python process with *arguments*, in which `{line}` stands for the number of its descriptor.

    It leads a process group of its own. A message that the line does not take within *patience* seconds is
    `BlockingIOError`.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], patience: int) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", patience, 0))
            with theirs:
                self._pid = _started(arguments, environment, theirs.fileno())
            self._door = os.pidfd_open(self._pid)
        except BaseException:
            self.line.close()
            raise
        self._lock = threading.Lock()
        self._over = False

    def hang_up(self) -> None:
        """Have it end when it has done what it is at: no further message comes."""
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_WR)

    def ended(self, seconds: float) -> bool:
        """Tell whether it ended within so many seconds; it is collected then."""
        with self._lock:
            if self._over:
                return True
            poll = select.poll()
            poll.register(self._door, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return False
            self._kill(signal.SIGKILL)  # copies of it that are left
            with suppress(ChildProcessError):  # as process 1 we reap everything elsewhere
                os.waitpid(self._pid, os.WNOHANG)
            os.close(self._door)
            self._over = True
            return True

    def end(self, *, with_children: bool = False) -> None:
        """End it and its copies, whatever they do, and *with_children* what it started in sessions of their own."""
        with self._lock:
            if with_children and not self._over:
                self._kill(signal.SIGSTOP)  # what it does not collect keeps its process id
                for one in _children(self._pid):
                    with suppress(ProcessLookupError):
                        os.killpg(one, signal.SIGKILL)
            if not self._over:
                self._kill(signal.SIGKILL)
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)
        self.ended(_GRACE)

    def _kill(self, number: int) -> None:
        """Send a signal to the process group, as long as its number is that of our process."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(
                self._door, 0
            )  # fails when somebody else collected it: the number may be another's
            os.killpg(self._pid, number)


def _started(arguments: Sequence[str], environment: Mapping[str, str], line: int) -> int:
    # A descriptor that is copied onto its own number stays closed at execve(2) where glibc is older than 2.29.
    number = _LINE if line != _LINE else _OTHER
    return os.posix_spawn(
        sys.executable,
        [sys.executable, *(argument.replace("{line}", str(number)) for argument in arguments)],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, line, number)],
        setpgroup=0,
        setsigmask=[],
    )


def _children(pid: int) -> list[int]:
    """Return what the one thread of *pid* started and did not collect; nothing where the kernel does not tell."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
