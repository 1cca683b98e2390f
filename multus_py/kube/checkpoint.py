# SPDX-License-Identifier: Apache-2.0
"""kubelet's own note of which devices it gave to whom: the file `kubelet_internal_checkpoint` of its device manager.

Source: kubernetes, pkg/kubelet/cm/devicemanager/checkpoint. Its checksum covers Go's memory layout: it is not checked.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.kube.store import Device, Unavailable


def devices(path: Path, uid: str) -> tuple[Device, ...] | None:
    """Return what the pod with that uid was given; None when the file or the pod does not exist.

    A file that cannot be read or understood is `Unavailable` (code 11): kubelet writes it anew with the next pod.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise _damaged(path, str(cause.strerror)) from cause
    try:
        return decode(text, uid)
    except CniError as cause:
        raise _damaged(path, cause.msg) from cause


def decode(text: bytes, uid: str) -> tuple[Device, ...] | None:
    """Read the file's content; CniError when it has another shape."""
    data = Fields(json_object(text, "checkpoint"), "checkpoint").table("Data")
    # Go writes an empty list as null; a file without the key is none of kubelet's.
    if "PodDeviceEntries" not in data:
        raise CniError(Code.DECODE, "checkpoint: it has no Data.PodDeviceEntries")
    entries = Fields(data, "checkpoint: Data").tables("PodDeviceEntries") or ()
    mine = [entry for entry in entries if uid and Fields(entry, "entry").text("PodUID") == uid]
    return tuple(device for entry in mine for device in _of_entry(entry)) if mine else None


def _of_entry(entry: Mapping[str, Any]) -> Iterator[Device]:
    fields = Fields(entry, "checkpoint: entry")
    resource, container = fields.text("ResourceName"), fields.text("ContainerName")
    listed = fields.get("DeviceIDs")
    # Since 1.20 by NUMA node, before that one list.
    by_node = listed if isinstance(listed, Mapping) else {"": listed}
    for node in by_node:
        for device in Fields(by_node, "checkpoint: DeviceIDs").texts(node) or ():
            yield Device(resource, device, (container,))


def _damaged(path: Path, why: str) -> Unavailable:
    return Unavailable(
        f"kubelet's device checkpoint {path} cannot be read: {why}",
        "kubelet writes it anew when it places the next pod: try again",
    )
