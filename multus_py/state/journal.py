# SPDX-License-Identifier: Apache-2.0
"""What was planned for each sandbox, on disk before it is done, so that DEL knows everything even if we die in between.

One file per sandbox, `<cniDir>/attachments/<container id>@<interface>`. It only grows, line by line: an entry, or how
far ADD has come since the entry before. The last whole entry counts, and what follows it. The file is its own lock
(flock): an ADD and a DEL of one sandbox wait for each other, and a killed process lets go.

A line is `3 <CRC-32> <JSON>`. Lines of earlier builds are read for ever: `<CRC-32> <JSON>` and `<SHA-256> <JSON>`,
whose entries (format 1) do not tell how far ADD came.
"""

import fcntl
import json
import logging
import os
import time
from binascii import crc32
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from multus_py.cni import conflist, names
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.kernel import host_root, small_files
from multus_py.kube.store import Device, PodRef
from multus_py.plan.attachment import Attachment

log = logging.getLogger("multus_py")

_DAMAGED = ".damaged"
_FORMAT = 2  # of an entry; 1 has no progress, no failures and no time
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO: include/linux/proc_ns.h
T = TypeVar("T")
_PAGE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW  # to one call a link that leads nowhere is there, to the other not
_LINE = b"3 "  # the version of a line, first of its words


class Progress(NamedTuple):
    """How far ADD came in a chain: how many of its plugins were begun, and how many of these came to be."""

    begun: int
    done: int


@dataclass(frozen=True)
class Failure:
    """A network whose ADD did not come to be and whose DEL fails: it may hold something, and nobody waits for it.

    *begun* is how many of its plugins ADD began, *tries* how often DEL was tried, *since* when first (Unix seconds).
    """

    attachment: Attachment
    begun: int
    reason: str
    tries: int = 1
    since: float = 0.0

    @property
    def final(self) -> bool:
        """Tell whether it is not tried any more."""
        return self.tries >= FINAL_TRIES


FINAL_TRIES = 10


@dataclass(frozen=True)
class Entry:
    """All that is known of one sandbox: what it has or is to have, and what could not be taken back.

    *network* is the name of our own config that the runtime called with; *boot* the kernel's id of the boot it was in,
    after which no namespace of it can be left, *since* the seconds since that boot. *progress* is by interface; an
    attachment without one was not begun. *failures* are no part of the sandbox any more. *path* is the CNI_PATH that
    its plugins were found on.
    """

    network: str
    container_id: str
    ifname: str
    netns: str
    attachments: tuple[Attachment, ...]
    pod: PodRef | None = None
    boot: str = ""
    progress: Mapping[str, Progress] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    since: float = 0.0
    path: tuple[str, ...] = ()

    def reached(self, attachment: Attachment) -> Progress:
        """Return how far ADD came in the chain of an attachment: at least, when the machine went down meanwhile."""
        begun, done = self.progress.get(attachment.ifname, (0, 0))
        return Progress(begun, done) if self.boot == boot() else Progress(uncertain_progress(attachment).begun, done)

    def is_gone(self, root: Path = Path("/")) -> bool:
        """Tell whether the sandbox's namespace is surely gone: of another boot, or proved by its path.

        *root* is where the node's files are seen.
        """
        return bool(self.boot and self.boot != boot()) or is_gone(self.netns, root)


def is_gone(netns: str, root: Path = Path("/")) -> bool:
    """Tell whether there is surely no namespace at *netns*: its folder is there and it is not.

    A folder that is not there may be one that we cannot see: that proves nothing. A process is seen by whoever is in
    the machine's first namespace of processes.
    """
    path = host_root.within(root, netns) if netns else root
    if not netns or path.exists():
        return False
    if Path(netns).parts[:2] == ("/", "proc"):
        return _sees_all_processes() and not Path(*Path(netns).parts[:3]).exists()
    return path.parent.is_dir()


def complete_progress(attachment: Attachment) -> Progress:
    """Return the progress of a chain that came to be whole."""
    return Progress(len(attachment.conflist.plugins), len(attachment.conflist.plugins))


def uncertain_progress(attachment: Attachment) -> Progress:
    """Return the progress of a chain of which nobody knows what came to be."""
    return Progress(len(attachment.conflist.plugins), 0)


class Damaged(CniError):
    """An entry that cannot be trusted: empty, cut short or changed."""


@dataclass
class Page:
    """The journal's page of one sandbox, while this process holds its lock. *entry* is what stands on it."""

    path: Path
    descriptor: int
    entry: Entry | None = None
    damaged: bool = False
    unread: bool = False  # *damaged* because the disk did not give it: what stands there may be whole
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
        except (Damaged, OSError) as trouble:
            log.warning("journal %s: %s", self.path.name, trouble)
            self.damaged, self.unread = True, isinstance(trouble, OSError)
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

    def begun(self, attachment: Attachment, begun: int, done: int) -> None:
        """Write down how far ADD came in a chain, before the next plugin is begun.

        Not brought to the disk: what a power loss takes away was of a sandbox that it takes away, too, and DEL then
        asks every plugin.
        """
        self._tell({**self._untold, attachment.ifname: Progress(begun, done)})

    def done(self, attachment: Attachment, begun: int, done: int) -> None:
        """Keep how far ADD came in a chain, to be written down with what is begun next."""
        self._untold[attachment.ifname] = Progress(begun, done)
        if self.entry:
            self.entry = replace(self.entry, progress={**self.entry.progress, **self._untold})

    def complete(self) -> None:
        """Write down that all of the entry came to be; what a full disk does not take, the kept results say, too."""
        if self.entry:
            with suppress(CniError):
                self._tell({one.ifname: complete_progress(one) for one in self.entry.attachments})

    def _tell(self, progress: Mapping[str, Progress]) -> None:
        try:
            self._append(_sealed({"progress": progress}))
        except OSError as cause:
            raise CniError(Code.IO, f"cannot write the journal {self.path}: {cause.strerror}") from cause
        self._untold = {}
        if self.entry:
            self.entry = replace(self.entry, progress={**self.entry.progress, **progress})

    def set_aside(self) -> None:
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
    def page(self, container_id: str, ifname: str, *, wait: bool = True) -> Iterator[Page]:
        """Open and lock the page of a sandbox; with `wait=False` raise code 11 when another process holds it."""
        path = self.folder / f"{container_id}@{ifname}"
        try:
            descriptor, fresh = _locked(path, wait)
        except BlockingIOError as cause:
            raise CniError(Code.TRY_AGAIN, f"sandbox {path.name} is being worked on by another process") from cause
        except OSError as cause:
            raise CniError(Code.IO, f"cannot open the journal {path}: {cause.strerror}") from cause
        page = Page(path, descriptor)
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
        """Return what stands on a page, without waiting for its lock; `Damaged` when it cannot be trusted."""
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
    def attaching(self) -> Iterator[None]:
        """Keep sweeps of networks away: what is attached meanwhile is on no list of what is in use."""
        descriptor = self._opened()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def sweeping(self, patience: Callable[[], bool]) -> Iterator[None]:
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


@cache
def boot() -> str:
    """Return the id of this boot, "" where the kernel tells none (Documentation/admin-guide/sysctl/kernel.rst)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def uptime() -> float:
    """Return the seconds since this boot: the one clock that nobody sets (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _sees_all_processes() -> bool:
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE  # noqa: PTH116  a link that leads to no path
    except OSError:
        return False


def _locked(path: Path, wait: bool) -> tuple[int, bool]:
    """Open and lock *path*; return the descriptor, and whether the file was made just now."""
    while True:
        try:
            descriptor, fresh = os.open(path, _PAGE | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            continue
        except FileExistsError:
            try:
                descriptor, fresh = os.open(path, _PAGE), False
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


def decode(text: bytes) -> Entry:
    """Read a page; raise `Damaged` when no line is whole or a line before the last is not, or is of another shape."""
    *lines, torn = text.split(b"\n")
    bodies = [_opened(n, line) for n, line in enumerate(lines)]
    if not bodies:
        raise Damaged(Code.DECODE, "journal entry: cut short" if torn else "journal entry: empty")
    try:
        told = [json.loads(body) for body in bodies]
        last = max(n for n, body in enumerate(told) if "progress" not in body or "format" in body)
        entry = _from_json(told[last])
        later = {ifname: _progress(pair) for body in told[last + 1 :] for ifname, pair in body["progress"].items()}
    except (CniError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as cause:
        raise Damaged(Code.DECODE, f"journal entry: {cause}") from cause
    return replace(entry, progress={**entry.progress, **later}) if later else entry


def _opened(n: int, line: bytes) -> bytes:
    """Return what a line says; `Damaged` when its seal is broken or of a build that is newer than this one."""
    seal, _, body = (line.removeprefix(_LINE)).partition(b" ")
    expected = _sha256(body) if len(seal) == 64 else _seal(body)
    if seal != expected:
        newer = seal.isdigit() and len(seal) < 8
        why = "is of a newer build" if newer else "was changed"
        raise Damaged(Code.DECODE, f"journal entry: line {n + 1} {why}")
    return body


def _sha256(body: bytes) -> bytes:
    import hashlib  # loads OpenSSL, 4 ms: for pages of the first builds alone

    return hashlib.sha256(body).hexdigest().encode()


def encode(entry: Entry) -> bytes:
    """Return the line of an entry."""
    return _sealed(_to_json(entry))


def _sealed(value: Mapping[str, Any]) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    return _LINE + _seal(body) + b" " + body + b"\n"


def _seal(body: bytes) -> bytes:
    return b"%08x" % crc32(body)


def _to_json(entry: Entry) -> dict[str, Any]:
    pod = entry.pod
    return {
        "format": _FORMAT,
        "network": entry.network,
        "containerId": entry.container_id,
        "ifName": entry.ifname,
        "netns": entry.netns,
        "boot": entry.boot,
        "since": entry.since,
        "path": list(entry.path),
        "pod": {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid} if pod else None,
        "attachments": [_attachment_to_json(attachment) for attachment in entry.attachments],
        "progress": dict(entry.progress),
        **({"failures": [_failure_to_json(failure) for failure in entry.failures]} if entry.failures else {}),
    }


def _failure_to_json(failure: Failure) -> dict[str, Any]:
    return {
        "attachment": _attachment_to_json(failure.attachment),
        "begun": failure.begun,
        "reason": failure.reason,
        "tries": failure.tries,
        "since": failure.since,
    }


def _attachment_to_json(attachment: Attachment) -> dict[str, Any]:
    conf = attachment.conflist
    return {
        "name": attachment.name,
        "config": conf.to_json(),
        "single": conf.single,
        "ifName": attachment.ifname,
        "primary": attachment.primary,
        "args": [list(pair) for pair in attachment.args],
        "capabilities": dict(attachment.capabilities),
        "defaultRoute": None if attachment.default_route is None else [str(gw) for gw in attachment.default_route],
        **({"device": _device_to_json(attachment.device)} if attachment.device else {}),
        **({"origin": attachment.origin} if attachment.origin else {}),
    }


def _device_to_json(device: Device) -> dict[str, Any]:
    return {
        "resource": device.resource,
        "id": device.id,
        "containers": list(device.containers),
        "claims": list(device.claims),
    }


def _from_json(body: Mapping[str, Any]) -> Entry:
    if body["format"] not in (1, _FORMAT):
        raise ValueError(f"format {body['format']!r} is not known")
    attachments = tuple(_attachment_from_json(item) for item in body["attachments"])
    return Entry(
        network=_typed(str, body["network"]),
        container_id=names.container_id(body["containerId"]),
        ifname=names.recorded_interface(body["ifName"], "journal: ifName"),
        netns=_typed(str, body["netns"]),
        boot=_typed(str, body["boot"]),
        pod=_pod_from_json(body["pod"]) if body["pod"] else None,
        attachments=attachments,
        progress=(
            {one.ifname: uncertain_progress(one) for one in attachments}
            if body["format"] == 1
            else {ifname: _progress(pair) for ifname, pair in body["progress"].items()}
        ),
        failures=tuple(_failure_from_json(item) for item in body.get("failures", ())),
        since=float(body.get("since", 0.0)),
        path=_texts(body.get("path", ())),
    )


def _typed(kind: type[T], value: Any) -> T:
    """Return *value*, which has to be of a kind: a seal says that it is what was written, not that we wrote it."""
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.80} is not of the kind {kind.__name__}")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_typed(str, value) for value in values)


def _pod_from_json(body: Mapping[str, Any]) -> PodRef:
    return PodRef(_typed(str, body["namespace"]), _typed(str, body["name"]), _typed(str, body["uid"]))


def _progress(pair: Any) -> Progress:
    begun, done = pair
    if _typed(int, done) < 0 or _typed(int, begun) < done:
        raise ValueError(f"a chain that came as far as {pair!r:.80}")
    return Progress(begun, done)


def _failure_from_json(body: Mapping[str, Any]) -> Failure:
    fields = Fields(body, "failure")
    return Failure(
        attachment=_attachment_from_json(body["attachment"]),
        begun=fields.number("begun"),
        reason=_typed(str, body["reason"]),  # of any signs: a delegate's own words
        tries=fields.number("tries"),
        since=float(body["since"]),
    )


def _attachment_from_json(body: Mapping[str, Any]) -> Attachment:
    return Attachment(
        name=_typed(str, body["name"]),
        conflist=replace(conflist.parse(body["config"], in_folder=True), single=_typed(bool, body["single"])),
        ifname=names.recorded_interface(body["ifName"], "journal: ifName"),
        primary=_typed(bool, body["primary"]),
        args=tuple((_typed(str, key), _typed(str, value)) for key, value in body["args"]),
        capabilities=_typed(dict, body["capabilities"]),
        default_route=Fields(body, "attachment").addresses("defaultRoute"),
        device=_device_from_json(body["device"]) if "device" in body else None,
        origin=_typed(str, body.get("origin", "")),
    )


def _device_from_json(body: Mapping[str, Any]) -> Device:
    return Device(
        _typed(str, body["resource"]),
        _typed(str, body["id"]),
        _texts(body.get("containers") or ()),
        _texts(body.get("claims") or ()),
    )
