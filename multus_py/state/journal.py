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
_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW  # O_CREAT sees a dangling link, a plain open does not


@dataclass
class SandboxFile:
    """The journal's page of one sandbox, while this process holds its lock. *entry* is what stands on it."""

    path: Path
    descriptor: int
    entry: Entry | None = None
    damaged: bool = False
    unreadable: bool = False  # *damaged* because the disk did not give it: what stands there may be whole
    _end: int = 0  # of the last whole line
    _torn: bool = False  # something that is no whole line stands behind it
    _untold: dict[str, Progress] = field(default_factory=dict)

    def load(self) -> None:
        """Read what stands on the page; one that cannot be trusted, or not be read, is marked *damaged*."""
        try:
            text = self._text()
            self._end = text.rfind(b"\n") + 1
            self._torn = self._end < len(text)
            self.entry = decode(text)
        except (DamagedEntry, OSError) as trouble:
            log.warning("journal %s: %s", self.path.name, trouble)
            self.damaged, self.unreadable = True, isinstance(trouble, OSError)
            self._end, self._torn = 0, True

    def _text(self) -> bytes:
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)

    def write(self, entry: Entry) -> None:
        """Put *entry* on disk for good: one fsync. Of a torn line nothing was done yet: the one before counts."""
        try:
            self._append(encode(entry))
            os.fsync(self.descriptor)
        except OSError as cause:
            raise CniError(
                Code.IO, f"cannot write the journal {self.path}: {cause.strerror}", "nothing was attached"
            ) from cause
        self.entry, self.damaged = entry, False

    def _append(self, line: bytes) -> None:
        """Write a line behind the last whole one; what a killed or refused writer left there goes first."""
        if self._torn:
            os.ftruncate(self.descriptor, self._end)
        self._torn = True
        written = 0
        while written < len(line):  # a disk that fills up takes a part first, and says so at the next piece
            written += os.pwrite(self.descriptor, line[written:], self._end + written)
        self._end, self._torn = self._end + len(line), False

    def record_progress(self, attachment: Attachment, begun: int, done: int) -> None:
        """Write the progress of a chain while a plugin is begun; keep it for the next write when none is."""
        (self.write_progress if begun > done else self.set_progress)(attachment, begun, done)

    def write_progress(self, attachment: Attachment, begun: int, done: int) -> None:
        """Write down how far ADD came in a chain, before the next plugin is begun.

        Not brought to the disk: what a power loss takes away was of a sandbox that it takes away, too, and DEL then
        asks every plugin.
        """
        self._tell({**self._untold, attachment.ifname: Progress(begun, done)})

    def set_progress(self, attachment: Attachment, begun: int, done: int) -> None:
        """Keep how far ADD came in a chain, to be written down with what is begun next."""
        self._untold[attachment.ifname] = Progress(begun, done)
        if self.entry:
            self.entry = replace(self.entry, progress={**self.entry.progress, **self._untold})

    def write_complete(self) -> None:
        """Write down that all of the entry came to be; what a full disk does not take, the kept results say, too."""
        if self.entry:
            with suppress(CniError):
                self._tell({one.ifname: complete_progress(one) for one in self.entry.attachments})

    def _tell(self, progress: Mapping[str, Progress]) -> None:
        try:
            self._append(encode_progress(progress))
        except OSError as cause:
            raise CniError(Code.IO, f"cannot write the journal {self.path}: {cause.strerror}") from cause
        self._untold = {}
        if self.entry:
            self.entry = replace(self.entry, progress={**self.entry.progress, **progress})

    def save_damaged_copy(self) -> None:
        """Keep a copy of a damaged page beside it until the sandbox's DEL is confirmed, if the disk takes one."""
        with suppress(OSError):
            self.path.with_name(self.path.name + _DAMAGED).write_bytes(self._text())

    def clear(self) -> None:
        """Forget the sandbox: every delegate confirmed. The file goes when the page is closed."""
        # Not here: once its name is free another process has a page of its own under it, and the next unlink hits that.
        try:
            os.ftruncate(self.descriptor, 0)
            self.path.with_name(self.path.name + _DAMAGED).unlink(missing_ok=True)
        except OSError as cause:
            raise CniError(Code.IO, f"cannot clear the journal {self.path}: {cause.strerror}") from cause
        self.entry, self.damaged, self._end, self._torn = None, False, 0, False


@dataclass(frozen=True)
class Journal:
    """The folder of pages."""

    folder: Path

    @contextmanager
    def lock_sandbox(self, container_id: str, ifname: str, *, wait: bool = True) -> Iterator[SandboxFile]:
        """Open and lock the page of a sandbox; with `wait=False` raise code 11 when another process holds it."""
        path = self.folder / f"{container_id}@{ifname}"
        try:
            descriptor, fresh = _locked(path, wait)
        except BlockingIOError as cause:
            raise CniError(Code.TRY_AGAIN, f"sandbox {path.name} is being worked on by another process") from cause
        except OSError as cause:
            raise CniError(Code.IO, f"cannot open the journal {path}: {cause.strerror}") from cause
        page = SandboxFile(path, descriptor)
        try:
            if not fresh:
                page.load()
            yield page
        finally:
            try:
                if page.entry is None and not page.damaged:
                    with suppress(OSError):  # an empty page is damaged to the next reader, whose DEL drops it
                        page.path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)

    def read(self, container_id: str, ifname: str) -> Entry:
        """Return what stands on a page, without waiting for its lock; `DamagedEntry` when it cannot be trusted."""
        try:
            return decode(small_files.read(self.folder / f"{container_id}@{ifname}"))
        except OSError as cause:
            raise CniError(Code.IO, f"cannot read the journal: {cause}") from cause

    def sandboxes(self) -> list[tuple[str, str]]:
        """Return (container id, interface) of every page, damaged ones too."""
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
        """Keep sweeps of networks away: what is attached meanwhile is on no list of what is in use."""
        descriptor = self._opened()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def lock_for_gc(self, patience: Callable[[], bool]) -> Iterator[None]:
        """Keep whoever attaches away for as long as a network is swept; code 11 when *patience* ends before it can."""
        descriptor = self._opened()
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as cause:
                    if not patience():
                        raise CniError(
                            Code.TRY_AGAIN, "pods are being attached all the time", "it is tried again"
                        ) from cause
            yield
        finally:
            os.close(descriptor)

    def _opened(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            try:
                return os.open(self.folder, flags)
            except FileNotFoundError:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                return os.open(self.folder, flags)
        except OSError as cause:
            raise CniError(Code.IO, f"cannot open the journal {self.folder}: {cause.strerror}") from cause


def _locked(path: Path, wait: bool) -> tuple[int, bool]:
    """Open and lock *path*; return the descriptor, and whether the file was made just now."""
    while True:
        try:
            descriptor, fresh = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            continue
        except FileExistsError:
            try:
                descriptor, fresh = os.open(path, _OPEN_FLAGS), False
            except FileNotFoundError:
                continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The holder before us may have removed the file that we waited for: then ours is a page of no book.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, fresh
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
