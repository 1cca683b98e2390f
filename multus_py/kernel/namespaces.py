# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: run a function in one, create and remove them, read and write their sysctls."""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from multus_py.kernel import small_files
from multus_py.kernel.errors import NetlinkError, NoNamespace

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MNT_DETACH = 0x1000, 2
_OWN_NAMESPACE = "/proc/thread-self/ns/net"


def run_in(netns: str | None, function: Callable[[], T]) -> T:
    """Run *function* in the network namespace *netns*, then restore the original one. With None nothing is entered.

    Only the calling thread changes its namespace (setns(2)). Its /proc/sys/net is that of *netns*, its files stay
    the same. A separate thread would cost 0.3 ms each time, a dozen times a pod.
    """
    if not netns:
        return function()
    file = open_file(netns)
    try:
        original = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(file, netns)
            try:
                return function()
            finally:
                _restore(original)
        finally:
            os.close(original)
    finally:
        os.close(file)


def create(path: str) -> None:
    """Create a network namespace that exists as long as the file *path*, as `ip netns add` does; its lo stays down."""
    file = Path(path)
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    except OSError as cause:
        raise NetlinkError.of(f"make the namespace {path}", cause) from cause
    problems: list[OSError] = []

    def unshare() -> None:
        try:
            _libc("unshare", _CLONE_NEWNET)
            _libc("mount", _OWN_NAMESPACE.encode(), os.fsencode(path), b"none", _MS_BIND, None)
        except OSError as cause:
            problems.append(cause)

    thread = threading.Thread(target=unshare, name=f"create {path}")
    thread.start()
    thread.join()
    if problems:
        file.unlink(missing_ok=True)
        raise NetlinkError.of(f"make the namespace {path}", problems[0]) from problems[0]


def remove(path: str) -> None:
    """Remove the name of a namespace, as `ip netns del` does; a name that does not exist is success."""
    try:
        # EINVAL: the file exists and nothing is mounted on it.
        with suppress(FileNotFoundError):
            try:
                _libc("umount2", os.fsencode(path), _MNT_DETACH)
            except OSError as cause:
                if cause.errno != errno.EINVAL:
                    raise
            Path(path).unlink(missing_ok=True)
    except OSError as cause:
        raise NetlinkError.of(f"remove the namespace {path}", cause) from cause


def is_own(netns: str) -> bool:
    """Tell whether the path *netns* is the calling thread's own network namespace; False where there is none."""
    try:
        return bool(netns) and os.path.samestat(os.stat(netns), os.stat(_OWN_NAMESPACE))  # noqa: PTH116  Path.stat is slower
    except OSError:
        return False


def read_sysctl(name: str) -> str | None:
    """Return the content of /proc/sys/*name* in the calling thread's namespace, None when it does not exist."""
    try:
        return small_files.read(f"/proc/sys/{name}").decode().strip()
    except OSError:
        return None


def write_sysctl(name: str, value: str) -> bool:
    """Write /proc/sys/*name* in the calling thread's namespace; False when it does not exist or cannot be opened."""
    try:
        file = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(file, value.encode())
    except OSError as cause:
        raise NetlinkError.of(f"set {name} to {value}", cause) from cause
    finally:
        os.close(file)
    return True


def open_file(path: str) -> int:
    """Open the file of the namespace at *path*; the caller closes it."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as cause:
        error = NoNamespace if cause.errno in (errno.ENOENT, errno.ENOTDIR) else NetlinkError
        raise error.of(f"open the network namespace {path}", cause) from cause


def _enter(file: int, path: str) -> None:
    try:
        _libc("setns", file, _CLONE_NEWNET)
    except OSError as cause:
        # EINVAL: the file is no network namespace. ENOTTY and EBADF never come from a descriptor that we opened.
        error = NoNamespace if cause.errno == errno.EINVAL else NetlinkError
        raise error.of(f"enter the network namespace {path}", cause) from cause


def _restore(original: int) -> None:
    try:
        _libc("setns", original, _CLONE_NEWNET)
    except OSError:
        os.abort()  # a thread that stays in a pod's namespace would attach the next pod's networks there


def _libc(verb: str, *args: Any) -> None:
    """Call the C library: Python has setns and unshare from 3.12 on, mount never."""
    import ctypes  # 3 ms that only those pay who enter a namespace

    if getattr(_library(), verb)(*args):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def _library() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
