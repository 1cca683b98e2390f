# SPDX-License-Identifier: Apache-2.0
"""Results of finished attachments, in libcni's own files (`<cniDir>/results/<network>-<container>-<interface>`).

Other tools read these files; ours are found by their content, not by their names, as names may contain '-'.
"""

import base64
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multus_py.cni import conflist, names
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.kernel import small_files
from multus_py.plan.attachment import Attachment

log = logging.getLogger("multus_py")

_KIND = "cniCacheV1"
_NAME_LIMIT = 250  # bytes of a file name, with room for the dot of the temporary file
_DIGEST = "sha256-"


@dataclass(frozen=True)
class ResultCache:
    """The folder of results."""

    folder: Path

    def store(self, attachment: Attachment, container_id: str, netns: str, result: Mapping[str, Any]) -> None:
        """Write the result of an attachment atomically."""
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
            small_files.put(path, _temporary(path), json.dumps(body).encode())
        except OSError as cause:
            raise CniError(Code.IO, f"cannot keep the result {path}: {cause.strerror}") from cause

    def result(self, attachment: Attachment, container_id: str) -> dict[str, Any] | None:
        """Return the cached result; None when there is none or the file is damaged (DEL continues without it)."""
        try:
            body = json_object(small_files.read(self._path(attachment, container_id)), "kept result")
        except (OSError, CniError):
            return None
        result = body.get("result")
        return result if body.get("kind") == _KIND and isinstance(result, dict) else None

    def remove(self, attachment: Attachment, container_id: str) -> None:
        """Remove the result of an attachment."""
        path = self._path(attachment, container_id)
        try:
            _temporary(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        except OSError as cause:
            raise CniError(Code.IO, f"cannot remove the result {path}: {cause.strerror}") from cause

    def has(self, attachment: Attachment, container_id: str) -> bool:
        """Tell whether a result is cached, even one that cannot be read: then ADD completed."""
        return self._path(attachment, container_id).exists()

    def attachments(
        self, container_id: str, primary: str, exclude: Iterable[Attachment] = ()
    ) -> tuple[Attachment, ...]:
        """Rebuild the attachments of a sandbox from its results: the interface *primary* first, then by name.

        The results of the attachments in *exclude* are not read.
        """
        excluded = {self._path(attachment, container_id).name for attachment in exclude}
        files = [name for name in self._names(container_id) if name not in excluded]
        found = [attachment for owner, attachment in self._readable(files) if owner == container_id]
        order = sorted(found, key=lambda item: (item.ifname != primary, len(item.ifname), item.ifname))
        return tuple(replace(item, primary=item.ifname == primary) for item in order)

    def sandboxes(self) -> set[str]:
        """Return the container ids that have cached results."""
        return {owner for owner, _ in self._readable(self._names())}

    def namespaces(self, container_id: str) -> set[str]:
        """Return the namespace paths in the results of a sandbox."""
        found = set()
        for name in self._names(container_id):
            with suppress(OSError, CniError):
                body = json_object(small_files.read(self.folder / name), "kept result")
                if body.get("containerId") == container_id and isinstance(body.get("netns"), str):
                    found.add(body["netns"])
        return found

    def _names(self, container_id: str = "") -> list[str]:
        """Return the file names: all, or those that may be of one container."""
        try:
            found = sorted(name for name in os.listdir(self.folder) if not name.startswith("."))  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as cause:  # DEL continues without them
            log.warning("cannot read the kept results %s: %s", self.folder, cause.strerror)
            return []
        part = f"-{container_id}-" if container_id else ""
        return [name for name in found if part in name or name.startswith(_DIGEST)]

    def _readable(self, names: Iterable[str]) -> Iterator[tuple[str, Attachment]]:
        for name in names:
            with suppress(OSError, CniError):
                yield decode(small_files.read(self.folder / name))

    def _path(self, attachment: Attachment, container_id: str) -> Path:
        """Return libcni's path of the file, with a digest where the name would be too long."""
        name = f"{attachment.conflist.name}-{container_id}-{attachment.ifname}"
        if len(name.encode(errors="surrogateescape")) > _NAME_LIMIT:
            import hashlib  # loads OpenSSL, 4 ms and a megabyte: rarely needed

            name = _DIGEST + hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
        return self.folder / name


def _temporary(path: Path) -> Path:
    """Return the temporary file of a result; the lock of the sandbox protects it."""
    return path.with_name("." + path.name)


def decode(text: bytes) -> tuple[str, Attachment]:
    """Read a result file: container id and attachment. CniError when it is not a file of libcni's."""
    body = json_object(text, "kept result")
    fields = Fields(body, "kept result")
    if fields.text("kind") != _KIND:
        raise fields.error("kind", _KIND)
    try:
        config = json_object(base64.b64decode(fields.text("config")), "kept result: config")
    except ValueError as cause:
        raise fields.error("config", "base64") from cause
    args = fields.get("cniArgs") or []
    if not isinstance(args, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in args
    ):
        raise fields.error("cniArgs", "a list of pairs")
    attachment = Attachment(
        name=fields.text("networkName"),
        conflist=conflist.parse(config, fields.text("networkName"), "kept result: config", in_folder=True),
        ifname=names.recorded_interface(fields.text("ifName"), "kept result: ifName"),
        primary=False,
        args=tuple((key, value) for key, value in args),
        capabilities=fields.table("capabilityArgs"),
    )
    return names.container_id(fields.text("containerId")), attachment
