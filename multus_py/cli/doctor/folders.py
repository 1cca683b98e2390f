# SPDX-License-Identifier: Apache-2.0
"""The runtime's folders: the confs that it reads, whether ours sorts first, the plugins they need, and the disk."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multus_py.cli.doctor.node import ExaminedNode
from multus_py.cli.doctor.node_finding import Level, NodeFinding, error_finding
from multus_py.cni.errors import CniError
from multus_py.config.plugin import OUR_TYPES
from multus_py.install import primary, shim
from multus_py.verbs import plugins

_LOW = 64 * 1024 * 1024  # bytes; the journal needs little, but a full disk fails every ADD
_MACHINES = {62: "x86_64", 183: "aarch64"}  # ELF e_machine (elf.h)


def findings(node: ExaminedNode) -> Iterator[NodeFinding]:
    """Yield the findings about the folders."""
    yield from _runtimes(node)
    yield from _confs(node)
    yield from _executables(node)
    yield from _disk(node)


def _runtimes(node: ExaminedNode) -> Iterator[NodeFinding]:
    for runtime in node.runtimes:
        state = "runs" if runtime.running else "is configured"
        summary = f"{runtime.name} {state} ({runtime.config}): confs in {runtime.conf_dir}"
        yield NodeFinding(Level.OK, "runtime", f"{summary}, plugins in {', '.join(runtime.bin_dirs)}")
        if runtime.trouble:
            yield NodeFinding(Level.WARNING, "runtime", runtime.trouble, "its default folders are looked at")
        if runtime.conf_limit != 1:
            number = runtime.conf_limit or "all"
            yield NodeFinding(
                Level.FAILED,
                "runtime",
                f"{runtime.config}: max_conf_num is {runtime.conf_limit}: {number} confs would be called for each pod",
                "set max_conf_num to 1: the first conf is ours, and it calls the primary's",
            )
        if runtime.network and runtime.network != node.name:
            yield NodeFinding(
                Level.FAILED,
                "runtime",
                f"{runtime.config}: cni_default_network is {runtime.network!r}: our conf would never be called",
                f"remove it, or set it to {node.name!r}",
            )
        if runtime.template:
            yield NodeFinding(
                Level.WARNING,
                "runtime",
                f"{runtime.name} writes a conf of its own from {runtime.template}",
                "see that its name sorts behind ours",
            )
    if not node.runtimes:
        yield NodeFinding(
            Level.WARNING,
            "runtime",
            f"no containerd and no CRI-O was found under {node.root}",
            "name its folders with --cni-conf-dir and --cni-bin-dir; in a container, mount the node's / and use --root",
        )


# --- confs ------------------------------------------------------------------------------------------------------------


def _confs(node: ExaminedNode) -> Iterator[NodeFinding]:
    folder = node.at(node.conf_dir)
    if not folder.is_dir():
        yield NodeFinding(
            Level.FAILED, "confs", f"{node.conf_dir} is not a folder on this node", "start the runtime once"
        )
        return
    yield from _writable(node, node.conf_dir, "confs")
    try:
        found = list(primary.survey(folder, node.name))
    except CniError as error:
        yield error_finding("confs", error)
        return
    ours = [conf for conf in found if conf.body and _calls(conf.body, {node.name})]
    yield from _order(node, found, ours)
    for conf in found:
        if conf.body is None:
            yield NodeFinding(Level.WARNING, "confs", conf.problem, "a runtime stops at it, or passes it over")
        elif conf not in ours and _calls(conf.body, OUR_TYPES):
            yield NodeFinding(
                Level.WARNING,
                "confs",
                f"{node.conf_dir}/{conf.path.name} belongs to another meta-CNI",
                "install takes it over; remove the other one's DaemonSet",
            )
    yield from _renamed(node, folder)


def _order(node: ExaminedNode, found: list[primary.Conf], ours: list[primary.Conf]) -> Iterator[NodeFinding]:
    usable = [conf for conf in found if conf.body is not None]
    first = [conf for conf in usable if not conf.problem]
    if not ours:
        advice = "run multus-py install, or wait for the daemon to do it"
        yield NodeFinding(Level.WARNING, "confs", f"our conf is not in {node.conf_dir}", advice)
    elif usable[0] != ours[0]:
        yield NodeFinding(
            Level.FAILED,
            "confs",
            f"{node.conf_dir}/{usable[0].path.name} sorts before {ours[0].path.name}: the runtime does not call us",
            "rename or remove it",
        )
    else:
        yield NodeFinding(Level.OK, "confs", f"{node.conf_dir}/{ours[0].path.name} is the first conf")
    if first:
        yield NodeFinding(Level.OK, "confs", f"the primary network is {node.conf_dir}/{first[0].path.name}")
    elif not (node.settings.delegates or node.settings.cluster_network):
        yield error_finding("confs", primary.no_primary_error(Path(node.conf_dir), [conf.problem for conf in found]))


def _calls(body: Mapping[str, Any], types: set[str] | frozenset[str]) -> bool:
    return any(plugin.get("type") in types for plugin in primary.plugins(body))


def _renamed(node: ExaminedNode, folder: Path) -> Iterator[NodeFinding]:
    for path in sorted(folder.glob("*multus-py.conflist.*")):
        yield NodeFinding(
            Level.WARNING,
            "confs",
            f"{node.conf_dir}/{path.name}: somebody renamed our conf",
            "the daemon puts it back; if the primary is Cilium, set cni.exclusive to false there",
        )


# --- executables ------------------------------------------------------------------------------------------------------


def _executables(node: ExaminedNode) -> Iterator[NodeFinding]:
    bin_dir = node.bin_dirs[0]
    if not node.at(bin_dir).is_dir():
        advice = "create it, or tell the right one with --cni-bin-dir"
        yield NodeFinding(Level.FAILED, "plugins", f"{bin_dir} is not a folder on this node", advice)
        return
    yield from _writable(node, bin_dir, "plugins")
    yield _executable(node)
    missing = {
        plugin_type: path.name
        for path, plugin_type in _required_plugins(node)
        if not any(_is_executable(node, f"{folder}/{plugin_type}") for folder in node.bin_dirs)
    }
    for plugin_type, conf in missing.items():
        if plugin_type in plugins.NATIVE:
            yield NodeFinding(Level.NOTE, "plugins", f"{conf} names {plugin_type}, which runs inside multus-py alone")
            continue
        yield NodeFinding(
            Level.FAILED,
            "plugins",
            f"{conf} names the plugin {plugin_type}, and there is no such executable in {', '.join(node.bin_dirs)}",
            "install it there; its own DaemonSet may not have run yet",
        )


def _required_plugins(node: ExaminedNode) -> Iterator[tuple[Path, str]]:
    """Yield the plugins of the default network, its IPAM plugins included, with the conf that names them."""
    folder = node.at(node.conf_dir)
    try:
        found = [conf for conf in primary.survey(folder, node.name) if not conf.problem and conf.body]
    except CniError:
        return
    for plugin in primary.plugins(found[0].body or {}) if found else ():
        ipam = plugin.get("ipam")
        for body in (plugin, ipam if isinstance(ipam, Mapping) else {}):
            if isinstance(named := body.get("type"), str) and named:
                yield found[0].path, named


def _executable(node: ExaminedNode) -> NodeFinding:
    """Check the executable that the runtime calls for us."""
    path = f"{node.bin_dirs[0]}/{node.name}"
    if not node.at(path).exists():
        advice = "run multus-py install, or wait for the daemon to do it"
        return NodeFinding(Level.WARNING, "plugins", f"{path} is not there: the runtime cannot call us", advice)
    if not _is_executable(node, path):
        return NodeFinding(Level.FAILED, "plugins", f"{path} cannot be executed", "run multus-py install again")
    text = node.at(path).read_bytes()
    machine = _machine(text)
    if machine and machine != os.uname().machine:
        advice = "run multus-py install again, with a wheel for this machine"
        return NodeFinding(Level.FAILED, "plugins", f"{path} is built for {machine}", advice)
    if machine and not _is_packaged(text, machine):
        return NodeFinding(
            Level.WARNING, "plugins", f"{path} is not the shim of this version", "run multus-py install again"
        )
    return NodeFinding(Level.OK, "plugins", f"{path} can be executed")


def _machine(text: bytes) -> str:
    """Return the architecture of an ELF executable; "" for other files."""
    if text[:4] != b"\x7fELF" or len(text) < 20:
        return ""
    number = int.from_bytes(text[18:20], "little" if text[5] == 1 else "big")
    return _MACHINES.get(number, f"machine {number}")


def _is_packaged(text: bytes, machine: str) -> bool:
    try:
        return shim.path(machine).read_bytes() == text
    except CniError:
        return True  # this installation has no shim to compare with


def _is_executable(node: ExaminedNode, path: str) -> bool:
    seen = node.at(path)
    return seen.is_file() and os.access(seen, os.X_OK)


# --- the disk ---------------------------------------------------------------------------------------------------------


def _writable(node: ExaminedNode, folder: str, area: str) -> Iterator[NodeFinding]:
    if os.statvfs(node.at(folder)).f_flag & os.ST_RDONLY or not os.access(node.at(folder), os.W_OK):
        yield NodeFinding(
            Level.FAILED, area, f"{folder} cannot be written", "name the folder that the runtime really reads"
        )


def _disk(node: ExaminedNode) -> Iterator[NodeFinding]:
    cni_dir = node.at(node.settings.cni_dir)
    existing = next(folder for folder in (cni_dir, *cni_dir.parents) if folder.exists())
    disk = os.statvfs(existing)
    if disk.f_flag & os.ST_RDONLY:
        fact = f"{node.settings.cni_dir} is on a read-only disk: nothing can be remembered"
        yield NodeFinding(Level.FAILED, "disk", fact, "set cniDir to a folder that can be written")
    elif disk.f_bavail * disk.f_frsize < _LOW or (disk.f_files and not disk.f_favail):
        free = f"{disk.f_bavail * disk.f_frsize // 1024} KiB and {disk.f_favail} inodes"
        yield NodeFinding(
            Level.FAILED, "disk", f"{node.settings.cni_dir} has {free} left", "make room: ADD needs the disk"
        )
    else:
        yield NodeFinding(Level.OK, "disk", f"{node.settings.cni_dir} has room")
