# SPDX-License-Identifier: Apache-2.0
"""What a cluster would keep about a pod, its published status and its Events, in files: one folder a pod."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multus_py.cni import names
from multus_py.cni.errors import CniError, Code
from multus_py.kube.store import NotFound, PodRef

EVENTS_KEPT = 100  # newest Events of one pod


@dataclass(frozen=True)
class Event:
    """What was told about a pod: *time* in seconds since the epoch."""

    kind: str
    reason: str
    message: str
    time: float


@dataclass(frozen=True)
class Notes:
    """The folder `<state>/<namespace>/<pod>/`: `status.json` and `events.json`, readable by us alone."""

    state: Path

    def status(self, ref: PodRef) -> tuple[str, str]:
        """Return the uid and the text of the published status, ("", "") when there is none."""
        body = _read_json(self._folder(ref) / "status.json")
        return (str(body.get("uid", "")), str(body.get("text", ""))) if isinstance(body, Mapping) else ("", "")

    def keep_status(self, ref: PodRef, text: str) -> None:
        """Keep the status of the pod with the reference's uid."""
        with self._locked():
            _write(self._folder(ref) / "status.json", json.dumps({"uid": ref.uid, "text": text}))

    def events(self, ref: PodRef) -> list[Event]:
        """Return the Events kept about a pod, oldest first."""
        body = _read_json(self._folder(ref) / "events.json")
        rows = [row for row in body if isinstance(row, list)] if isinstance(body, list) else []
        return [
            Event(str(kind), str(reason), str(message), time)
            for kind, reason, message, time in (row for row in rows if len(row) == 4)
            if isinstance(time, int | float)
        ]

    def keep_event(self, ref: PodRef, event: Event) -> None:
        """Keep one more Event; only the newest ones stay (`EVENTS_KEPT`)."""
        with self._locked():
            told = [*self.events(ref), event][-EVENTS_KEPT:]
            rows = [[each.kind, each.reason, each.message, each.time] for each in told]
            _write(self._folder(ref) / "events.json", json.dumps(rows))

    def drop(self, ref: PodRef) -> None:
        """Remove what is kept of the pod, unless its status belongs to another uid; nothing is kept of unknown pods."""
        if not _nameable(ref) or not self.state.exists():
            return
        folder = self._folder(ref)
        with self._locked():
            if ref.uid and self.status(ref)[0] not in ("", ref.uid):
                return
            for name in ("status.json", "events.json"):
                (folder / name).unlink(missing_ok=True)
                (folder / name).with_suffix(".new").unlink(missing_ok=True)  # a writer died here
            # The namespace's folder stays when another pod lives there; both may be gone already.
            for empty in (folder, folder.parent):
                with suppress(OSError):
                    empty.rmdir()

    def _folder(self, ref: PodRef) -> Path:
        # Both are checked to be DNS names, so neither can climb out of the folder.
        if not _nameable(ref):
            raise NotFound(Code.INVALID_ENVIRONMENT, f"no pod can be called {ref}")
        return self.state / ref.namespace / ref.name

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from writing meanwhile."""
        try:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            # No namespace begins with a dot.
            with os.fdopen(_private(self.state / ".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as cause:
            raise CniError(
                Code.IO, f"cannot keep the state of pods under {self.state}: {cause}", "make the folder writable"
            ) from cause


def _nameable(ref: PodRef) -> bool:
    return names.is_label(ref.namespace) and names.is_subdomain(ref.name)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # a missing or damaged note is written anew with the next one


def _write(path: Path, text: str) -> None:
    """Put *text* in place in one step. The caller holds the lock, so the other name is free."""
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    fresh = path.with_suffix(".new")
    with os.fdopen(_private(fresh), "w") as file:
        file.write(text)
    fresh.replace(path)


def _private(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
