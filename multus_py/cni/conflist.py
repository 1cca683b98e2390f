# SPDX-License-Identifier: Apache-2.0
"""A network configuration list (CNI spec 1.1.0, section 1): one network's plugins, each config unchanged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multus_py.cni import names, versions
from multus_py.cni.errors import CniError, Code


@dataclass(frozen=True)
class Conflist:
    """One network: name, version, and the plugins' configs, unchanged (unknown keys included)."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False
    only_inlined: bool = False
    single: bool = False  # written as one plugin's config, not as a list: the config for its delegate depends on it

    @property
    def types(self) -> tuple[str, ...]:
        """The plugins' types, in order."""
        return tuple(str(plugin["type"]) for plugin in self.plugins)

    def to_json(self) -> dict[str, Any]:
        """Return the list as libcni writes it."""
        body: dict[str, Any] = {
            "cniVersion": self.version,
            "name": self.name,
            "plugins": [dict(plugin) for plugin in self.plugins],
        }
        flags = {
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "loadOnlyInlinedPlugins": self.only_inlined,
        }
        return {**body, **{key: True for key, value in flags.items() if value}}


def parse(
    body: Mapping[str, Any], default_name: str = "", where: str = "config", *, in_folder: bool = False
) -> Conflist:
    """Read a list, or a single plugin's config as a list of one; code 7 names what is wrong.

    *default_name* is used when the config has no name of its own. *in_folder*: plugins may also come from a folder
    next to the file, so that the list itself may be empty (unless `loadOnlyInlinedPlugins`).
    """
    single = "plugins" not in body and not (in_folder and "type" not in body)
    plugins = [body] if single else body.get("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(plugin, Mapping) for plugin in plugins):
        raise CniError(Code.INVALID_CONFIG, f"{where}: 'plugins' must be a list of objects")
    only_inlined = _flag(body, "loadOnlyInlinedPlugins", where)
    if not plugins and (only_inlined or not in_folder):
        raise CniError(Code.INVALID_CONFIG, f"{where}: it has no plugins", "name at least one in 'plugins'")
    for n, plugin in enumerate(plugins):
        names.plugin_type(plugin.get("type"), where if single else f"{where}: plugins[{n}]")
    return Conflist(
        name=names.network(body.get("name") or default_name, f"{where}: name"),
        version=_version(body, where),
        plugins=tuple(plugins),
        disable_check=_flag(body, "disableCheck", where),
        disable_gc=_flag(body, "disableGC", where),
        only_inlined=only_inlined,
        single=single,
    )


def _version(body: Mapping[str, Any], where: str) -> str:
    """Return the highest supported version of cniVersion and cniVersions (spec 1.1.0: `cniVersions`)."""
    offered = body.get("cniVersions")
    if offered is None:
        try:
            return versions.resolve(body.get("cniVersion"))
        except CniError as cause:
            raise cause.with_context(where) from cause
    if not isinstance(offered, list) or not all(isinstance(item, str) for item in offered):
        raise CniError(Code.INVALID_CONFIG, f"{where}: 'cniVersions' must be a list of versions")
    supported: list[str] = [item for item in [*offered, body.get("cniVersion")] if item in versions.SUPPORTED]
    if not supported:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"{where}: none of cniVersions {offered} is supported",
            f"supported: {', '.join(versions.SUPPORTED)}",
        )
    return max(supported, key=versions.SUPPORTED.index)


def _flag(body: Mapping[str, Any], key: str, where: str) -> bool:
    value = body.get(key)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value is None or isinstance(value, bool):
        return bool(value)
    raise CniError(Code.INVALID_CONFIG, f"{where}: {key!r} must be true or false, it is {value!r}")
