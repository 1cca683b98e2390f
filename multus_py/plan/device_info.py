# SPDX-License-Identifier: Apache-2.0
"""Device information files, which a device plugin or a CNI plugin writes and network-status publishes.

Source: Device Information Specification 1.1.0 of the Network Plumbing Working Group.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.kernel import small_files
from multus_py.kube.store import Device

CAPABILITY = "CNIDeviceInfoFile"
VERSION = "1.1.0"
SIZE_LIMIT = 64 * 1024  # bytes of a file that is put into an annotation
_NAME_LIMIT = 250  # bytes of a file name, with room for the dot of the temporary file
_SEMANTIC = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}\Z")
# Type -> its keys (spec section 3); a tuple lists the values that a required key may have, None is any text.
_REQUIRED: dict[str, dict[str, tuple[str, ...] | None]] = {
    "pci": {"pci-address": None},
    "vdpa": {"parent-device": None, "driver": ("vhost", "virtio"), "path": None},
    "vhost-user": {"mode": ("client", "server"), "path": None},
    # The specification says "inject-punt", the library that most plugins use writes "punt".
    "memif": {"role": ("master", "slave"), "path": None, "mode": ("ethernet", "ip", "inject-punt", "punt")},
}
_OPTIONAL = {
    "pci": ("vhost-net", "rdma-device", "pf-pci-address", "representor-device"),
    "vdpa": ("pci-address", "pf-pci-address", "representor-device"),
    "vhost-user": (),
    "memif": (),
}


def path(root: Path, network: str, container_id: str, ifname: str) -> Path:
    """Return the file of one attachment: a unique name in one folder."""
    name = f"{network}-{container_id}_{ifname}".replace("/", "-")
    if len(name.encode()) > _NAME_LIMIT:
        import hashlib  # loads OpenSSL, 4 ms and a megabyte: rarely needed

        name = hashlib.sha256(name.encode()).hexdigest()
    return root / "cni" / name


def plugin_path(root: Path, device: Device) -> Path:
    """Return the file that the device plugin of *device* may write."""
    return root / "dp" / f"{device.resource}-{device.id}-device.json".replace("/", "-")


def pci(address: str) -> dict[str, Any]:
    """Return the information that is in a PCI address alone."""
    return {"type": "pci", "version": VERSION, "pci": {"pci-address": address}}


def provide(capabilities: Mapping[str, Any], device: Device | None, root: Path) -> None:
    """Copy the device plugin's information about *device* to the file of the attachment; remove an older one.

    CniError when the device plugin's file is damaged; no file is fine.
    """
    if (target := _path(capabilities, root)) is None:
        return
    try:
        target.unlink(missing_ok=True)
        if device and (content := _read(plugin_path(root, device))):
            _write(target, content)
    except OSError as cause:
        raise CniError(Code.IO, f"cannot write the device information {target}: {cause.strerror}") from cause


def read(capabilities: Mapping[str, Any], root: Path) -> dict[str, Any] | None:
    """Return the device information of an attachment, None without any; CniError when it is not valid."""
    target = _path(capabilities, root)
    return _read(target) if target else None


def remove(capabilities: Mapping[str, Any], root: Path) -> None:
    """Remove the device information of an attachment; none is success."""
    if target := _path(capabilities, root):
        try:
            _temporary(target).unlink(missing_ok=True)
            target.unlink(missing_ok=True)
        except OSError as cause:
            raise CniError(Code.IO, f"cannot remove the device information {target}: {cause.strerror}") from cause


def decode(text: bytes, where: str = "device information") -> dict[str, Any]:
    """Read a file's content; CniError when it is not of a known type or lacks what the type requires.

    Keys that we do not know are kept: a later minor version may add some.
    """
    body = json_object(text, where)
    kind, version = body.get("type"), body.get("version")
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise CniError(Code.DECODE, f"{where}: 'type' must be one of {', '.join(_REQUIRED)}, it is {kind!r:.40}")
    if not isinstance(version, str) or not _SEMANTIC.match(version):
        raise CniError(Code.DECODE, f"{where}: 'version' must be such as {VERSION!r}, it is {version!r:.40}")
    about = body.get(kind)
    if not isinstance(about, Mapping):
        raise CniError(Code.DECODE, f"{where}: {kind!r} must be an object")
    for key, allowed in _REQUIRED[kind].items():
        value = about.get(key)
        if not isinstance(value, str) or not value or (allowed and value not in allowed):
            expected = " or ".join(allowed) if allowed else "a text"
            raise CniError(Code.DECODE, f"{where}: {kind}.{key} must be {expected}, it is {value!r:.40}")
    for key in _OPTIONAL[kind]:
        Fields(about, f"{where}: {kind}").text(key)
    return body


def _path(capabilities: Mapping[str, Any], root: Path) -> Path | None:
    """Return the attachment's file; None when it has none, or one in another folder, which is not ours."""
    value = capabilities.get(CAPABILITY)
    found = Path(value) if isinstance(value, str) and "\0" not in value else None
    return found if found and found.parent == root / "cni" and found.name not in ("", "..") else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        text = small_files.read_regular(path, SIZE_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise CniError(Code.IO, f"cannot read the device information {path}: {cause.strerror}") from cause
    return decode(text, f"device information {path}")


def _write(path: Path, body: Mapping[str, Any]) -> None:
    """Write the file atomically, readable for all users."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    temporary = _temporary(path)
    temporary.write_text(json.dumps(body))
    temporary.chmod(0o644)
    temporary.rename(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}")
