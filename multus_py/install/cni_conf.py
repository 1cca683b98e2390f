# SPDX-License-Identifier: Apache-2.0
"""Our CNI config file ("conf") in the runtime's folder: its path and content, and how it is recognised."""

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

# Runtimes before CNI 1.1 read only cniVersion and refuse unknown versions; newer ones choose from cniVersions.
DEFAULT_VERSION = "1.0.0"
OFFERED_VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
MODE = 0o600
_MARK = ("writtenBy", "multus-py")
_MULTUS_CNI_TYPES = OUR_TYPES - {TYPE}


@dataclass(frozen=True)
class Folders:
    """The folders of a runtime: CNI plugins in *bin*, CNI config files in *conf*."""

    bin: Path
    conf: Path


@dataclass(frozen=True)
class InstallSpec:
    """What to install: the plugin *name*, the CNI config file that it wraps, and *keys* for its plugin config.

    *source* is where the plugin itself reads pods and definitions, `{"manifests": folder}` or `{"kubeconfig": file}`;
    it is empty when a daemon does that. *primary* is the file to wrap, None for the one that sorts first in
    *search_folder* (None: the conf folder); *wraps_primary* False: the daemon config names the default network, no file
    is wrapped. *version* pins cniVersion, "" offers all useful ones. *network* is the name of the network in the file:
    "" is that of the plugin, and with *takes_primary_name* it is that of the wrapped file.
    """

    folders: Folders
    source: Mapping[str, Path] = field(default_factory=dict)
    name: str = TYPE
    primary: Path | None = None
    version: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)
    search_folder: Path | None = None
    wraps_primary: bool = True
    network: str = ""
    takes_primary_name: bool = False
    capabilities: Mapping[str, bool] = field(default_factory=dict)

    @property
    def target(self) -> Path:
        """The path of our CNI config file."""
        return conf_path(self.folders.conf, self.name)


def install_spec(conf: CniConfFile) -> InstallSpec:
    """Return what to install for the daemon config: the default network's config is a file, or in a folder."""
    primary_path = Path(conf.default_network) if "/" in conf.default_network else None
    search_folder = conf.look_in or conf.folder
    if primary_path and (primary_path.is_dir() or conf.default_network.endswith("/")):
        search_folder, primary_path = primary_path, None
    return InstallSpec(
        folders=Folders(conf.bin_dir, conf.folder),
        name=conf.type,
        primary=primary_path,
        version=conf.version,
        keys=conf.shim_keys,
        search_folder=search_folder,
        wraps_primary=conf.wraps_primary,
        network=conf.network,
        takes_primary_name=conf.takes_primary_name,
        capabilities=dict.fromkeys(conf.capabilities, True),
    )


def conf_path(folder: Path, name: str) -> Path:
    """Return the path of the conf of the plugin *name*: the runtime uses the file that sorts first."""
    return folder / f"00-{name}.conflist"


def text(spec: InstallSpec, wrapped: Conf | None) -> bytes:
    """Return the content of our conf, which wraps *wrapped*."""
    body = (wrapped.body if wrapped else None) or {}
    plugin = {
        "type": spec.name,
        **({"clusterNetwork": str(wrapped.path)} if wrapped else {}),
        **spec.keys,
    }
    if declared := {**primary.capabilities(body), **spec.capabilities}:
        plugin["capabilities"] = declared
    name = str(body.get("name") or "") if spec.takes_primary_name else ""
    conf = {**_version(spec.version), "name": name or spec.network or spec.name, **dict([_MARK])}
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
    """Return the conf at *path* if it is ours, None if it is not or cannot be read."""
    try:
        body = json_object(path.read_bytes(), str(path))
    except (OSError, CniError):
        return None
    ours = body.get(_MARK[0]) == _MARK[1] or primary.has_only_types(body, frozenset({TYPE}))
    return body if ours else None


def copies(target: Path) -> list[Path]:
    """Return the paths of copies of our conf that another program made (`<name>.cilium_bak`)."""
    return sorted(path for path in target.parent.glob(f"{target.name}.*") if read(path) is not None)


def multus_cni_confs(folder: Path) -> list[Path]:
    """Return the confs of *folder* that are not ours and call multus-cni only."""
    found = [conf for conf in primary.survey(folder) if conf.body is not None]
    return [
        conf.path
        for conf in found
        if conf.body and primary.has_only_types(conf.body, _MULTUS_CNI_TYPES) and read(conf.path) is None
    ]


def back_up_multus_cni_confs(folder: Path) -> list[Path]:
    """Move multus-cni's confs in *folder* to backups, which no runtime reads; return their paths before."""
    found = multus_cni_confs(folder)
    for path in found:
        files.move_to_backup(path)
    return found


def sorting_before(target: Path) -> list[Path]:
    """Return the confs that sort before ours: a runtime would use the first of them instead."""
    return [path for path in primary.conf_files(target.parent) if path.name < target.name]
