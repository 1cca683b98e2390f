# SPDX-License-Identifier: Apache-2.0
"""The program of the process that starts executables for the daemon: one thread, the standard library, nothing of ours.

It may be chrooted without anybody else noticing. When the daemon goes, it ends what it started and goes too.
"""

import contextlib
import errno
import json
import os
import select
import signal
import socket
import stat
import sys
from typing import Any

# We ignore some of these ourselves, and Python ignores SIGPIPE: what we start should not inherit that.
_DEFAULT = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE]
MESSAGE = 200_000  # bytes of one message: CNI's environment is far smaller, the config goes through a pipe


def _serve(line: socket.socket) -> None:
    """Start the requested executables and report how they ended, until the daemon closes the socket."""
    poll = select.poll()
    poll.register(line.fileno(), select.POLLIN)
    running: dict[int, tuple[int, int]] = {}  # pidfd -> (the daemon's number, pid)
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                number, pid = running.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                _tell(line, {"id": number, "status": os.waitpid(pid, 0)[1]})
                continue
            body, ends, _, _ = socket.recv_fds(line, MESSAGE, 3, socket.MSG_CMSG_CLOEXEC)
            if not body:
                for _, pid in running.values():
                    _kill(pid)
                return
            asked = json.loads(body)
            if "find" in asked:
                _tell(line, {"id": asked["id"], "path": _found(asked["find"], asked["in"])})
            elif "kill" in asked:
                for number, pid in running.values():
                    if number == asked["id"]:
                        _kill(pid)
            else:
                _begin(line, poll, running, asked, ends)


def _begin(line: socket.socket, poll: Any, running: dict[int, tuple[int, int]], asked: Any, ends: list[int]) -> None:
    try:
        pid = _spawn(asked["run"], asked["env"], ends)
    except OSError as cause:
        _tell(line, {"id": asked["id"], "errno": cause.errno})
    except ValueError:  # a zero byte, or what is no text: no process can have it, and this one has others to serve
        _tell(line, {"id": asked["id"], "errno": errno.EINVAL})
    else:
        descriptor = os.pidfd_open(pid)
        running[descriptor] = (asked["id"], pid)
        poll.register(descriptor, select.POLLIN)
    finally:
        for end in ends:
            os.close(end)


def _spawn(path: str, env: dict[str, str], ends: list[int]) -> int:
    """Start the executable in a session of its own; the daemon tries again what cannot be started now."""
    actions = [(os.POSIX_SPAWN_DUP2, end, n) for n, end in enumerate(ends)]
    return os.posix_spawn(path, [path], env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=_DEFAULT)


def _tell(line: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the daemon ended: the next read returns that
        line.send(json.dumps(message).encode())


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _found(name: str, folders: list[str]) -> str | None:
    """Return the first regular file *name* that is in one of the folders itself, whoever asks."""
    if not name or name.startswith(".") or "/" in name:
        return None
    return next(filter(_is_file, (f"{folder}/{name}" for folder in folders if folder.startswith("/"))), None)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116  this process has as few imports as it can
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    for _signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(_signal, signal.SIG_IGN)  # the daemon decides when to go
    if sys.argv[2]:
        os.chroot(sys.argv[2])
        os.chdir("/")
    os.set_inheritable(int(sys.argv[1]), False)  # what we start must not hold the line open
    _serve(socket.socket(fileno=int(sys.argv[1])))
