# SPDX-License-Identifier: Apache-2.0
"""Put the plugin in front of a node's primary CNI, and take it away again: a launcher and one conf file.

Nothing here runs when pods start; the plugin itself is `entry/plugin.py`.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multus_py.cni import conflist, names, versions
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code, gathered
from multus_py.config import OUR_TYPES, TYPE

# Runtimes before CNI 1.1 read cniVersion alone and refuse what they do not know; newer ones choose from cniVersions.
DEFAULT_VERSION = "1.0.0"
OFFERED_VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
CONF_SUFFIXES = (".conf", ".conflist", ".json")

_MARK = "multus-py launcher"
_START = "import sys; from multus_py.entry.plugin import main; sys.exit(main())"
# Linux reads 256 bytes of a script's first line since 5.1, 128 before (include/uapi/linux/binfmts.h).
_SHEBANG_MAX = 127
_PROBE_SECONDS = 30


@dataclass(frozen=True)
class Folders:
    """Where a runtime looks for executables and for conf files."""

    bin: Path
    conf: Path


@dataclass(frozen=True)
class Order:
    """What to install: the name of the plugin, where it reads pods and definitions, and keys for its config.

    *source* is one of `{"manifests": folder}` or `{"kubeconfig": file}`; *primary* is the conf to wrap, None for the
    first one in the conf folder; *version* pins cniVersion, "" offers every version that has a use.
    """

    folders: Folders
    source: Mapping[str, Path]
    name: str = TYPE
    primary: Path | None = None
    version: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Installed:
    """What was written, and which conf it wraps."""

    launcher: Path
    conf: Path
    primary: Path

    def to_json(self) -> dict[str, str]:
        """Return the three paths as text."""
        return {"launcher": str(self.launcher), "conf": str(self.conf), "primary": str(self.primary)}


def install(order: Order) -> Installed:
    """Write launcher and conf; everything that can be refused is refused before the first write (codes 5, 6, 7)."""
    names.plugin_type(order.name, "--name")
    names.network(order.name, "--name")
    _writable_folder(order.folders.bin, "--cni-bin-dir")
    _writable_folder(order.folders.conf, "--cni-conf-dir")
    _free_to_take(order.folders.bin / order.name)
    source = {key: str(_source(key, path)) for key, path in order.source.items()}
    target = _conf_path(order.folders, order.name)
    _first_in_line(target)
    primary = order.primary.resolve() if order.primary else first_primary(order.folders.conf, order.name)
    wrapped = read_conf(primary)
    if is_meta(wrapped, order.name):
        raise CniError(
            Code.INVALID_CONFIG, f"{primary} is a meta-CNI's own conf, it cannot be the primary", "name another file"
        )
    body = _conf_body(order, source, primary, wrapped)
    launcher = _write_launcher(order.folders.bin / order.name)
    _replace(target, json.dumps(body, indent=2) + "\n", 0o600)
    return Installed(launcher, target, primary)


def uninstall(folders: Folders, name: str = TYPE) -> list[Path]:
    """Remove our conf and launcher, and nothing else; what is gone already is success. Returns what was removed."""
    names.plugin_type(name, "--name")
    removed, troubles = [], []
    # The conf goes first: from then on no new pod asks for the launcher.
    for path, is_ours in ((_conf_path(folders, name), _is_our_conf), (folders.bin / name, _is_our_launcher)):
        try:
            if _remove_ours(path, is_ours, name):
                removed.append(path)
        except CniError as trouble:
            troubles.append(trouble)
    if troubles:
        raise gathered("uninstall is not complete", troubles)
    return removed


def _remove_ours(path: Path, is_ours: Callable[[Path, str], bool], name: str) -> bool:
    if not path.is_file():
        return False
    if not is_ours(path, name):
        raise CniError(
            Code.INVALID_CONFIG, f"{path} was not written by multus-py install", "remove it by hand if you mean it"
        )
    try:
        path.unlink()
    except OSError as cause:
        raise CniError(Code.IO, f"cannot remove {path}: {cause.strerror}", "run as root") from cause
    return True


# --- the primary ------------------------------------------------------------------------------------------------------


def first_primary(folder: Path, name: str = TYPE) -> Path:
    """Return the first conf of *folder*, by name, that does not belong to a meta-CNI; code 7 when there is none."""
    passed_over = []
    for path in _confs(folder):
        try:
            body = read_conf(path)
        except CniError as trouble:
            passed_over.append(trouble.msg)
            continue
        if is_meta(body, name):
            passed_over.append(f"{path} is a meta-CNI's own conf")
            continue
        return path.resolve()
    raise CniError(
        Code.INVALID_CONFIG,
        f"no primary network is configured in {folder}",
        "; ".join([*passed_over, "install a CNI first, or name its conf with --primary FILE"]),
    )


def read_conf(path: Path) -> dict[str, Any]:
    """Read a conf file that a runtime would load; codes 5 (unreadable), 6 (no JSON) and 7 (no conf) name the file."""
    try:
        text = path.read_bytes()
    except OSError as cause:
        raise CniError(Code.IO, f"cannot read {path}: {cause.strerror}", "name an existing conf file") from cause
    try:
        body = json_object(text, str(path))
        conflist.parse(body, where=str(path))
    except CniError as trouble:
        raise CniError(trouble.code, trouble.msg, trouble.details or "mend the file, or name another one") from trouble
    return body


def is_meta(body: Mapping[str, Any], name: str) -> bool:
    """Tell, by content, whether a conf calls us or another meta-CNI: wrapping it would run in circles."""
    return any(
        plugin.get("type") in {*OUR_TYPES, name} or "delegates" in plugin or "clusterNetwork" in plugin
        for plugin in _plugins(body)
    )


def capabilities(body: Mapping[str, Any]) -> dict[str, bool]:
    """Return what any plugin of the conf declares: the runtime sends its values to us only when we declare them."""
    declared = [plugin.get("capabilities") for plugin in _plugins(body)]
    return {key: True for item in declared if isinstance(item, Mapping) for key, wanted in item.items() if wanted}


def _plugins(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = body.get("plugins", [body])
    return [plugin for plugin in listed if isinstance(plugin, Mapping)] if isinstance(listed, list) else []


def _confs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in CONF_SUFFIXES and path.is_file())


# --- checks before the first write ------------------------------------------------------------------------------------


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


def _free_to_take(launcher: Path) -> None:
    if launcher.is_dir():
        raise CniError(Code.IO, f"{launcher} is a folder", "choose another --name")
    if launcher.name not in OUR_TYPES and launcher.exists() and not _is_our_launcher(launcher):
        raise CniError(
            Code.INVALID_CONFIG, f"{launcher} exists and is another plugin's executable", "choose another --name"
        )


def _first_in_line(target: Path) -> None:
    # A runtime calls the first conf by name only: behind another one we would never be asked, and nobody would know.
    if earlier := [path for path in _confs(target.parent) if path.name < target.name]:
        raise CniError(
            Code.INVALID_CONFIG,
            f"{earlier[0]} sorts before {target.name}, so a runtime would go on calling it instead of us",
            f"rename it to a later name, for example 10-{earlier[0].name.lstrip('0123456789-_')}, or remove it",
        )


def _is_our_launcher(path: Path, _name: str = "") -> bool:
    try:
        with path.open("rb") as file:
            return _MARK.encode() in file.read(1024)
    except OSError:
        return False


def _is_our_conf(path: Path, name: str) -> bool:
    return any(plugin.get("type") == name for plugin in _plugins(json_object(path.read_bytes(), str(path))))


# --- the two files ----------------------------------------------------------------------------------------------------


def _conf_path(folders: Folders, name: str) -> Path:
    return folders.conf / f"00-{name}.conflist"


def _conf_body(order: Order, source: Mapping[str, str], primary: Path, wrapped: Mapping[str, Any]) -> dict[str, Any]:
    plugin = {
        "type": order.name,
        "clusterNetwork": str(primary),
        "binDir": str(order.folders.bin.resolve()),
        **source,
        **order.keys,
    }
    if declared := capabilities(wrapped):
        plugin["capabilities"] = declared
    if order.version:
        version = {"cniVersion": _pinned(order.version)}
        return {**version, "name": order.name, "plugins": [plugin]}
    return {
        "cniVersion": DEFAULT_VERSION,
        "cniVersions": list(OFFERED_VERSIONS),
        "name": order.name,
        "plugins": [plugin],
    }


def _pinned(version: str) -> str:
    # A list of plugins exists from 0.3.0 (spec 0.3.0, "Network Configuration Lists").
    if not versions.at_least(versions.known(version), "0.3.0"):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"--cni-version {version} has no plugin lists",
            "use 0.3.1, 0.4.0, 1.0.0 or 1.1.0",
        )
    return version


def launcher_text(interpreter: str) -> str:
    """Return the script that runs the plugin with *interpreter*, isolated from the caller's environment."""
    shebang = f"#!{interpreter} -I"
    if len(shebang) <= _SHEBANG_MAX and not any(sign.isspace() for sign in interpreter):
        return f"{shebang}\n# {_MARK}\n{_START}\n"
    command = shlex.join([interpreter, "-I", "-c", _START])
    return f'#!/bin/sh\n# {_MARK}\nexec {command} "$@"\n'


def _write_launcher(path: Path) -> Path:
    if not sys.executable:
        raise CniError(Code.INTERNAL, f"cannot write {path}: this Python does not know its own path", "use a venv")
    text = launcher_text(sys.executable)
    if path.is_file() and path.read_text(errors="replace") == text and os.access(path, os.X_OK):
        return path
    _replace(path, text, 0o755, proven=True)
    return path


def _replace(path: Path, text: str, mode: int, *, proven: bool = False) -> None:
    """Write *path* whole or not at all: a runtime sees the old file or the new one, also when it is running the old."""
    temporary = ""
    try:
        # A leading dot and no known suffix: no runtime reads it, nobody calls it.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if proven:
            _prove(Path(temporary))
        Path(temporary).rename(path)
        temporary = ""
        _sync_folder(path.parent)
    except OSError as cause:
        raise CniError(
            Code.IO, f"cannot write {path}: {cause.strerror}", "is the folder on a writable disk?"
        ) from cause
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _prove(launcher: Path) -> None:
    """Ask the launcher for VERSION with nothing else in its environment, as the poorest runtime would."""
    try:
        done = subprocess.run(
            [launcher],
            env={"CNI_COMMAND": "VERSION"},
            input=b"{}",
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise CniError(
            Code.IO, f"the launcher does not start from {launcher.parent}: {cause}", "is the disk mounted noexec?"
        ) from cause
    if done.returncode or b"supportedVersions" not in done.stdout:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise CniError(
            Code.INTERNAL,
            f"the launcher does not answer VERSION: {said[-1] if said else f'exit status {done.returncode}'}",
            f"{sys.executable} must be able to import multus_py without PYTHONPATH: install the package into it",
        )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
