# SPDX-License-Identifier: Apache-2.0
"""What a runtime keeps of the sandboxes that it had us attach: libcni's results, under the name of our conf.

It drops one at the DEL with that conf. Once our conf is gone, containerd deletes with the primary's, and these stay.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code
from multus_py.config.plugin import MultusConfig
from multus_py.install import primary

RESULTS = Path("/var/lib/cni/results")  # libcni's default, which containerd and CRI-O leave at that
_KIND = "cniCacheV1"


def results(folder: Path, name: str, cni_dir: Path) -> Iterator[Path]:
    """Yield the results in *folder* of confs that call the plugin *name* alone, with its journal in *cni_dir*."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except FileNotFoundError:
        return
    except OSError as cause:
        raise CniError(Code.IO, f"cannot read the runtime's results in {folder}: {cause.strerror}") from cause
    for path in paths:
        conf = _conf(path)
        if primary.has_only_types(conf, frozenset({name})) and _cni_dir(conf) == cni_dir:
            yield path


def _conf(path: Path) -> dict[str, Any]:
    """Return the conf that a result was made with; an empty one when it is not libcni's."""
    try:
        body = json_object(path.read_bytes(), str(path))
        return json_object(base64.b64decode(str(body["config"])), str(path)) if body.get("kind") == _KIND else {}
    except (OSError, CniError, ValueError, KeyError):
        return {}


def _cni_dir(conf: dict[str, Any]) -> Path:
    return Path(str(primary.plugins(conf)[0].get("cniDir") or MultusConfig.cni_dir))
