# SPDX-License-Identifier: Apache-2.0
"""The journal: what was planned for each sandbox, on disk before it is attached, so that DEL finds it.

One file per sandbox, `<cniDir>/attachments/<container id>@<interface>`. It only grows, line by line: an entry, or the
progress of ADD since the entry before. The last complete entry counts, and what follows it. The file is its own lock
(flock): ADD and DEL of one sandbox exclude each other, and the kernel releases the lock of a killed process.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from multus_py.cni.errors import CniError, Code
from multus_py.kernel import small_files
from multus_py.plan.attachment import Attachment
from multus_py.state.journal_entry import (
    DamagedEntry,
    Entry,
    Progress,
    complete_progress,
    decode,
    encode,
    encode_progress,
)

log = logging.getLogger("multus_py")

_DAMAGED = ".damaged"
_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW  # a dangling link: exists for O_EXCL, not for open


@dataclass
class SandboxFile:
    """The journal file of one sandbox, locked by this process. *entry* is its content, None when it has none."""

    path: Path
    descriptor: int
    entry: Entry | None = None
    damaged: bool = False
    unreadable: bool = False  # *damaged* because of a read error: its content may be intact
    _end: int = 0  # of the last complete line
    _torn: bool = False  # an incomplete line follows it
    _unwritten: dict[str, Progress] = field(default_factory=dict)

    def load(self) -> None:
        """Read the file; mark it *damaged* when it is corrupt or cannot be read."""
        try:
            text = self._text()
            self._end = text.rfind(b"\n") + 1
            self._torn = self._end < len(text)
            self.entry = decode(text)
        except (DamagedEntry, OSError) as error:
            log.warning("journal %s: %s", self.path.name, error)
            self.damaged, self.unreadable = True, isinstance(error, OSError)
            self._end, self._torn = 0, True

    def _text(self) -> bytes:
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)

    def write(self, entry: Entry) -> None:
        """Append *entry*, with one fsync. Until it is complete nothing is attached: the entry before it counts."""
        try:
            self._append(encode(entry))
            os.fsync(self.descriptor)
        except OSError as cause:
            raise CniError(
                Code.IO, f"cannot write the journal {self.path}: {cause.strerror}", "nothing was attached"
            ) from cause
        self.entry, self.damaged = entry, False

    def _append(self, line: bytes) -> None:
        """Write a line after the last complete one; remove first what an interrupted write left there."""
        if self._torn:
            os.ftruncate(self.descriptor, self._end)
        self._torn = True
        written = 0
        while written < len(line):  # a disk that fills up accepts a part first, then fails
            written += os.pwrite(self.descriptor, line[written:], self._end + written)
        self._end, self._torn = self._end + len(line), False

    def record_progress(self, attachment: Attachment, begun: int, done: int) -> None:
        """Write the progress of a chain while a plugin is begun; keep it for the next write when none is."""
        (self.write_progress if begun > done else self.set_progress)(attachment, begun, done)

    def write_progress(self, attachment: Attachment, begun: int, done: int) -> None:
        """Append the progress of ADD in a chain, before the next plugin is begun.

        Without fsync: a power loss that removes the line removes the sandbox, too, and DEL then runs every plugin.
        """
        self._append_progress({**self._unwritten, attachment.ifname: Progress(begun, done)})

    def set_progress(self, attachment: Attachment, begun: int, done: int) -> None:
        """Set the progress of ADD in a chain; it is written together with the next one."""
        self._unwritten[attachment.ifname] = Progress(begun, done)
        if self.entry:
            self.entry = replace(self.entry, progress={**self.entry.progress, **self._unwritten})

    def write_complete(self) -> None:
        """Append that ADD completed; on a full disk nothing, the cached results prove it as well."""
        if self.entry:
            with suppress(CniError):
                self._append_progress({item.ifname: complete_progress(item) for item in self.entry.attachments})

    def _append_progress(self, progress: Mapping[str, Progress]) -> None:
        try:
            self._append(encode_progress(progress))
        except OSError as cause:
            raise CniError(Code.IO, f"cannot write the journal {self.path}: {cause.strerror}") from cause
        self._unwritten = {}
        if self.entry:
            self.entry = replace(self.entry, progress={**self.entry.progress, **progress})

    def save_damaged_copy(self) -> None:
        """Copy a damaged file to `….damaged`, which stays until DEL succeeds; a full disk gets no copy."""
        with suppress(OSError):
            self.path.with_name(self.path.name + _DAMAGED).write_bytes(self._text())

    def clear(self) -> None:
        """Empty the file: DEL succeeded. `lock_sandbox` removes it before it releases the lock."""
        # Not here: another process could create the file anew, and the unlink at the end would remove that one.
        try:
            os.ftruncate(self.descriptor, 0)
            self.path.with_name(self.path.name + _DAMAGED).unlink(missing_ok=True)
        except OSError as cause:
            raise CniError(Code.IO, f"cannot clear the journal {self.path}: {cause.strerror}") from cause
        self.entry, self.damaged, self._end, self._torn = None, False, 0, False


@dataclass(frozen=True)
class Journal:
    """The folder of the journal files."""

    folder: Path

    @contextmanager
    def lock_sandbox(self, container_id: str, ifname: str, *, wait: bool = True) -> Iterator[SandboxFile]:
        """Lock a sandbox by its file; with `wait=False` raise code 11 when another process has the lock."""
        path = self.folder / f"{container_id}@{ifname}"
        try:
            descriptor, created = _open_locked(path, wait)
        except BlockingIOError as cause:
            raise CniError(Code.TRY_AGAIN, f"sandbox {path.name} is being worked on by another process") from cause
        except OSError as cause:
            raise CniError(Code.IO, f"cannot open the journal {path}: {cause.strerror}") from cause
        file = SandboxFile(path, descriptor)
        try:
            if not created:
                file.load()
            yield file
        finally:
            try:
                if file.entry is None and not file.damaged:
                    with suppress(OSError):  # an empty file counts as damaged: the next DEL removes it
                        file.path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)

    def read(self, container_id: str, ifname: str) -> Entry:
        """Return the entry of a sandbox, without its lock; `DamagedEntry` when the file is corrupt."""
        try:
            return decode(small_files.read(self.folder / f"{container_id}@{ifname}"))
        except OSError as cause:
            raise CniError(Code.IO, f"cannot read the journal: {cause}") from cause

    def sandboxes(self) -> list[tuple[str, str]]:
        """Return (container id, interface) of every file, damaged ones included."""
        try:
            found = sorted(name for name in os.listdir(self.folder) if not name.endswith(_DAMAGED))  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as cause:
            raise CniError(Code.IO, f"cannot read the journal {self.folder}: {cause.strerror}") from cause
        pairs = [name.split("@", 1) for name in found if "@" in name]
        return [(container_id, ifname) for container_id, ifname in pairs]

    @contextmanager
    def lock_for_attach(self) -> Iterator[None]:
        """Lock the folder shared: GC of a network's plugins waits, as its list lacks what is being attached."""
        descriptor = self._open_folder()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def lock_for_gc(self, keep_waiting: Callable[[], bool]) -> Iterator[None]:
        """Lock the folder exclusively: every ADD waits. Code 11 when *keep_waiting* returns false before it is free."""
        descriptor = self._open_folder()
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as cause:
                    if not keep_waiting():
                        raise CniError(
                            Code.TRY_AGAIN, "pods are being attached all the time", "it is tried again"
                        ) from cause
            yield
        finally:
            os.close(descriptor)

    def _open_folder(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            try:
                return os.open(self.folder, flags)
            except FileNotFoundError:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                return os.open(self.folder, flags)
        except OSError as cause:
            raise CniError(Code.IO, f"cannot open the journal {self.folder}: {cause.strerror}") from cause


def _open_locked(path: Path, wait: bool) -> tuple[int, bool]:
    """Open and lock *path*; return the file descriptor, and whether the file was created."""
    while True:
        try:
            descriptor, created = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            continue
        except FileExistsError:
            try:
                descriptor, created = os.open(path, _OPEN_FLAGS), False
            except FileNotFoundError:
                continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The process that had the lock may have removed the file meanwhile: then start again.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, created
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
