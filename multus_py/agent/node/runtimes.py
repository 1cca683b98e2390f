# SPDX-License-Identifier: Apache-2.0
"""Where a node's container runtime reads CNI confs and plugins, from its own config under a root folder.

*root* is the node's file system as this process sees it: "/" on the node itself, the mount of it in a container. All
returned paths are the node's own. Sources: containerd-config.toml(5) and its CRI plugin's guide, crio.conf(5).
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from multus_py.kernel.host_root import within

CONF_DIR, BIN_DIR = "/etc/cni/net.d", "/opt/cni/bin"  # the defaults of both runtimes

# Where distributions have containerd's config; the command line of the running process has precedence.
_CONTAINERD = (
    "/etc/containerd/config.toml",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    "/var/snap/microk8s/current/args/containerd.toml",
    "/etc/k0s/containerd.toml",
    "/etc/cri/containerd.toml",
)
_CRIO = ("/etc/crio/crio.conf", "/etc/crio/crio.conf.d")
# The CRI plugin's section in files of version 3, 2 and 1.
_CRI = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri")


@dataclass(frozen=True)
class Runtime:
    """A container runtime. *config* is the file that was read, *trouble* why it cannot be: then defaults are returned.

    *conf_limit* is how many confs of the folder it uses (0: all), *network* the name of the only one it takes, if so;
    *template* the file from which it writes a conf itself.
    """

    name: str
    config: str
    conf_dir: str = CONF_DIR
    bin_dirs: tuple[str, ...] = (BIN_DIR,)
    running: bool = False
    conf_limit: int = 1
    network: str = ""
    template: str = ""
    trouble: str = ""


class _Unreadable(Exception):
    """A config file that cannot be read; the text says why."""


def runtimes(root: Path) -> list[Runtime]:
    """Return the runtimes that serve pods: those that run, else those whose config exists."""
    running = [found for words in _commands(root) for found in _of_command(root, words)]
    return list(dict.fromkeys(running)) or list(_configured(root))


def _commands(root: Path) -> Iterator[list[str]]:
    """Yield the words of every process's command line (proc(5))."""
    for path in sorted((root / "proc").glob("[0-9]*/cmdline")):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended meanwhile
        if words[0]:
            yield words


def _of_command(root: Path, words: list[str]) -> Iterator[Runtime]:
    name = PurePosixPath(words[0]).name
    if name == "containerd":
        yield from _containerd(root, _option(words, "--config", "-c") or _CONTAINERD[0], running=True)
    elif name == "crio":
        yield _crio(root, words, running=True)


def _configured(root: Path) -> Iterator[Runtime]:
    for path in _CONTAINERD:
        if within(root, path).is_file():
            yield from _containerd(root, path)
    if any(within(root, path).exists() for path in _CRIO):
        yield _crio(root, ["crio"])


def _option(words: list[str], *names: str) -> str:
    """Return the last value given to an option, as `--name value` or `--name=value`; "" without one."""
    found = ""
    for n, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in names:
            found = value if equals else (words[n + 1] if n + 1 < len(words) else "")
    return found


def _table(body: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return a table inside a table; an empty one for what is absent or is none."""
    for key in keys:
        inner = body.get(key)
        body = inner if isinstance(inner, Mapping) else {}
    return body


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    return value if isinstance(value, str) else ""


def _texts(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = body.get(key)
    return tuple(item for item in value if isinstance(item, str) and item) if isinstance(value, list) else ()


def _read(root: Path, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(within(root, path).read_text())
    except (OSError, ValueError) as cause:  # text that is neither UTF-8 nor TOML is a ValueError
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise _Unreadable(f"cannot read {path}: {reason}") from cause


# --- containerd -------------------------------------------------------------------------------------------------------


def _containerd(root: Path, path: str, *, running: bool = False) -> Iterator[Runtime]:
    """Yield the runtime that a containerd with this config is; nothing when it does not serve pods."""
    if running and path == _CONTAINERD[0] and not within(root, path).exists():
        yield Runtime("containerd", path, running=True)
        return
    try:
        body = _merged(root, path)
    except _Unreadable as trouble:
        yield Runtime("containerd", path, running=running, trouble=str(trouble))
        return
    if set(_texts(body, "disabled_plugins")) & set(_CRI):
        return  # that of docker
    sections = [_table(body, "plugins", name, "cni") for name in _CRI]
    section = next(filter(None, sections), sections[0])
    bin_dir = _text(section, "bin_dir") or BIN_DIR
    limit = section.get("max_conf_num", 1)
    yield Runtime(
        "containerd",
        path,
        _text(section, "conf_dir") or CONF_DIR,
        _texts(section, "bin_dirs") or (bin_dir,),
        running,
        conf_limit=limit if isinstance(limit, int) else 1,
        template=_text(section, "conf_template"),
    )


def _merged(root: Path, path: str) -> dict[str, Any]:
    """Read a config and what it imports, in containerd's order: each file once, breadth first, the later one wins."""
    merged: dict[str, Any] = {}
    pending, seen = [path], set()
    while pending:
        path = pending.pop(0)
        if path in seen:
            continue
        seen.add(path)
        body = _read(root, path)
        pending += [found for item in _texts(body, "imports") for found in _imported(root, path, item)]
        version = merged.get("version", body.get("version", 1))
        # Before version 3 an imported section took the place of the whole one; now its keys join.
        merged = _joined(merged, body, depth=9 if isinstance(version, int) and version >= 3 else 1)
        merged["version"] = version
    return merged


def _imported(root: Path, importer: str, pattern: str) -> list[str]:
    whole = PurePosixPath(importer).parent / pattern
    if "*" not in whole.name:
        return [str(whole)]
    folder = within(root, str(whole.parent))
    return [str(whole.parent / found.name) for found in sorted(folder.glob(whole.name))]


def _joined(older: Mapping[str, Any], newer: Mapping[str, Any], depth: int) -> dict[str, Any]:
    found = dict(older)
    for key, value in newer.items():
        before = found.get(key)
        if isinstance(before, list) and isinstance(value, list):
            found[key] = before + [item for item in value if item not in before]
        elif depth and isinstance(before, Mapping) and isinstance(value, Mapping):
            found[key] = _joined(before, value, depth - 1)
        elif value not in ("", 0) or key not in found:
            found[key] = value
    return found


# --- CRI-O ------------------------------------------------------------------------------------------------------------


def _crio(root: Path, words: list[str], *, running: bool = False) -> Runtime:
    """Return the CRI-O of a command line: its file, then the folder's by name, then its options; the later one wins."""
    file = _option(words, "--config", "-c") or _CRIO[0]
    folder = _option(words, "--config-dir", "-d") or _CRIO[1]
    settings: dict[str, Any] = {}
    try:
        for path in [file, *_crio_drop_ins(root, folder)]:
            if path != file or within(root, path).exists():
                settings |= _table(_read(root, path), "crio", "network")
    except _Unreadable as trouble:
        return Runtime("cri-o", file, running=running, trouble=str(trouble))
    plugin_dirs = [name for name in _option(words, "--cni-plugin-dir").split(",") if name]
    legacy = _text(settings, "plugin_dir")
    return Runtime(
        "cri-o",
        file,
        _option(words, "--cni-config-dir") or _text(settings, "network_dir") or CONF_DIR,
        tuple(plugin_dirs) or (*_texts(settings, "plugin_dirs"), *((legacy,) if legacy else ())) or (BIN_DIR,),
        running,
        network=_option(words, "--cni-default-network") or _text(settings, "cni_default_network"),
    )


def _crio_drop_ins(root: Path, folder: str) -> list[str]:
    try:
        found = sorted(os.listdir(within(root, folder)))  # noqa: PTH208  names alone, in CRI-O's order
    except OSError:
        return []
    return [f"{folder}/{name}" for name in found if within(root, f"{folder}/{name}").is_file()]
