# SPDX-License-Identifier: Apache-2.0
"""Put the plugin in front of a node's primary CNI, and take it away again: an executable and one conf file.

Nothing here runs when pods start: that is `entry/plugin.py`, or the daemon behind its shim.
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from multus_py.cni import names
from multus_py.cni.errors import CniError, Code, run_all
from multus_py.config.plugin import TYPE, MultusConfig
from multus_py.install import cached_results, cni_conf, executable, files, primary, withdrawal
from multus_py.install.cni_conf import Folders, InstallSpec
from multus_py.install.executable import Program
from multus_py.install.primary import Conf
from multus_py.kernel.undo import Undo
from multus_py.state.journal import Journal
from multus_py.state.spool import Spool

SOCKET_DIR = Path("/run/multus")


@dataclass(frozen=True)
class InstallResult:
    """What was written, which conf it wraps, and the former names of multus-cni's confs that were set aside."""

    executable: Path
    conf: Path
    primary: Path
    backed_up: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the paths as text."""
        return {
            "executable": str(self.executable),
            "conf": str(self.conf),
            "primary": str(self.primary),
            "setAside": [str(path) for path in self.backed_up],
        }


def install(order: InstallSpec, program: Program) -> InstallResult:
    """Put *program* and our conf in place; what can be refused is refused before the first write (codes 5, 6, 7)."""
    names.plugin_type(order.name, "--name")
    names.network(order.name, "--name")
    _writable_folder(order.folders.bin, "--cni-bin-dir")
    _writable_folder(order.folders.conf, "--cni-conf-dir")
    target = order.folders.bin / order.name
    executable.require_free_name(target)
    source = {key: str(_source(key, path)) for key, path in order.source.items()}
    former = cni_conf.multus_cni_confs(order.folders.conf)
    _first_in_line(order.target, former)
    wrapped = _wrapped(order)
    if source:
        order = replace(order, keys={"binDir": str(order.folders.bin.resolve()), **source, **order.keys})
    conf = cni_conf.text(order, wrapped)
    with Undo() as undo:
        for path in former:
            undo.add(files.restore_backup, path)
            files.move_to_backup(path)
        executable.install(program, target)
        files.replace(order.target, conf, cni_conf.MODE)
        undo.keep()
    withdrawal.clear(_socket_dir(order.keys))
    return InstallResult(target, order.target, wrapped.path, tuple(former))


def install_executable(folder: Path, name: str, program: Program, socket_dir: Path = SOCKET_DIR) -> Path:
    """Put *program* alone in place: the daemon writes the conf, when there is a primary to wrap."""
    names.plugin_type(name, "--name")
    _writable_folder(folder, "--cni-bin-dir")
    executable.install(program, folder / name)
    withdrawal.clear(socket_dir)
    return folder / name


def _wrapped(order: InstallSpec) -> Conf:
    if order.primary:
        return primary.read_wrappable(order.primary.resolve(), order.name)
    return primary.find_first(order.search_folder or order.folders.conf, order.name)


def _writable_folder(folder: Path, option: str) -> None:
    if not folder.is_dir():
        raise CniError(Code.IO, f"{option} {folder} is not a folder", f"create it: mkdir -p {shlex.quote(str(folder))}")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise CniError(Code.IO, f"{option} {folder} cannot be written by this user", "run as root")


def _source(key: str, path: Path) -> Path:
    found = path.is_dir() if key == "manifests" else path.is_file()
    if not found:
        kind = "folder" if key == "manifests" else "file"
        raise CniError(Code.IO, f"--{key} {path} is not an existing {kind}", f"create the {kind} first")
    return path.resolve()


def _first_in_line(target: Path, former: list[Path]) -> None:
    # A runtime uses only the first conf by name: behind another one we would never be called, without any sign.
    if rivals := [path for path in cni_conf.sorting_before(target) if path not in former]:
        raise CniError(
            Code.INVALID_CONFIG,
            f"{rivals[0]} sorts before {target.name}, so a runtime would go on calling it instead of us",
            f"rename it to a later name, for example 10-{rivals[0].name.lstrip('0123456789-_')}, or remove it",
        )


# --- and away again ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UninstallRequest:
    """What to take away. Folders that are None are read from our conf, and have their defaults when it is gone.

    *daemon_stays*: a running daemon is told to install nothing. Else the mark for it is removed, too: a daemon that is
    installed later is meant to install. *results* is where the runtime keeps results.
    """

    folders: Folders
    name: str = TYPE
    keep_executable: bool = False
    cni_dir: Path | None = None
    socket_dir: Path | None = None
    daemon_stays: bool = True
    results: Path = cached_results.RESULTS


@dataclass(frozen=True)
class Remaining:
    """What still depends on us: sandboxes in the journal, of which so many are *gone*, and DELs that wait for a daemon.

    *failures* are networks that were never attached and could not be rolled back: nothing waits for them.
    """

    sandboxes: int = 0
    tombstones: int = 0
    gone: int = 0
    failures: int = 0

    def __bool__(self) -> bool:
        return bool(self.sandboxes or self.tombstones)


@dataclass
class UninstallResult:
    """The outcome: *kept* is our executable when it has to stay, *cni_dir* where the journal is.

    *socket_dir* is where the daemon listens, *results* how many results of the runtime were removed, which nothing
    else would.
    """

    cni_dir: Path
    socket_dir: Path
    removed: list[Path] = field(default_factory=list)
    restored: list[Path] = field(default_factory=list)
    kept: Path | None = None
    remaining: Remaining = field(default_factory=Remaining)
    results: int = 0


def uninstall(asked: UninstallRequest) -> UninstallResult:
    """Take our conf and executable away, give back multus-cni's; what is gone already is success.

    The executable stays while sandboxes depend on it: a runtime that keeps the config of each ADD calls it for their
    DEL. Every step runs; the errors are raised together.
    """
    names.plugin_type(asked.name, "--name")
    target = cni_conf.conf_path(asked.folders.conf, asked.name)
    keys = _keys(cni_conf.read(target))
    done = UninstallResult(
        asked.cni_dir or Path(keys.get("cniDir") or MultusConfig.cni_dir), asked.socket_dir or _socket_dir(keys)
    )
    # The conf goes before the executable: from then on no new pod asks for it. What is given back comes first of all,
    # so that a runtime finds a conf at any time.
    run_all(
        "uninstall is not complete",
        partial(withdrawal.mark if asked.daemon_stays else withdrawal.clear, done.socket_dir),
        partial(_restore_backups, asked.folders, asked.name, done),
        partial(_remove_conf, target, done),
        partial(_remove_executable, asked, done),
        partial(_drop_results, asked, done),
    )
    return done


def remaining(cni_dir: Path, spool_dir: Path | None = None) -> Remaining:
    """Return what still depends on us; an unreadable journal file may be that of a sandbox."""
    book = Journal(cni_dir / "attachments")
    sandboxes, gone, failures = 0, 0, 0
    for sandbox in book.sandboxes():
        try:
            entry = book.read(*sandbox)
        except CniError:
            sandboxes += 1
            continue
        sandboxes += bool(entry.attachments)
        gone += bool(entry.attachments) and entry.is_gone()
        failures += len(entry.failures)
    return Remaining(sandboxes, len(Spool(spool_dir or cni_dir / "spool")), gone, failures)


def _restore_backups(folders: Folders, name: str, done: UninstallResult) -> None:
    for path in [folders.bin / name, *files.list_backups(folders.conf)]:
        if files.restore_backup(path):
            done.restored.append(path)


def _remove_conf(target: Path, done: UninstallResult) -> None:
    if target.is_file() and target not in done.restored:
        if cni_conf.read(target) is None:
            raise _not_ours(target)
        _remove(target, done)
    for copy in cni_conf.copies(target):
        _remove(copy, done)


def _remove_executable(asked: UninstallRequest, done: UninstallResult) -> None:
    path = asked.folders.bin / asked.name
    done.remaining = remaining(done.cni_dir)
    if not path.is_file() or path in done.restored:
        return
    if not executable.is_ours(path):
        raise _not_ours(path)
    if asked.keep_executable or done.remaining:
        done.kept = path
    else:
        _remove(path, done)


def _drop_results(asked: UninstallRequest, done: UninstallResult) -> None:
    # As long as a sandbox is left, the runtime may need its cached result for DEL.
    if not remaining(done.cni_dir):
        for path in cached_results.results(asked.results, asked.name, done.cni_dir):
            files.remove(path)
            done.results += 1


def _remove(path: Path, done: UninstallResult) -> None:
    files.remove(path)
    done.removed.append(path)


def _not_ours(path: Path) -> CniError:
    return CniError(
        Code.INVALID_CONFIG, f"{path} was not written by multus-py install", "remove it by hand if you mean it"
    )


def _keys(conf: Mapping[str, Any] | None) -> Mapping[str, Any]:
    found = primary.plugins(conf) if conf else []
    return found[0] if found else {}


def _socket_dir(keys: Mapping[str, Any]) -> Path:
    return Path(str(keys.get("socketDir") or SOCKET_DIR))
