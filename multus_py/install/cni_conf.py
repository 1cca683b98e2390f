# SPDX-License-Identifier: Apache-2.0
"""Our own conf in the runtime's folder: what it says, where it is, and how to tell it from any other."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multus_py.cni import versions
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code
from multus_py.config.daemon import CniConfFile
from multus_py.config.plugin import OUR_TYPES, TYPE
from multus_py.install import files, primary
from multus_py.install.primary import Conf

# Runtimes before CNI 1.1 read cniVersion alone and refuse what they do not know; newer ones choose from cniVersions.
DEFAULT_VERSION = "1.0.0"
OFFERED_VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
MODE = 0o600
_MARK = ("writtenBy", "multus-py")
_FORMER = OUR_TYPES - {TYPE}


@dataclass(frozen=True)
class Folders:
    """Where a runtime looks for executables and for conf files."""

    bin: Path
    conf: Path


@dataclass(frozen=True)
class Order:
    """What to install: the name of the plugin, what it wraps, and keys for its config.

    *source* is where the plugin itself reads pods and definitions, `{"manifests": folder}` or `{"kubeconfig": file}`;
    it is empty when a daemon does that. *primary* is the conf to wrap, None for the first one of *look_in* (None: the
    conf folder); *wraps* False: the daemon's config names the default network, no file is wrapped. *version* pins
    cniVersion, "" offers every version that has a use. *network* is the conf's own name: "" is the plugin's, and with
    *primary_name* it is the primary's.
    """

    folders: Folders
    source: Mapping[str, Path] = field(default_factory=dict)
    name: str = TYPE
    primary: Path | None = None
    version: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)
    look_in: Path | None = None
    wraps: bool = True
    network: str = ""
    primary_name: bool = False
    capabilities: Mapping[str, bool] = field(default_factory=dict)

    @property
    def target(self) -> Path:
        """Where our conf goes."""
        return conf_path(self.folders.conf, self.name)


def order(conf: CniConfFile) -> Order:
    """Return what to install for the daemon config: the default network's config is a file, or in a folder."""
    primary_path = Path(conf.default_network) if "/" in conf.default_network else None
    look_in = conf.look_in or conf.folder
    if primary_path and (primary_path.is_dir() or conf.default_network.endswith("/")):
        look_in, primary_path = primary_path, None
    return Order(
        folders=Folders(conf.bin_dir, conf.folder),
        name=conf.type,
        primary=primary_path,
        version=conf.version,
        keys=conf.shim_keys,
        look_in=look_in,
        wraps=conf.wraps,
        network=conf.network,
        primary_name=conf.overrides_name,
        capabilities=dict.fromkeys(conf.capabilities, True),
    )


def conf_path(folder: Path, name: str) -> Path:
    """Return where the conf of the plugin *name* is: the runtime takes the first by name."""
    return folder / f"00-{name}.conflist"


def text(order: Order, wrapped: Conf | None) -> bytes:
    """Return our conf around *wrapped*."""
    body = (wrapped.body if wrapped else None) or {}
    plugin = {
        "type": order.name,
        **({"clusterNetwork": str(wrapped.path)} if wrapped else {}),
        **order.keys,
    }
    if declared := {**primary.capabilities(body), **order.capabilities}:
        plugin["capabilities"] = declared
    name = str(body.get("name") or "") if order.primary_name else ""
    conf = {**_version(order.version), "name": name or order.network or order.name, **dict([_MARK])}
    return json.dumps({**conf, "plugins": [plugin]}, indent=2).encode() + b"\n"


def _version(pinned: str) -> dict[str, Any]:
    if not pinned:
        return {"cniVersion": DEFAULT_VERSION, "cniVersions": list(OFFERED_VERSIONS)}
    # A list of plugins exists from 0.3.0 (spec 0.3.0, "Network Configuration Lists").
    if not versions.at_least(versions.resolve(pinned), "0.3.0"):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion {pinned} has no plugin lists",
            "use 0.3.1, 0.4.0, 1.0.0 or 1.1.0",
        )
    return {"cniVersion": pinned}


def read(path: Path) -> dict[str, Any] | None:
    """Return the conf at *path* when it is ours, None when it is another's, or none that can be read."""
    try:
        body = json_object(path.read_bytes(), str(path))
    except (OSError, CniError):
        return None
    ours = body.get(_MARK[0]) == _MARK[1] or primary.has_only_types(body, frozenset({TYPE}))
    return body if ours else None


def copies(target: Path) -> list[Path]:
    """Return where somebody else put our conf under a longer name (`<name>.cilium_bak`)."""
    return sorted(path for path in target.parent.glob(f"{target.name}.*") if read(path) is not None)


def former(folder: Path) -> list[Path]:
    """Return the confs of *folder* that call multus-cni and nobody else, and are not ours."""
    found = [conf for conf in primary.survey(folder) if conf.body is not None]
    return [
        conf.path
        for conf in found
        if conf.body and primary.has_only_types(conf.body, _FORMER) and read(conf.path) is None
    ]


def set_former_aside(folder: Path) -> list[Path]:
    """Give multus-cni's confs in *folder* names that no runtime reads; return their former names."""
    found = former(folder)
    for path in found:
        files.move_to_backup(path)
    return found


def earlier(target: Path) -> list[Path]:
    """Return the confs that a runtime would call instead of ours, because they sort before it."""
    return [path for path in primary.conf_files(target.parent) if path.name < target.name]
