# SPDX-License-Identifier: Apache-2.0
"""What networks of tenants may use of the node: plugin types and folders, where the platform's config lists them.

Off unless it lists any. It holds for definitions outside `globalNamespaces`, never for networks that our config names.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from multus_py.cni.conflist import Conflist
from multus_py.cni.errors import CniError, Code
from multus_py.config.plugin import MultusConfig
from multus_py.kernel import host_root

# Keys under which a config names another plugin that somebody runs for it: flannel has `delegate`.
_CARRIES_PLUGINS = frozenset(("ipam", "delegate", "delegates", "plugins"))
# Keys that hold a path even where it is written relative to a folder that nobody knows.
_HOLDS_PATH = frozenset(("datadir", "kernelpath", "resolvconf", "logfile", "kubeconfig", "daemonsocketpath"))
_URI = re.compile(
    r"[a-zA-Z][a-zA-Z0-9+.\-]*:(?://(?=/))?(/(?!/[^/]).*)\Z", re.DOTALL
)  # file:///x, unix:/x; not https://host/x


def refuse_foreign(conf: Conflist, where: str, config: MultusConfig) -> None:
    """Raise when a network uses a plugin or a path that is not among `allowedPlugins` and `allowedFolders` (code 7)."""
    for n, plugin in enumerate(conf.plugins):
        place = where if conf.single else f"{where}: plugins[{n}]"
        if config.allowed_plugins is not None:
            for kind in _types(plugin):
                _refuse_type(kind, place, config)
        refuse_foreign_paths(plugin, place, config)


def refuse_foreign_paths(body: Mapping[str, Any], where: str, config: MultusConfig) -> None:
    """Raise when an object, at any depth, names a path outside the `allowedFolders`; all are fine where none is set."""
    if config.allowed_folders is None:
        return
    for key, path in _paths(body):
        if not _is_within(path, config):
            raise CniError(
                Code.INVALID_CONFIG,
                f"{where}: {key}: the path {path!r:.200} is not in a folder that may be used outside globalNamespaces",
                f"'allowedFolders' of the multus-py config has {', '.join(config.allowed_folders) or 'none'}",
            )


def _refuse_type(kind: object, where: str, config: MultusConfig) -> None:
    if isinstance(kind, str) and kind in (config.allowed_plugins or ()):
        return
    raise CniError(
        Code.INVALID_CONFIG,
        f"{where}: plugin type {kind!r:.80} may not be used outside globalNamespaces",
        f"'allowedPlugins' of the multus-py config has {', '.join(sorted(config.allowed_plugins or ())) or 'none'}",
    )


def _types(plugin: Mapping[str, Any]) -> Iterator[object]:
    """Yield the types of a plugin and of all that it has run for it; keys are found as Go finds them, any case."""
    for key, value in plugin.items():
        folded = key.casefold()
        if folded == "type" and value not in ("", None):
            yield value
        elif folded in _CARRIES_PLUGINS:
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, Mapping):
                    yield from _types(inner)


def _paths(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every path in a config with the key that it stands under; the keys of objects may be paths, too."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if path := _path(name, ""):
                yield key or name, path
            yield from _paths(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item, key)
    elif isinstance(value, str) and (path := _path(value, key)):
        yield key, path


def _path(text: str, key: str) -> str:
    """Return what of *text* is a path; "" for what is none, such as an address with its prefix length."""
    if uri := _URI.match(text):
        return uri.group(1)
    if text.startswith("/") or ".." in PurePosixPath(text).parts:
        return text
    return text if key.casefold() in _HOLDS_PATH else ""


def _is_within(path: str, config: MultusConfig) -> bool:
    """Tell whether *path* leads into an allowed folder, whatever links and `..` are on the way."""
    if not path.startswith("/") or "\0" in path:
        return False
    found = _resolved(path, config)
    return any(found.is_relative_to(_resolved(folder, config)) for folder in config.allowed_folders or ())


def _resolved(path: str, config: MultusConfig) -> Path:
    # os.path.realpath goes on past what is not there yet: ADD may make a folder.
    return Path(os.path.realpath(path)) if config.root == "/" else host_root.within(Path(config.root), path)
