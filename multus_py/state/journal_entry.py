# SPDX-License-Identifier: Apache-2.0
"""What the journal records of a sandbox, and its form in the file: one entry or one progress record a line.

A line is `3 <CRC-32> <JSON>`. Lines of earlier builds stay readable: `<CRC-32> <JSON>` and `<SHA-256> <JSON>`,
whose entries (format 1) have no progress.
"""

import json
import os
import time
from binascii import crc32
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from multus_py.cni import conflist, names
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.kernel import host_root
from multus_py.kube.store import Device, PodRef
from multus_py.plan.attachment import Attachment

_FORMAT = 2  # of an entry; 1 has no progress, no failures and no time
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO: include/linux/proc_ns.h
_LINE = b"3 "  # the version of a line, first of its words
FINAL_TRIES = 10
T = TypeVar("T")


class Progress(NamedTuple):
    """How far ADD came in a chain: how many of its plugins were begun, and how many of these completed."""

    begun: int
    done: int


@dataclass(frozen=True)
class Failure:
    """A network whose ADD did not complete and whose DEL fails: it may leak resources, and no runtime waits for it.

    *begun* is how many of its plugins ADD began, *tries* how often DEL was tried, *since* the first (Unix seconds).
    """

    attachment: Attachment
    begun: int
    reason: str
    tries: int = 1
    since: float = 0.0

    @property
    def is_final(self) -> bool:
        """Tell whether it is not tried again."""
        return self.tries >= FINAL_TRIES


@dataclass(frozen=True)
class Entry:
    """All that is recorded of one sandbox: what it has or is to have, and what could not be rolled back.

    *network* is the name of our own config that the runtime called with; *boot* the id of the boot it was in,
    after which none of its namespaces exists, *since* the seconds since that boot. *progress* is by interface; an
    attachment without one was not begun. *failures* are not part of the sandbox. *path* is the CNI_PATH that
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

    def progress_of(self, attachment: Attachment) -> Progress:
        """Return the progress of an attachment; after a reboot all its plugins count as begun."""
        begun, done = self.progress.get(attachment.ifname, (0, 0))
        return Progress(begun, done) if self.boot == boot_id() else Progress(uncertain_progress(attachment).begun, done)

    def is_gone(self, root: Path = Path("/")) -> bool:
        """Tell whether the sandbox's namespace certainly does not exist: of another boot, or by its path.

        *root* is the node's root as this process sees it.
        """
        return bool(self.boot and self.boot != boot_id()) or is_namespace_gone(self.netns, root)


def is_namespace_gone(netns: str, root: Path = Path("/")) -> bool:
    """Tell whether there is certainly no namespace at *netns*: its folder exists and it does not.

    A folder that does not exist proves nothing: it may be mounted elsewhere. Whether a process exists is certain only
    in the initial PID namespace.
    """
    path = host_root.within(root, netns) if netns else root
    if not netns or path.exists():
        return False
    if Path(netns).parts[:2] == ("/", "proc"):
        return _sees_all_processes() and not Path(*Path(netns).parts[:3]).exists()
    return path.parent.is_dir()


def complete_progress(attachment: Attachment) -> Progress:
    """Return the progress of a chain whose ADD completed."""
    return Progress(len(attachment.conflist.plugins), len(attachment.conflist.plugins))


def uncertain_progress(attachment: Attachment) -> Progress:
    """Return the progress of a chain that may have been begun, and none of whose plugins is known to have completed."""
    return Progress(len(attachment.conflist.plugins), 0)


class DamagedEntry(CniError):
    """An entry that is empty, truncated or corrupt."""


@cache
def boot_id() -> str:
    """Return the id of this boot, "" where the kernel has none (Documentation/admin-guide/sysctl/kernel.rst)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def uptime() -> float:
    """Return the seconds since this boot (CLOCK_BOOTTIME, which no clock adjustment changes)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _sees_all_processes() -> bool:
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE  # noqa: PTH116  a magic link, without a path
    except OSError:
        return False


def decode(text: bytes) -> Entry:
    """Read a journal file; raise `DamagedEntry` when it is empty, or a complete line is corrupt or of another shape."""
    *lines, rest = text.split(b"\n")
    bodies = [_verified(n, line) for n, line in enumerate(lines)]
    if not bodies:
        raise DamagedEntry(Code.DECODE, "journal entry: cut short" if rest else "journal entry: empty")
    try:
        records = [json.loads(body) for body in bodies]
        last = max(n for n, body in enumerate(records) if "progress" not in body or "format" in body)
        entry = _from_json(records[last])
        later = {ifname: _progress(pair) for body in records[last + 1 :] for ifname, pair in body["progress"].items()}
    except (CniError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as cause:
        raise DamagedEntry(Code.DECODE, f"journal entry: {cause}") from cause
    return replace(entry, progress={**entry.progress, **later}) if later else entry


def _verified(n: int, line: bytes) -> bytes:
    """Return the JSON of a line; `DamagedEntry` when its checksum does not match or it is of a newer build."""
    checksum, _, body = (line.removeprefix(_LINE)).partition(b" ")
    expected = _sha256(body) if len(checksum) == 64 else _crc32(body)
    if checksum != expected:
        newer = checksum.isdigit() and len(checksum) < 8
        why = "is of a newer build" if newer else "was changed"
        raise DamagedEntry(Code.DECODE, f"journal entry: line {n + 1} {why}")
    return body


def _sha256(body: bytes) -> bytes:
    import hashlib  # loads OpenSSL, 4 ms: only for files of the first builds

    return hashlib.sha256(body).hexdigest().encode()


def encode(entry: Entry) -> bytes:
    """Return the line of an entry."""
    return _checksummed(_to_json(entry))


def encode_progress(progress: Mapping[str, Progress]) -> bytes:
    """Return the line of a progress record: the progress of ADD by interface."""
    return _checksummed({"progress": progress})


def _checksummed(value: Mapping[str, Any]) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    return _LINE + _crc32(body) + b" " + body + b"\n"


def _crc32(body: bytes) -> bytes:
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
    """Return *value* if it has the type *kind*: a checksum does not prove that multus-py wrote the line."""
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
        reason=_typed(str, body["reason"]),  # may hold any character: it is a delegate's error message
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
