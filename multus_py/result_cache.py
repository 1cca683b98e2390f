# SPDX-License-Identifier: Apache-2.0
"""Results of finished attachments, in libcni's own files (`<cniDir>/results/<network>-<container>-<interface>`).

Other tools read these files; we find ours by what they say, never by their names, for names may hold '-'.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multus_py import small_files
from multus_py.cni import conflist, names
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code
from multus_py.fields import Fields
from multus_py.plan import Attachment

_KIND = "cniCacheV1"


@dataclass(frozen=True)
class ResultCache:
    """The folder of results."""

    folder: Path

    def store(self, attachment: Attachment, container_id: str, netns: str, result: Mapping[str, Any]) -> None:
        """Write the result of an attachment, whole or not at all."""
        conf = attachment.conflist
        written = (
            dict(conf.plugins[0]) | {"cniVersion": conf.version, "name": conf.name} if conf.single else conf.to_json()
        )
        body = {
            "kind": _KIND,
            "containerId": container_id,
            "config": base64.b64encode(json.dumps(written).encode()).decode(),
            "ifName": attachment.ifname,
            "networkName": conf.name,
            "netns": netns,
            "cniArgs": [list(pair) for pair in attachment.args],
            "capabilityArgs": dict(attachment.capabilities),
            "result": dict(result),
        }
        path = self._path(attachment, container_id)
        try:
            small_files.put(path, _draft(path), json.dumps(body).encode())
        except OSError as cause:
            raise CniError(Code.IO, f"cannot keep the result {path}: {cause.strerror}") from cause

    def result(self, attachment: Attachment, container_id: str) -> dict[str, Any] | None:
        """Return the kept result; None when there is none or the file is damaged (DEL goes on without)."""
        try:
            body = json_object(small_files.read(self._path(attachment, container_id)), "kept result")
        except (OSError, CniError):
            return None
        result = body.get("result")
        return result if body.get("kind") == _KIND and isinstance(result, dict) else None

    def drop(self, attachment: Attachment, container_id: str) -> None:
        """Forget the result of an attachment."""
        path = self._path(attachment, container_id)
        _draft(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def attachments(self, container_id: str, primary: str) -> tuple[Attachment, ...]:
        """Rebuild what is known of a sandbox from its results: the interface *primary* first, then by name."""
        found = [attachment for owner, attachment in self._readable() if owner == container_id]
        order = sorted(found, key=lambda item: (item.ifname != primary, len(item.ifname), item.ifname))
        return tuple(replace(item, primary=item.ifname == primary) for item in order)

    def sandboxes(self) -> set[str]:
        """Return the container ids that results are kept for."""
        return {owner for owner, _ in self._readable()}

    def _readable(self) -> Iterator[tuple[str, Attachment]]:
        try:
            paths = sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return
        for path in paths:
            try:
                yield decode(small_files.read(path))
            except (OSError, CniError):
                continue

    def _path(self, attachment: Attachment, container_id: str) -> Path:
        return self.folder / f"{attachment.conflist.name}-{container_id}-{attachment.ifname}"


def _draft(path: Path) -> Path:
    """Return where a result is written before it gets its name; whoever holds the sandbox's page is alone with it."""
    return path.with_name("." + path.name)


def decode(text: bytes) -> tuple[str, Attachment]:
    """Read a result file: whose it is, and the attachment it tells of. CniError when it is not one of libcni's."""
    body = json_object(text, "kept result")
    fields = Fields(body, "kept result")
    if fields.text("kind") != _KIND:
        raise fields.wrong("kind", _KIND)
    try:
        config = json_object(base64.b64decode(fields.text("config")), "kept result: config")
    except ValueError as cause:
        raise fields.wrong("config", "base64") from cause
    args = fields.get("cniArgs") or []
    if not isinstance(args, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in args
    ):
        raise fields.wrong("cniArgs", "a list of pairs")
    attachment = Attachment(
        name=fields.text("networkName"),
        conflist=conflist.parse(config, fields.text("networkName"), "kept result: config"),
        ifname=names.interface(fields.text("ifName"), "kept result: ifName"),
        primary=False,
        args=tuple((key, value) for key, value in args),
        capabilities=fields.table("capabilityArgs"),
    )
    return names.container_id(fields.text("containerId")), attachment
