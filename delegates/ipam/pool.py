# SPDX-License-Identifier: Apache-2.0
"""One network's reservations on disk, in the layout of the host-local executable: both may use one pool.

    <dataDir>/<network>/
        192.0.2.7             the owner: "<container id>\\r\\n<interface>"
        last_reserved_ip.0    where the search in range set 0 continues
        lock                  flock: held while the others are read or written

Every function here needs the lock.
"""

import errno
import fcntl
import ipaddress
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from multus_py.cni.errors import CniError, Code
from multus_py.cni.result import Address

_LAST = "last_reserved_ip."
_NEW = ".reserving"  # a file that is being written: its name is no address, so the executable ignores it
_NOT_ADDRESSES = (".", _LAST, "lock")
_IN_THE_WAY = "nobody\n"  # the owner of an address whose name is no regular file: no real owner has this form
# The config names the folder: symbolic links in it are not followed, and named pipes do not block.
_PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_OWNER_MAX = 4096  # bytes: a container id and an interface have far less
# Folder (device and inode) -> file of an address -> its inode and the owner that was read.
_seen: dict[tuple[int, int], dict[str, tuple[int, str]]] = {}  # at most `_FOLDERS`, the most recently used last
_FOLDERS = 256
_remembering = threading.Lock()


class Pool:
    """The reservations of one network, locked: see `opened`."""

    def __init__(self, folder: int) -> None:
        self._folder = folder

    def reserve(self, wanted: Address, owner: str) -> bool:
        """Reserve *wanted* for *owner*; False when another owner has it.

        The file is renamed when it is complete, so that a killed process leaves no address without owner.
        """
        name = str(wanted)
        if self.holder(name):
            return False
        self._write(_NEW, owner)
        os.rename(_NEW, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        return True

    def holders(self) -> dict[str, str]:
        """Return `owners` without reading every file again: a file with the same inode is taken for unchanged.

        Where a file system reuses the inode for the next file of a name, the owner may be outdated: `holder` reads it.
        """
        status = os.fstat(self._folder)
        folder = (status.st_dev, status.st_ino)
        before, now = _seen.get(folder, {}), {}
        for name, inode in self._files():
            known = before.get(name)
            now[name] = known if known and known[0] == inode and known[1] else (inode, self.holder(name))
        with _remembering:
            _seen.pop(folder, None)
            _seen[folder] = now
            if len(_seen) > _FOLDERS:
                del _seen[next(iter(_seen))]
        return {name: owner for name, (_, owner) in now.items()}

    def owners(self) -> dict[str, str]:
        """Return who has which address by its file's name; "" where a killed process left nothing in the file."""
        return {name: self.holder(name) for name, _ in self._files()}

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
        """Return where the last search in range set *n* ended, None when it cannot be read."""
        return _address(self.holder(f"{_LAST}{n}"))

    def set_last(self, n: int, given: Address) -> None:
        """Write where the search in range set *n* ended; after a kill here the next search starts at the beginning."""
        # Overwritten, not truncated: ext4 writes a truncated file to disk at once (ext4(5), auto_da_alloc), which takes
        # longer than the rest of the reservation.
        self._write(f"{_LAST}{n}", str(given), anew=False)

    def _files(self) -> list[tuple[str, int]]:
        """Return the name and the inode of every address's file."""
        with os.scandir(self._folder) as found:
            return [(entry.name, entry.inode()) for entry in found if not entry.name.startswith(_NOT_ADDRESSES)]

    def _free(self, name: str, owner: str) -> bool:
        if self.holder(name) != owner:
            return False
        os.unlink(name, dir_fd=self._folder)
        return True

    def holder(self, name: str) -> str:
        """Return the owner in the file of an address; "" when the file does not exist or is empty."""
        flags = os.O_RDONLY | _PLAIN
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

    def _write(self, name: str, text: str, *, anew: bool = True) -> None:
        flags = os.O_WRONLY | os.O_CREAT | _PLAIN | (os.O_TRUNC if anew else 0)
        file = os.open(name, flags, 0o600, dir_fd=self._folder)
        try:
            written = os.write(file, text.encode())
            if not anew:
                os.ftruncate(file, written)
        finally:
            os.close(file)


@contextmanager
def locked(data_dir: Path, network: str) -> Iterator[Pool]:
    """Lock the pool of *network* for the time of the block; its folder is created. Code 5 for an I/O error."""
    path = data_dir / network
    try:
        folder = _folder(path)
    except OSError as cause:
        raise _disk(path, cause) from cause
    try:
        lock = os.open("lock", os.O_RDONLY | os.O_CREAT | _PLAIN, 0o600, dir_fd=folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Pool(folder)
        finally:
            os.close(lock)
    except OSError as cause:
        raise _disk(path, cause) from cause
    finally:
        os.close(folder)


def _folder(path: Path) -> int:
    """Open the folder of a network; it is created when it does not exist."""
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
    """Return the content of an address's file."""
    return f"{container_id.strip()}\r\n{ifname}"


def _address(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _disk(path: Path, cause: OSError) -> CniError:
    return CniError(Code.IO, f"cannot use the address pool {path}: {cause.strerror or cause}", "see 'dataDir'")
