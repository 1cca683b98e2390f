# SPDX-License-Identifier: Apache-2.0
"""Sandboxes that multus-cni attached before the migration: its delegates file, `<cniDir>/<containerID>`.

It has two forms, with and without `CNINetworkConfigList`; both have the config for DEL as base64 under `Bytes`.
multus-cni shortens that config when it came from a list, so the copy in a cached result is preferred.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from multus_py.cni import conflist, names
from multus_py.cni.call import INPUT_LIMIT, Call, json_object
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.kernel import small_files
from multus_py.plan.attachment import Attachment


def read_attachments(cni_dir: Path, call: Call, cached: Sequence[Attachment]) -> tuple[Attachment, ...]:
    """Return what multus-cni attached to the sandbox of *call*; *cached* are its attachments from cached results."""
    try:
        found = decode(small_files.read(cni_dir / call.container_id), call)
    except (OSError, ValueError, CniError):  # a container id in a GC list may be no valid file name
        return ()
    results = {attachment.ifname: attachment for attachment in cached}
    return tuple(
        replace(results[item.ifname], name=item.name, primary=item.primary) if item.ifname in results else item
        for item in found
    )


def remove(cni_dir: Path, container_id: str) -> None:
    """Remove the delegates file of a removed sandbox."""
    path = cni_dir / container_id
    try:
        if path.is_file():
            path.unlink(missing_ok=True)
    except OSError as cause:
        raise CniError(Code.IO, f"cannot remove the delegates file {path}: {cause.strerror}") from cause


def decode(text: bytes, call: Call) -> tuple[Attachment, ...]:
    """Read a delegates file; CniError when it is not one."""
    try:
        delegates = json.loads(text[:INPUT_LIMIT])
    except (ValueError, RecursionError) as cause:
        raise CniError(Code.DECODE, f"delegates file: {cause}") from cause
    if not isinstance(delegates, list) or not all(isinstance(item, Mapping) for item in delegates):
        raise CniError(Code.DECODE, "delegates file: must be a list of objects")
    return tuple(_attachment(n, Fields(item, f"delegates file: item {n}"), call) for n, item in enumerate(delegates))


def _attachment(n: int, fields: Fields, call: Call) -> Attachment:
    conf = _config(fields)
    name = fields.text("Name")
    return Attachment(
        name=name or str(conf.get("name", "")),
        conflist=conflist.parse(conf, name.rpartition("/")[2], fields.where),
        ifname=names.recorded_interface(
            fields.text("ifnameRequest") or (call.ifname if n == 0 else f"net{n}"), fields.where
        ),
        primary=n == 0,
        args=call.args,
        capabilities={
            key: value
            for key, value in {
                "mac": fields.text("macRequest"),
                "ips": list(fields.texts("ipRequest") or ()),
                "infinibandGUID": fields.text("infinibandGUIDRequest"),
                "deviceID": fields.text("deviceID"),
            }.items()
            if value
        },
    )


def _config(fields: Fields) -> Mapping[str, object]:
    """Return the delegate's config: from the list's `Bytes`, from `Bytes`, or the parsed one."""
    network_list = Fields(fields.table("CNINetworkConfigList"), fields.where)
    for encoded in (network_list.text("Bytes"), fields.text("Bytes")):
        try:
            return json_object(base64.b64decode(encoded), fields.where)
        except (ValueError, CniError):
            continue
    parsed = fields.table("ConfList")
    return parsed if parsed.get("plugins") else fields.table("Conf")
