# SPDX-License-Identifier: Apache-2.0
"""One network's reservations on disk, in the layout of the host-local executable: both may use one pool.

    <dataDir>/<network>/
        192.0.2.7             who has it: "<container id>\\r\\n<interface>"
        last_reserved_ip.0    where the search in range set 0 goes on
        lock                  held (flock) by whoever reads or writes the others

The file system is the lock and the record. Everything here holds the lock.
"""

import errno
import fcntl
import ipaddress
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from multus_py.cni.errors import CniError, Code
from multus_py.cni.result import Address

_LAST = "last_reserved_ip."
_NEW = ".reserving"  # what is being written: no address, so the executable takes it for nothing
_NOT_ADDRESSES = (".", _LAST, "lock")
_IN_THE_WAY = "nobody\n"  # who has an address under whose name no regular file lies: no owner reads like this
_OWNER_MAX = 4096  # bytes: a container id and an interface have far less
# By a folder's device and inode: when it last changed under our hands, and who had which address then.
_seen: dict[tuple[int, int], tuple[int, dict[str, str]]] = {}


class Pool:
    """The reservations of one network, locked: see `opened`."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        now = os.fstat(folder)
        self._id = (now.st_dev, now.st_ino)
        changed, known = _seen.get(self._id, (0, {}))
        self._known = known if changed == now.st_mtime_ns else None

    def reserve(self, wanted: Address, owner: str) -> bool:
        """Write that *owner* has *wanted*; False when somebody else has it.

        The file gets its name when it is whole, so that a process killed at any point leaves no address without owner.
        """
        name = str(wanted)
        if self._read(name):
            return False
        self._write(_NEW, owner)
        os.rename(_NEW, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        if self._known is not None:
            self._known[name] = owner
        return True

    def holders(self) -> dict[str, str]:
        """Return `owners` as this process knows them, without reading every file again for each pod.

        They are read anew when another process changed the folder since: its time of change or its names say so.
        """
        if self._known is None or self._known.keys() != set(self._names()):
            self._known = self.owners()
        return dict(self._known)

    def owners(self) -> dict[str, str]:
        """Return who has which address by its file's name; "" where a killed process left nothing in the file."""
        return {name: self._read(name) for name in self._names()}

    def release(self, owner: str, hints: Iterable[Address] = (), enough: int = 0) -> int:
        """Free the addresses of *owner*; return how many.

        Those of *hints* are looked at first. If that frees *enough* of them, more than none, the rest is not read.
        """
        freed = sum(self._free(str(hint), owner) for hint in hints)
        if enough and freed >= enough:
            return freed
        mine = [name for name, holder in self.owners().items() if holder == owner]
        return freed + sum(self._free(name, owner) for name in mine)

    def last(self, n: int) -> Address | None:
        """Return where the last search in range set *n* ended, None when nothing readable says."""
        return _address(self._read(f"{_LAST}{n}"))

    def remember(self, n: int, given: Address) -> None:
        """Write where the search in range set *n* ended; whoever is killed here makes the next begin in front."""
        self._write(f"{_LAST}{n}", str(given))

    def leave(self) -> None:
        """Remember for the next time what is known, as the last deed before the lock is let go."""
        if self._known is None:
            _seen.pop(self._id, None)
        else:
            _seen[self._id] = (os.fstat(self._folder).st_mtime_ns, self._known)

    def _names(self) -> list[str]:
        files = os.listdir(self._folder)  # noqa: PTH208  pathlib knows no open folder, and would join each path
        return [name for name in files if not name.startswith(_NOT_ADDRESSES)]

    def _free(self, name: str, owner: str) -> bool:
        if self._read(name) != owner:
            return False
        os.unlink(name, dir_fd=self._folder)
        if self._known is not None:
            self._known.pop(name, None)
        return True

    def _read(self, name: str) -> str:
        """Return who is written in a file; "" when it is missing or empty."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = os.open(name, flags, dir_fd=self._folder)
        except FileNotFoundError:
            return ""
        except OSError as cause:
            if cause.errno in (errno.ELOOP, errno.ENXIO):
                return _IN_THE_WAY
            raise
        try:
            text = os.read(file, _OWNER_MAX).decode(errors="replace").strip()
            return text or ("" if stat.S_ISREG(os.fstat(file).st_mode) else _IN_THE_WAY)
        except IsADirectoryError:
            return _IN_THE_WAY
        finally:
            os.close(file)

    def _write(self, name: str, text: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(name, flags, 0o600, dir_fd=self._folder)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


@contextmanager
def opened(data_dir: Path, network: str) -> Iterator[Pool]:
    """Lock the pool of *network* for the time of the block; its folder is made. Code 5 when the disk will not."""
    path = data_dir / network
    try:
        folder = _folder(path)
    except OSError as cause:
        raise _disk(path, cause) from cause
    try:
        lock = os.open("lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = Pool(folder)
            try:
                yield files
            finally:
                files.leave()
        finally:
            os.close(lock)
    except OSError as cause:
        raise _disk(path, cause) from cause
    finally:
        os.close(folder)


def _folder(path: Path) -> int:
    """Open the folder of a network; made when it is missing, once in its life."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        return os.open(path, flags)


def exists(data_dir: Path, network: str) -> bool:
    """Tell whether anything was ever reserved for *network*."""
    return (data_dir / network).is_dir()


def owner(container_id: str, ifname: str) -> str:
    """Return what stands in the file of an address."""
    return f"{container_id.strip()}\r\n{ifname}"


def _address(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _disk(path: Path, cause: OSError) -> CniError:
    return CniError(Code.IO, f"cannot use the address pool {path}: {cause.strerror or cause}", "see 'dataDir'")
