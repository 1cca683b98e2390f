# SPDX-License-Identifier: Apache-2.0
"""What was planned for each sandbox, on disk before it is done, so that DEL knows everything even if we die in between.

One file per sandbox, `<cniDir>/attachments/<container id>@<interface>`. It only grows: each line is the CRC-32 of an
entry and the entry as JSON, and the last whole line counts. The file is its own lock (flock): an ADD and a DEL of one
sandbox wait for each other, and a killed process lets go.
"""

import fcntl
import json
import os
from binascii import crc32
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from multus_py.cni import conflist, names
from multus_py.cni.errors import CniError, Code
from multus_py.fields import Fields
from multus_py.kube.store import Device, PodRef
from multus_py.plan import Attachment

_DAMAGED = ".damaged"


@dataclass(frozen=True)
class Entry:
    """All that was planned for one sandbox.

    *network* is the name of our own config that the runtime called with; *boot* the kernel's id of the boot it was in,
    after which no namespace of it can be left.
    """

    network: str
    container_id: str
    ifname: str
    netns: str
    attachments: tuple[Attachment, ...]
    pod: PodRef | None = None
    boot: str = ""


class Damaged(CniError):
    """An entry that cannot be trusted: empty, cut short or changed."""


@dataclass
class Page:
    """The journal's page of one sandbox, while this process holds its lock. *entry* is what stands on it."""

    path: Path
    descriptor: int
    entry: Entry | None = None
    damaged: bool = False

    def load(self) -> None:
        """Read what stands on the page; a page that cannot be trusted is marked *damaged*."""
        try:
            self.entry = decode(self._text())
        except Damaged:
            self.damaged = True

    def _text(self) -> bytes:
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)

    def write(self, entry: Entry) -> None:
        """Put *entry* on disk for good: one fsync. Of a torn line nothing was done yet: the one before counts."""
        try:
            if self.damaged:
                os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_END)
            os.write(self.descriptor, encode(entry))
            os.fsync(self.descriptor)
        except OSError as cause:
            raise CniError(
                Code.IO, f"cannot write the journal {self.path}: {cause.strerror}", "nothing was attached"
            ) from cause
        self.entry, self.damaged = entry, False

    def set_aside(self) -> None:
        """Keep a copy of a damaged page beside it until the sandbox's DEL is confirmed."""
        self.path.with_name(self.path.name + _DAMAGED).write_bytes(self._text())

    def clear(self) -> None:
        """Forget the sandbox: every delegate confirmed. The file goes when the page is closed."""
        # Not here: once its name is free another process has a page of its own under it, and the next unlink hits that.
        os.ftruncate(self.descriptor, 0)
        self.path.with_name(self.path.name + _DAMAGED).unlink(missing_ok=True)
        self.entry, self.damaged = None, False


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
            if page.entry is None and not page.damaged:
                page.path.unlink(missing_ok=True)
            os.close(descriptor)

    def read(self, container_id: str, ifname: str) -> Entry:
        """Return what stands on a page, without waiting for its lock; `Damaged` when it cannot be trusted."""
        try:
            return decode((self.folder / f"{container_id}@{ifname}").read_bytes())
        except OSError as cause:
            raise CniError(Code.IO, f"cannot read the journal: {cause}") from cause

    def written(self, container_id: str, ifname: str) -> float:
        """Return when the page of a sandbox was last written, in seconds since the epoch; 0 when there is none."""
        try:
            return (self.folder / f"{container_id}@{ifname}").stat().st_mtime
        except OSError:
            return 0.0

    def sandboxes(self) -> list[tuple[str, str]]:
        """Return (container id, interface) of every page, damaged ones too."""
        try:
            found = sorted(path.name for path in self.folder.iterdir() if not path.name.endswith(_DAMAGED))
        except FileNotFoundError:
            return []
        pairs = [name.split("@", 1) for name in found if "@" in name]
        return [(container_id, ifname) for container_id, ifname in pairs]


@cache
def boot() -> str:
    """Return the id of this boot, "" where the kernel tells none (Documentation/admin-guide/sysctl/kernel.rst)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _locked(path: Path, wait: bool) -> tuple[int, bool]:
    """Open and lock *path*; return the descriptor, and whether the file was made just now."""
    while True:
        try:
            descriptor, fresh = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), True
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            continue
        except FileExistsError:
            try:
                descriptor, fresh = os.open(path, os.O_RDWR | os.O_CLOEXEC), False
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
    for n, line in enumerate(lines):
        seal, _, body = line.partition(b" ")
        if _seal(body) != seal:
            raise Damaged(Code.DECODE, f"journal entry: line {n + 1} was changed")
    if not lines:
        raise Damaged(Code.DECODE, "journal entry: cut short" if torn else "journal entry: empty")
    try:
        return _from_json(json.loads(lines[-1].partition(b" ")[2]))
    except (CniError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise Damaged(Code.DECODE, f"journal entry: {cause}") from cause


def encode(entry: Entry) -> bytes:
    """Return the line of an entry."""
    body = json.dumps(_to_json(entry), separators=(",", ":")).encode()
    return _seal(body) + b" " + body + b"\n"


def _seal(body: bytes) -> bytes:
    return b"%08x" % crc32(body)


def _to_json(entry: Entry) -> dict[str, Any]:
    pod = entry.pod
    return {
        "format": 1,
        "network": entry.network,
        "containerId": entry.container_id,
        "ifName": entry.ifname,
        "netns": entry.netns,
        "boot": entry.boot,
        "pod": {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid} if pod else None,
        "attachments": [_attachment_to_json(attachment) for attachment in entry.attachments],
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
    }


def _device_to_json(device: Device) -> dict[str, Any]:
    return {
        "resource": device.resource,
        "id": device.id,
        "containers": list(device.containers),
        "claims": list(device.claims),
    }


def _from_json(body: Mapping[str, Any]) -> Entry:
    if body["format"] != 1:
        raise ValueError(f"format {body['format']!r} is not known")
    pod = body["pod"]
    return Entry(
        network=body["network"],
        container_id=names.container_id(body["containerId"]),
        ifname=names.interface(body["ifName"]),
        netns=body["netns"],
        boot=body["boot"],
        pod=PodRef(pod["namespace"], pod["name"], pod["uid"]) if pod else None,
        attachments=tuple(_attachment_from_json(item) for item in body["attachments"]),
    )


def _attachment_from_json(body: Mapping[str, Any]) -> Attachment:
    return Attachment(
        name=body["name"],
        conflist=replace(conflist.parse(body["config"]), single=body["single"]),
        ifname=names.interface(body["ifName"]),
        primary=body["primary"],
        args=tuple((key, value) for key, value in body["args"]),
        capabilities=body["capabilities"],
        default_route=Fields(body, "attachment").addresses("defaultRoute"),
        device=_device_from_json(body["device"]) if "device" in body else None,
    )


def _device_from_json(body: Mapping[str, Any]) -> Device:
    fields = Fields(body, "device")
    return Device(
        fields.text("resource"), fields.text("id"), fields.texts("containers") or (), fields.texts("claims") or ()
    )
