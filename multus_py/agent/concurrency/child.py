# SPDX-License-Identifier: Apache-2.0
"""A child process of the daemon, connected by a socket; every wait for it is bounded.

The death of the process closes its end of the socket, unless another process holds that descriptor, too: so no
descriptor of the daemon is inheritable at any time.
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

_LINE, _OTHER = 3, 4  # the descriptor of the socket in the process: one that differs from ours, see `_spawn`
_GRACE = 2.0  # seconds for a killed process to end


class Child:
    """A Python process with *arguments*, in which `{line}` is replaced by the number of its descriptor.

    It leads a process group of its own. A message that the socket does not accept within *send_timeout* seconds is
    `BlockingIOError`.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], send_timeout: int) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", send_timeout, 0))
            with theirs:
                self._pid = _spawn(arguments, environment, theirs.fileno())
            self._pidfd = os.pidfd_open(self._pid)
        except BaseException:
            self.line.close()
            raise
        self._lock = threading.Lock()
        self._reaped = False

    def close_input(self) -> None:
        """Send no further message: it ends after its current task."""
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_WR)

    def ended(self, seconds: float) -> bool:
        """Wait *seconds* for its end and reap it; False when it still runs."""
        with self._lock:
            if self._reaped:
                return True
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return False
            self._kill(signal.SIGKILL)  # its remaining forks
            with suppress(ChildProcessError):  # process 1 reaps its children elsewhere
                os.waitpid(self._pid, os.WNOHANG)
            os.close(self._pidfd)
            self._reaped = True
            return True

    def end(self, *, with_children: bool = False) -> None:
        """Kill it and its forks, and *with_children* the processes that it started in sessions of their own."""
        with self._lock:
            if with_children and not self._reaped:
                self._kill(signal.SIGSTOP)  # so that it reaps none: their ids stay theirs
                for one in _children(self._pid):
                    with suppress(ProcessLookupError):
                        os.killpg(one, signal.SIGKILL)
            if not self._reaped:
                self._kill(signal.SIGKILL)
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)
        self.ended(_GRACE)

    def _kill(self, number: int) -> None:
        """Send a signal to the process group, as long as its id is that of our process."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, 0)  # fails when it was reaped: the id may be in use again
            os.killpg(self._pid, number)


def _spawn(arguments: Sequence[str], environment: Mapping[str, str], line: int) -> int:
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
    """Return the children of the one thread of *pid* that it did not reap; none where the kernel does not list them."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
