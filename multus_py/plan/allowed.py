# SPDX-License-Identifier: Apache-2.0
"""Which plugin types and folders of the node the networks of tenants may use, as the platform's config lists them.

Without a list all are allowed. Applies to definitions outside `globalNamespaces`, not to networks of our own config.
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

# Keys under which a config has the config of another plugin that is run for it: flannel has `delegate`.
_CARRIES_PLUGINS = frozenset(("ipam", "delegate", "delegates", "plugins"))
# Keys whose value is a path even when it is relative, to an unknown folder.
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
    """Raise when an object, at any depth, names a path outside the `allowedFolders`; without a list all are allowed."""
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
    """Yield the types of a plugin and of all that are run for it; keys match in any case, as in Go."""
    for key, value in plugin.items():
        folded = key.casefold()
        if folded == "type" and value not in ("", None):
            yield value
        elif folded in _CARRIES_PLUGINS:
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, Mapping):
                    yield from _types(inner)


def _paths(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every path in a config with its key; the keys of objects may be paths, too."""
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
    """Return the path in *text*; "" when it is none, as an address with its prefix length."""
    if uri := _URI.match(text):
        return uri.group(1)
    if text.startswith("/") or ".." in PurePosixPath(text).parts:
        return text
    return text if key.casefold() in _HOLDS_PATH else ""


def _is_within(path: str, config: MultusConfig) -> bool:
    """Tell whether *path* is in an allowed folder after links and `..` are resolved."""
    if not path.startswith("/") or "\0" in path:
        return False
    found = _resolved(path, config)
    return any(found.is_relative_to(_resolved(folder, config)) for folder in config.allowed_folders or ())


def _resolved(path: str, config: MultusConfig) -> Path:
    # os.path.realpath accepts what does not exist yet: ADD may create a folder.
    return Path(os.path.realpath(path)) if config.root == "/" else host_root.within(Path(config.root), path)
