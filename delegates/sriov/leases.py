# SPDX-License-Identifier: Apache-2.0
"""Who uses a device of this machine, and how it was before: one file per device, written before anything is changed.

<folder>/leases/<device>            owner and earlier state as JSON, replaced as a whole; gone when the device is free
<folder>/pci/<device>               the owner's namespace, for sriov-cni, which refuses a device with a living one
<folder>/pci/vf_lock/<device>.lock  flock, as sriov-cni takes it: held while the device is changed
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multus_py.cni.errors import CniError, Code
from multus_py.kernel import small_files

_SIZE_MAX = 64 * 1024  # bytes of a file here
_NO_FILE = (errno.EINVAL, errno.EFBIG, errno.ENXIO, errno.ELOOP)  # a pipe, a socket, a circle of links: none of ours


@dataclass(frozen=True)
class Owner:
    """An attachment: its container, its interface and the path of its namespace."""

    container_id: str
    ifname: str
    netns: str

    def same(self, other: "Owner") -> bool:
        """Tell whether both are one attachment; a namespace may be known later, or not at all."""
        return (self.container_id, self.ifname) == (other.container_id, other.ifname)


@dataclass(frozen=True)
class Lease:
    """A device in use. *before* is what its delegate needs to give it back; *boot* names the kernel's life."""

    device: str
    owner: Owner
    before: Mapping[str, Any]
    boot: str = ""


@dataclass(frozen=True)
class Slot:
    """The place of one device's lease, while this process holds its lock."""

    folder: Path
    device: str

    @property
    def lease(self) -> Lease | None:
        """Return who uses the device, None when it is free."""
        return _read(self.folder / "leases" / self.device)

    @property
    def foreign(self) -> str:
        """Return the namespace that sriov-cni gave the device to, "" when it did not or when the lease is ours."""
        try:
            return "" if self.lease else _text(self.folder / "pci" / self.device).strip()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as cause:
            raise CniError(Code.IO, f"cannot read who has device {self.device}: {cause}", "see 'dataDir'") from cause

    def write(self, lease: Lease) -> None:
        """Put a lease on disk for good."""
        owner = lease.owner
        body = {
            "format": 1,
            "containerId": owner.container_id,
            "ifName": owner.ifname,
            "netns": owner.netns,
            "boot": lease.boot,
            "before": dict(lease.before),
        }
        _replace(self.folder / "leases" / self.device, json.dumps(body))
        _replace(self.folder / "pci" / self.device, owner.netns)

    def clear(self) -> None:
        """Say that the device is free."""
        for folder in ("pci", "leases"):
            (self.folder / folder / self.device).unlink(missing_ok=True)


@dataclass(frozen=True)
class Leases:
    """All leases below a folder."""

    folder: Path

    @contextmanager
    def hold(self, device: str) -> Iterator[Slot]:
        """Lock a device's lease; the lock of a killed process is released. Do not wait for other programs under it."""
        path = self.folder / "pci/vf_lock" / f"{device}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as cause:
            raise CniError(
                Code.IO, f"cannot lock device {device}: {path}: {cause.strerror}", "'dataDir' must be writable"
            ) from cause
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for folder in ("pci", "leases"):  # what a writer that died did not finish
                (self.folder / folder / f".{device}").unlink(missing_ok=True)
            yield Slot(self.folder, device)
        finally:
            os.close(descriptor)

    def of(self, owner: Owner) -> list[str]:
        """Return the devices that an attachment holds."""
        try:
            found = [path for path in sorted((self.folder / "leases").iterdir()) if not path.name.startswith(".")]
        except FileNotFoundError:
            return []
        return [path.name for path in found if (lease := _read(path)) and lease.owner.same(owner)]


def boot_id() -> str:
    """Return the name of this life of the kernel: what a lease of an earlier one changed is gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _read(path: Path) -> Lease | None:
    """Return a lease; one that cannot be read counts as lost: then the state of the device itself decides."""
    try:
        body = json.loads(_text(path))
        owner = Owner(str(body["containerId"]), str(body["ifName"]), str(body["netns"]))
        return Lease(path.name, owner, dict(body["before"]), str(body["boot"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    except OSError as cause:
        if cause.errno in _NO_FILE:
            return None
        raise CniError(Code.IO, f"cannot read the lease {path}: {cause.strerror}") from cause


def _text(path: Path) -> str:
    return small_files.read_regular(path, _SIZE_MAX).decode()


def _replace(path: Path, text: str) -> None:
    """Write a whole file or none of it: a new one takes the old one's place."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    fresh = path.with_name(f".{path.name}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(fresh, flags, 0o644), "w") as file:  # noqa: PTH123  a link that stands there leads nowhere
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as cause:
        raise CniError(
            Code.IO, f"cannot write {path}: {cause.strerror}", "nothing was changed on the device"
        ) from cause
