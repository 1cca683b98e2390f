# SPDX-License-Identifier: Apache-2.0
"""Find networks by name: definitions in the store, files in confDir, a path in our own config."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multus_py.cni import conflist
from multus_py.cni.call import json_object
from multus_py.cni.conflist import Conflist
from multus_py.cni.errors import CniError, Code
from multus_py.config.plugin import MultusConfig, delegates_to_us
from multus_py.config.selection import Selection
from multus_py.kube.store import RESOURCE_NAME, KubeStore, NetworkDefinition, NotFound
from multus_py.plan import allowed

_LIST = ".conflist"
CONF_ENDINGS = (".conf", _LIST, ".json")
_CHAIN_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")


class NoNetwork(CniError):
    """A requested network that does not exist: *name* in *namespace*."""

    def __init__(self, namespace: str, name: str, why: str, details: str = "") -> None:
        super().__init__(
            Code.INVALID_CONFIG,
            f"cannot find a network-attachment-definition ({name}) in namespace ({namespace}): {why}",
            details,
        )


@dataclass(frozen=True)
class Network:
    """A network: its name for messages, its config, the pod's request for it, the resource name of its devices."""

    name: str
    conflist: Conflist
    selection: Selection | None = None
    resource: str = ""


@dataclass(frozen=True)
class Sources:
    """Finds networks by name: definitions in the store, files in confDir, a path in our own config."""

    config: MultusConfig
    store: KubeStore | None

    def selected_network(self, choice: Selection, pod_namespace: str) -> Network:
        """Return the network that an annotation of a pod names; isolation applies to every annotation."""
        config = self.config
        open_to_it = config.global_namespaces | {pod_namespace}
        if config.namespace_isolation and choice.namespace not in open_to_it:
            raise CniError(
                Code.INVALID_CONFIG,
                f"namespace isolation: a pod in namespace {pod_namespace} may not use "
                f"the network {choice.namespace}/{choice.name}",
                f"allowed: {', '.join(sorted(open_to_it))} (globalNamespaces)",
            )
        found = self.definition(choice.namespace, choice.name)
        plugins = tuple(with_cni_args(plugin, choice.cni_args) for plugin in found.conflist.plugins)
        conf = replace(found.conflist, plugins=plugins)
        if choice.namespace not in config.global_namespaces:
            allowed.refuse_foreign(conf, f"definition {choice.namespace}/{choice.name}", config)
        elif choice.cni_args and pod_namespace not in config.global_namespaces:  # written by the pod, not the platform
            allowed.refuse_foreign_paths(choice.cni_args, f"network {found.name}: cni-args", config)
        return replace(found, conflist=conf, selection=choice)

    def configured_network(self, value: str, where: str) -> Network:
        """Return a network that our config names: a path, or a definition, or the name of a config in confDir."""
        if "/" in value:
            found = self._path(Path(value), where)
            return Network(found.name, found)
        namespace = self.config.multus_namespace
        try:
            return self.definition(namespace, value)
        except NoNetwork as missing:
            if conf := self._in_conf_dir(value):
                return Network(conf.name, conf)
            raise missing.with_context(f"multus-py config: {where} {value!r}") from missing

    def definition(self, namespace: str, name: str) -> Network:
        """Return the network of a definition; without `spec.config` it is the config of that name in confDir."""
        if self.store is None:
            raise NoNetwork(namespace, name, "there is no store", "set 'kubeconfig' or 'manifests'")
        try:
            definition = self.store.definition(namespace, name)
        except NotFound as missing:
            raise NoNetwork(namespace, name, missing.msg, missing.details) from missing
        conf = self._conflist_of(definition)
        return Network(f"{namespace}/{name}", conf, resource=definition.annotations.get(RESOURCE_NAME, "").strip())

    def _conflist_of(self, definition: NetworkDefinition) -> Conflist:
        namespace, name = definition.namespace, definition.name
        where = f"definition {namespace}/{name}: spec.config"
        if not definition.config.strip():
            if conf := self._in_conf_dir(name):
                return conf
            raise NoNetwork(
                namespace, name, f"its spec.config is empty and no config in {self.config.conf_dir} has that name"
            )
        try:
            body = json_object(definition.config, where)
        except CniError as cause:
            raise CniError(Code.INVALID_CONFIG, cause.msg, cause.details) from cause
        return self.conflist(body, where, name)

    def conflist(
        self, body: Mapping[str, Any], where: str, default_name: str = "", *, in_folder: bool = False
    ) -> Conflist:
        """Read a config; refuse one that delegates to multus-py; one without a version gets that of our config."""
        if delegates_to_us(body, self.config.type):
            raise CniError(
                Code.INVALID_CONFIG, f"{where}: delegates to multus-py itself", "name the network that it should call"
            )
        versioned = (
            body if body.get("cniVersion") or body.get("cniVersions") else {**body, "cniVersion": self.config.version}
        )
        return conflist.parse(versioned, default_name, where, in_folder=in_folder)

    def _of_file(self, path: Path, body: Mapping[str, Any]) -> Conflist:
        """Read a config file; a list gets the plugins of the folder `<name>` next to it."""
        found = self.conflist(body, str(path), in_folder=True)
        whole = found if found.single else with_subdirectory(found, path.parent, self.config.type)
        if not whole.plugins:
            raise CniError(
                Code.INVALID_CONFIG,
                f"{path}: network {found.name} has no plugins",
                f"name them in 'plugins', or put *.conf files into {path.parent / found.name}",
            )
        return whole

    def _path(self, path: Path, where: str) -> Conflist:
        if path.is_dir():
            return self._first_in(path, where)
        return self._of_file(path, _json_file(path, f"multus-py config: {where}"))

    def _first_in(self, folder: Path, where: str) -> Conflist:
        """Return the first config of a folder by file name that does not delegate to multus-py."""
        for path in _conf_files(folder):
            body = _json_file(path, f"multus-py config: {where}")
            if not delegates_to_us(body, self.config.type):
                return self._path(path, where)
        raise CniError(
            Code.INVALID_CONFIG,
            f"multus-py config: {where}: no network config in {folder}",
            f"put a file there that ends in {', '.join(CONF_ENDINGS)}",
        )

    def _in_conf_dir(self, name: str) -> Conflist | None:
        """Return the config in confDir whose name is *name*; a file that cannot be read is skipped.

        Lists go before all other files, as the standard (3.4.1) and libcni have it.
        """
        for path in sorted(_conf_files(self.config.conf_dir), key=lambda path: path.suffix != _LIST):
            try:
                body = _json_file(path, "confDir")
            except CniError:
                continue
            if body.get("name") == name:
                return self._of_file(path, body)
        return None


def _conf_files(folder: Path) -> Iterable[Path]:
    """Return the configs of a folder by name; of two that differ only in their ending the list comes first."""
    try:
        found = [path for path in folder.iterdir() if path.suffix in CONF_ENDINGS and path.is_file()]
    except OSError:
        return []
    return sorted(found, key=lambda path: (f"{path.stem}.", path.suffix != _LIST, path.suffix))


def _json_file(path: Path, where: str) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as cause:
        # The file may be missing while its owner replaces it: the runtime should try again.
        raise CniError(Code.TRY_AGAIN, f"{where}: cannot read {path}: {cause.strerror}") from cause
    try:
        return json_object(text, str(path))
    except CniError as cause:
        raise CniError(Code.INVALID_CONFIG, f"{where}: {cause.msg}", cause.details) from cause


def with_subdirectory(found: Conflist, folder: Path, own_type: str) -> Conflist:
    """Append the plugins in `<folder>/<name>/*.conf`, as libcni does unless `loadOnlyInlinedPlugins` says not to."""
    if found.only_inlined or not _CHAIN_NAME.match(found.name):
        return found
    files = [path for path in _conf_files(folder / found.name) if path.suffix == ".conf"]
    bodies = [_json_file(path, f"network {found.name}") for path in files]
    if any(delegates_to_us(body, own_type) for body in bodies):
        raise CniError(
            Code.INVALID_CONFIG, f"network {found.name}: {folder / found.name} delegates to multus-py itself"
        )
    more = [
        conflist.parse({**body, "name": found.name}, where=str(path)).plugins[0]
        for path, body in zip(files, bodies, strict=True)
    ]
    return replace(found, plugins=(*found.plugins, *more))


def with_cni_args(plugin: Mapping[str, Any], cni_args: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Merge what the pod wrote as `cni-args` into the plugin's `args.cni`."""
    if not cni_args:
        return plugin
    args = plugin.get("args")
    args = args if isinstance(args, Mapping) else {}
    cni = args.get("cni")
    return {**plugin, "args": {**args, "cni": {**(cni if isinstance(cni, Mapping) else {}), **cni_args}}}
