# SPDX-License-Identifier: Apache-2.0
"""Folders and settings of the examined node: from the options, else from its runtime's config, else the defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multus_py.agent.node import runtimes
from multus_py.agent.node.runtimes import Runtime
from multus_py.config import daemon as daemon_config
from multus_py.config import plugin as configs
from multus_py.config.daemon import DaemonConfig
from multus_py.config.plugin import TYPE, MultusConfig
from multus_py.kernel import host_root


@dataclass(frozen=True)
class Options:
    """The options of the command line; "" means the default."""

    root: str = ""
    config: str = ""
    conf_dir: str = ""
    bin_dir: str = ""
    socket_dir: str = ""
    name: str = TYPE


@dataclass(frozen=True)
class ExaminedNode:
    """A node. Paths as text are paths on the node; `at` returns where this process finds them.

    *settings* are those of the config file, or the defaults.
    """

    root: Path
    config: str
    daemon: DaemonConfig
    settings: MultusConfig
    runtimes: tuple[Runtime, ...]
    conf_dir: str
    bin_dirs: tuple[str, ...]
    socket_dir: str
    name: str

    def at(self, path: str | Path) -> Path:
        """Return the path by which this process finds *path* of the node."""
        return host_root.within(self.root, str(path))


def examined_node(options: Options) -> ExaminedNode:
    """Return the node that the options describe; a CniError when the daemon's config file cannot be read."""
    daemon = daemon_config.load(Path(options.config)) if options.config else DaemonConfig()
    root = Path(options.root or daemon.chroot_dir or "/")
    found = tuple(runtimes.runtimes(root))
    first = found[0] if found else Runtime("", "")
    return ExaminedNode(
        root=root,
        config=options.config,
        daemon=daemon,
        settings=_settings(daemon.overlay),
        runtimes=found,
        conf_dir=options.conf_dir or first.conf_dir,
        bin_dirs=(options.bin_dir,) if options.bin_dir else first.bin_dirs,
        socket_dir=options.socket_dir or str(daemon.socket_dir),
        name=options.name,
    )


def _settings(overlay: Mapping[str, Any]) -> MultusConfig:
    return configs.parse({"name": TYPE, **overlay})
