# SPDX-License-Identifier: Apache-2.0
"""Results of finished attachments, in libcni's own files (`<cniDir>/results/<network>-<container>-<interface>`).

Other tools read these files; we find ours by what they say, never by their names, for names may hold '-'.
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
_NAME_LIMIT = 250  # bytes of a file's name, with room for the dot of a draft
_DIGEST = "sha256-"


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

    def remove(self, attachment: Attachment, container_id: str) -> None:
        """Forget the result of an attachment."""
        path = self._path(attachment, container_id)
        try:
            _draft(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        except OSError as cause:
            raise CniError(Code.IO, f"cannot drop the result {path}: {cause.strerror}") from cause

    def has(self, attachment: Attachment, container_id: str) -> bool:
        """Tell whether a result is kept, even one that cannot be read: then the attachment came to be."""
        return self._path(attachment, container_id).exists()

    def attachments(self, container_id: str, primary: str, but: Iterable[Attachment] = ()) -> tuple[Attachment, ...]:
        """Rebuild what is known of a sandbox from its results: the interface *primary* first, then by name.

        The results of *but* are not read: those attachments are known.
        """
        known = {self._path(one, container_id).name for one in but}
        mine = [name for name in self._names(container_id) if name not in known]
        found = [attachment for owner, attachment in self._readable(mine) if owner == container_id]
        order = sorted(found, key=lambda item: (item.ifname != primary, len(item.ifname), item.ifname))
        return tuple(replace(item, primary=item.ifname == primary) for item in order)

    def sandboxes(self) -> set[str]:
        """Return the container ids that results are kept for."""
        return {owner for owner, _ in self._readable(self._names())}

    def namespaces(self, container_id: str) -> set[str]:
        """Return the paths of the namespaces that the results of a sandbox name."""
        found = set()
        for name in self._names(container_id):
            with suppress(OSError, CniError):
                body = json_object(small_files.read(self.folder / name), "kept result")
                if body.get("containerId") == container_id and isinstance(body.get("netns"), str):
                    found.add(body["netns"])
        return found

    def _names(self, container_id: str = "") -> list[str]:
        """Return the files' names: all, or those that may be of one container."""
        try:
            found = sorted(name for name in os.listdir(self.folder) if not name.startswith("."))  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as cause:  # DEL goes on without, as it does without one of them
            log.warning("cannot read the kept results %s: %s", self.folder, cause.strerror)
            return []
        part = f"-{container_id}-" if container_id else ""
        return [name for name in found if part in name or name.startswith(_DIGEST)]

    def _readable(self, names: Iterable[str]) -> Iterator[tuple[str, Attachment]]:
        for name in names:
            with suppress(OSError, CniError):
                yield decode(small_files.read(self.folder / name))

    def _path(self, attachment: Attachment, container_id: str) -> Path:
        """Return libcni's name for the file, or a digest of it where it is longer than a file's name may be."""
        name = f"{attachment.conflist.name}-{container_id}-{attachment.ifname}"
        if len(name.encode(errors="surrogateescape")) > _NAME_LIMIT:
            import hashlib  # loads OpenSSL: 4 ms and a megabyte that hardly ever are needed

            name = _DIGEST + hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
        return self.folder / name


def _draft(path: Path) -> Path:
    """Return where a result is written before it gets its name; whoever holds the sandbox's page is alone with it."""
    return path.with_name("." + path.name)


def decode(text: bytes) -> tuple[str, Attachment]:
    """Read a result file: whose it is, and the attachment it tells of. CniError when it is not one of libcni's."""
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
