# SPDX-License-Identifier: Apache-2.0
"""What a cluster would keep about a pod, its published status and its Events, in files: one folder a pod."""

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multus_py.cni import names
from multus_py.cni.errors import CniError, Code
from multus_py.kernel import small_files
from multus_py.kube.store import NotFound, PodRef

EVENTS_KEPT = 100  # newest Events of one pod
EVENTS_SIZE = 64 * 1024  # bytes of Events from which on older ones are dropped
_STATUS, _EVENTS, _NEW = "status.json", "events.jsonl", ".new"
_TRIES = 8  # to lock a folder that is not removed meanwhile


@dataclass(frozen=True)
class Event:
    """An Event about a pod: *time* in seconds since the epoch."""

    kind: str
    reason: str
    message: str
    time: float


@dataclass(frozen=True)
class PodFiles:
    """The folder `<state>/<namespace>/<pod>/`: `status.json` and `events.jsonl`, readable by us alone.

    The folder is its own lock (flock): of one pod one process writes at a time, of different pods all at once.
    """

    state: Path

    def status(self, ref: PodRef) -> tuple[str, str]:
        """Return the uid and the text of the published status, ("", "") when there is none."""
        body = _parsed(_read(self._folder(ref) / _STATUS))
        return (str(body.get("uid", "")), str(body.get("text", ""))) if isinstance(body, Mapping) else ("", "")

    def write_status(self, ref: PodRef, text: str) -> None:
        """Keep the status of the pod with the reference's uid."""
        written = json.dumps({"uid": ref.uid, "text": text}).encode()
        self._locked(ref, lambda folder: _put(folder, _STATUS, written))

    def events(self, ref: PodRef) -> list[Event]:
        """Return the newest Events about a pod (`EVENTS_KEPT`), oldest first."""
        rows = [_parsed(line) for line in _lines(_read(self._folder(ref) / _EVENTS))]
        return [
            Event(str(row[0]), str(row[1]), str(row[2]), row[3])
            for row in rows
            if isinstance(row, list) and len(row) == 4 and isinstance(row[3], int | float)
        ]

    def append_event(self, ref: PodRef, event: Event) -> None:
        """Keep one more Event."""
        # The line feed comes first: it ends a line that a power failure cut.
        line = b"\n" + json.dumps([event.kind, event.reason, event.message, event.time]).encode()
        self._locked(ref, lambda folder: _append(folder, line))

    def remove(self, ref: PodRef) -> None:
        """Remove what is stored of the pod, unless its status belongs to another uid."""
        if not _nameable(ref) or not self._folder(ref).is_dir():
            return
        self._locked(ref, lambda folder: self._remove(ref, folder))

    def _remove(self, ref: PodRef, folder: int) -> None:
        if ref.uid and self.status(ref)[0] not in ("", ref.uid):
            return
        for name in (_STATUS, _EVENTS, _STATUS + _NEW, _EVENTS + _NEW):  # a writer may have died here
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
        # The namespace's folder stays when it has another pod; both may be removed already.
        for empty in (self._folder(ref), self._folder(ref).parent):
            with suppress(OSError):
                empty.rmdir()

    def _folder(self, ref: PodRef) -> Path:
        # Both are checked to be DNS names, so neither can climb out of the folder.
        if not _nameable(ref):
            raise NotFound(Code.INVALID_ENVIRONMENT, f"no pod can be called {ref}")
        return self.state / ref.namespace / ref.name

    def _locked(self, ref: PodRef, operation: Callable[[int], None]) -> None:
        """Run *operation* in the pod's folder, which is created, under its lock."""
        path = self._folder(ref)
        try:
            for _ in range(_TRIES):
                with suppress(FileNotFoundError):  # the folder was removed while we waited for its lock
                    folder = _opened(path)
                    try:
                        fcntl.flock(folder, fcntl.LOCK_EX)
                        return operation(folder)
                    finally:
                        os.close(folder)
            raise FileNotFoundError(f"{path} is removed again and again")
        except OSError as cause:
            raise CniError(
                Code.IO, f"cannot keep the state of pods under {self.state}: {cause}", "make the folder writable"
            ) from cause


def _nameable(ref: PodRef) -> bool:
    return names.is_label(ref.namespace) and names.is_subdomain(ref.name)


def _opened(path: Path) -> int:
    """Open the folder of a pod; made when it is missing, which at a pod's second note it is not."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        for folder in (path.parent.parent, path.parent, path):
            folder.mkdir(mode=0o700, parents=folder == path.parent.parent, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _append(folder: int, line: bytes) -> None:
    """Add a line to the Events; when they have grown too large only the newest stay."""
    file = os.open(_EVENTS, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        os.write(file, line)
        size = os.fstat(file).st_size
        if size > EVENTS_SIZE:
            lines = _lines(os.pread(file, size, 0))
            while len(lines) > 1 and sum(map(len, lines)) > EVENTS_SIZE // 2:
                del lines[: len(lines) // 2]
            _put(folder, _EVENTS, b"".join(b"\n" + one for one in lines))
    finally:
        os.close(file)


def _lines(text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line][-EVENTS_KEPT:]


def _put(folder: int, name: str, text: bytes) -> None:
    """Put *text* in place in one step. The caller holds the lock, so the other name is free."""
    file = os.open(name + _NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        os.write(file, text)
    finally:
        os.close(file)
    os.rename(name + _NEW, name, src_dir_fd=folder, dst_dir_fd=folder)


def _read(path: Path) -> bytes:
    try:
        return small_files.read(path)
    except OSError:
        return b""


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # a missing or damaged note is written anew with the next one
