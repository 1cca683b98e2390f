# SPDX-License-Identifier: Apache-2.0
"""Decide what a pod gets: config + pod + definitions -> attachments. Reads, never writes; refuses here or nowhere."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from multus_py.cni import conflist
from multus_py.cni.call import Call, json_object
from multus_py.cni.conflist import Conflist
from multus_py.cni.errors import CniError, Code
from multus_py.cni.result import Address
from multus_py.config import selection
from multus_py.config.plugin import MultusConfig, delegates_to_us
from multus_py.config.selection import Selection
from multus_py.kube.store import (
    DEFAULT_NETWORK,
    DEFAULT_NETWORKS,
    NETWORKS,
    RESOURCE_NAME,
    Device,
    KubeStore,
    NetworkDefinition,
    NotFound,
    Pod,
    PodRef,
)
from multus_py.plan import allowed, capabilities, device_info, devices

_LIST = ".conflist"
CONF_ENDINGS = (".conf", _LIST, ".json")
_CHAIN_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
# Who asked for a network: our own config, the pod's annotation, a /delegate request; or another program attached it.
ORIGINS = PLATFORM, POD, REQUEST, OTHER = ("platform", "pod", "request", "other")


@dataclass(frozen=True)
class Attachment:
    """One network of one pod, decided: everything that its plugins will be told, on ADD, CHECK and DEL alike.

    *name* is how people know it: `<namespace>/<definition>`, or the config's own name when it came from a file.
    *capabilities* is what may become a plugin's runtimeConfig; *default_route* None: nothing said, (): keep what the
    delegate sets, else one gateway per family. *device* is the one that belongs to it; the config names it already.
    *origin* is who asked for it, one of `ORIGINS`; "" when an earlier build wrote it down.
    """

    name: str
    conflist: Conflist
    ifname: str
    primary: bool
    args: tuple[tuple[str, str], ...] = ()
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    default_route: tuple[Address, ...] | None = None
    device: Device | None = None
    origin: str = ""

    def __str__(self) -> str:
        return f"network {self.name} as {self.ifname}"


class NoNetwork(CniError):
    """A network that is named and not there; *namespace* and *name* say which."""

    def __init__(self, namespace: str, name: str, why: str, details: str = "") -> None:
        super().__init__(
            Code.INVALID_CONFIG,
            f"cannot find a network-attachment-definition ({name}) in namespace ({namespace}): {why}",
            details,
        )


def pod_ref(call: Call) -> PodRef | None:
    """Return the pod that the runtime names in CNI_ARGS; None when the sandbox belongs to none."""
    name, namespace = _text(call.arg("K8S_POD_NAME")), _text(call.arg("K8S_POD_NAMESPACE"))
    return PodRef(namespace or "default", name, _text(call.arg("K8S_POD_UID"))) if name else None


def _text(value: str) -> str:
    """Return a value of an environment, which may be any bytes, as text that every store can look for."""
    return value if value.isascii() else value.encode(errors="surrogateescape").decode(errors="replace")


def attachments(
    call: Call,
    config: MultusConfig,
    pod: Pod | None,
    store: KubeStore | None,
    given: Sequence[devices.Source] | None = None,
) -> tuple[Attachment, ...]:
    """Return a sandbox's attachments in order: the default network, the other defaults, the pod's own.

    *given* tells which devices the pod was given, and is asked when a network names a resource. None: nobody can be
    asked (no pod, or no ADD), no network gets a device.
    """
    sources = Sources(config, store)
    networks = list(_cluster_networks(sources, pod))
    networks += _selected(pod, sources)
    networks += _auxiliary(config)
    names = [f"{network.name} as {_ifname(n, network, call)}" for n, network in enumerate(networks)]
    if call.verb != "DEL":  # which has to work for what came to be before this was refused
        for name, network in zip(names, networks, strict=True):
            capabilities.refuse_unheard(name, network.conflist, network.selection)
    wishes = [_wish(name, network) for name, network in zip(names, networks, strict=True)]
    chosen = [None] * len(wishes) if given is None else devices.assign(wishes, given)
    decided = tuple(
        _attach(n, network, call, config, pod, device=device)
        for n, (network, device) in enumerate(zip(networks, chosen, strict=True))
    )
    _refuse_clashes(decided)
    _refuse_rival_gateways(decided)
    return decided


def one_more(conf: Conflist, choice: Selection, call: Call, config: MultusConfig, pod: Pod | None) -> Attachment:
    """Return the attachment of one network that a running sandbox gets; *choice* names its interface."""
    plugins = tuple(_with_cni_args(plugin, choice.cni_args) for plugin in conf.plugins)
    name = f"{choice.namespace}/{choice.name}" if choice.namespace else conf.name
    if call.verb == "ADD":
        capabilities.refuse_unheard(f"{name} as {choice.interface}", conf, choice)
    decided = _attach(1, Network(name, replace(conf, plugins=plugins), choice), call, config, pod)
    return replace(decided, origin=REQUEST)


def beside(
    there: Sequence[Attachment],
    choice: Selection,
    call: Call,
    pod: Pod,
    *,
    sources: "Sources",
    given: Sequence[devices.Source],
) -> Attachment:
    """Return the attachment of one network that a running pod asks for, beside those that are *there*.

    *choice* names its interface. Its device is one that the pod was *given* and that none of those has.
    """
    network = sources.selected(choice, pod.namespace)
    name = f"{network.name} as {choice.interface}"
    capabilities.refuse_unheard(name, network.conflist, choice)
    wish = _wish(name, network)
    (device,) = devices.assign([wish], [partial(_left_over, source, there) for source in given])
    decided = _attach(1, network, call, sources.config, pod, device=device)
    _refuse_rival_gateways((*there, decided))
    return decided


def _left_over(source: devices.Source, there: Sequence[Attachment]) -> list[Device]:
    """Return the devices of a source that no attachment has."""
    held = {devices.identity(attachment.device) for attachment in there if attachment.device}
    named = {attachment.capabilities.get("deviceID") for attachment in there if not attachment.device}
    return [device for device in source() if devices.identity(device) not in held and device.id not in named]


@dataclass(frozen=True)
class Network:
    """A network found: its config, its name for people, what the pod asked of it, the resource that it is served by."""

    name: str
    conflist: Conflist
    selection: Selection | None = None
    resource: str = ""


def _cluster_networks(sources: "Sources", pod: Pod | None) -> Iterator[Network]:
    """Yield the networks that the platform gives to every pod; the first is the primary."""
    config = sources.config
    primary = _pods_default(pod, sources) or next(_configured(sources), None)
    if primary is None:
        raise CniError(
            Code.INVALID_CONFIG,
            "multus-py config: no default network",
            "set 'clusterNetwork' (a definition, a file or a folder) or 'delegates'",
        )
    yield primary
    if _declined(pod, config):
        return
    if not config.cluster_network:
        yield from list(_configured(sources))[1:]
    elif pod is None or pod.namespace not in config.system_namespaces:
        yield from (sources.named(value, "defaultNetworks") for value in config.default_networks)


def _declined(pod: Pod | None, config: MultusConfig) -> bool:
    """Tell whether the pod declines the networks that the platform gives it beside the primary, and may."""
    if pod is None or not selection.declines_defaults(pod.annotations.get(DEFAULT_NETWORKS, "")):
        return False
    if config.require_default_networks:
        raise CniError(
            Code.INVALID_CONFIG,
            f"annotation {DEFAULT_NETWORKS}: a pod may not decline the default networks here",
            "take the annotation away (requireDefaultNetworks of the node's config)",
        )
    return True


def _configured(sources: "Sources") -> Iterator[Network]:
    config = sources.config
    if config.cluster_network:
        yield sources.named(config.cluster_network, "clusterNetwork")
        return
    for n, body in enumerate(config.delegates):
        found = sources.conflist(body, f"multus-py config: delegates[{n}]", config.name)
        yield Network(found.name, found)


def _pods_default(pod: Pod | None, sources: "Sources") -> Network | None:
    """Return the network that the pod's default-network annotation puts in place of the cluster's."""
    text = pod.annotations.get(DEFAULT_NETWORK, "") if pod else ""
    chosen = selection.parse_default(text, sources.config.multus_namespace)
    return sources.selected(chosen, pod.namespace) if chosen and pod else None


def _selected(pod: Pod | None, sources: "Sources") -> list[Network]:
    if pod is None:
        return []
    chosen = selection.parse(pod.annotations.get(NETWORKS, ""), pod.namespace)
    return [sources.selected(choice, pod.namespace) for choice in chosen]


def _auxiliary(config: MultusConfig) -> list[Network]:
    """Return the auxiliary chain: plugins in a folder beside the cluster network's file, as one network more."""
    if not config.auxiliary_chain:
        return []
    if "/" not in config.cluster_network:
        raise CniError(
            Code.INVALID_CONFIG,
            "multus-py config: 'auxiliaryCNIChainName' needs 'clusterNetwork' to be a path",
            "name the file of the default network",
        )
    inline = Conflist(config.auxiliary_chain, config.version, ({"type": "passthru"},))
    found = _with_subdirectory(inline, Path(config.cluster_network).parent, config.type)
    return [Network(found.name, found)] if len(found.plugins) > 1 else []


@dataclass(frozen=True)
class Sources:
    """Where networks are found by name: definitions in the store, files in confDir, a path in our own config."""

    config: MultusConfig
    store: KubeStore | None

    def selected(self, choice: Selection, pod_namespace: str) -> Network:
        """Return the network that a pod names, whichever annotation it stands in; isolation holds on all of them."""
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
        plugins = tuple(_with_cni_args(plugin, choice.cni_args) for plugin in found.conflist.plugins)
        conf = replace(found.conflist, plugins=plugins)
        if choice.namespace not in config.global_namespaces:
            allowed.refuse_foreign(conf, f"definition {choice.namespace}/{choice.name}", config)
        elif choice.cni_args and pod_namespace not in config.global_namespaces:  # the pod's word, not the platform's
            allowed.refuse_foreign_paths(choice.cni_args, f"network {found.name}: cni-args", config)
        return replace(found, conflist=conf, selection=choice)

    def named(self, value: str, where: str) -> Network:
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
        """Return the network of a definition; one without `spec.config` stands in confDir under the same name."""
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
        """Read a config; one that would call us again is refused, one without a version gets ours."""
        if delegates_to_us(body, self.config.type):
            raise CniError(
                Code.INVALID_CONFIG, f"{where}: delegates to multus-py itself", "name the network that it should call"
            )
        versioned = (
            body if body.get("cniVersion") or body.get("cniVersions") else {**body, "cniVersion": self.config.version}
        )
        return conflist.parse(versioned, default_name, where, in_folder=in_folder)

    def _of_file(self, path: Path, body: Mapping[str, Any]) -> Conflist:
        """Read a config that stands in a file; a list gets the plugins of the folder beside it that has its name."""
        found = self.conflist(body, str(path), in_folder=True)
        whole = found if found.single else _with_subdirectory(found, path.parent, self.config.type)
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
        """Return the first config of a folder by name that does not call us."""
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
        """Return the config in confDir whose name is *name*; a broken file does not hide the ones after it.

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
    """Return the configs of a folder by name; of two that differ in their ending alone the list goes first."""
    try:
        found = [path for path in folder.iterdir() if path.suffix in CONF_ENDINGS and path.is_file()]
    except OSError:
        return []
    return sorted(found, key=lambda path: (f"{path.stem}.", path.suffix != _LIST, path.suffix))


def _json_file(path: Path, where: str) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as cause:
        # The file may be away for a moment, as when its owner writes it anew: the runtime should try again.
        raise CniError(Code.TRY_AGAIN, f"{where}: cannot read {path}: {cause.strerror}") from cause
    try:
        return json_object(text, str(path))
    except CniError as cause:
        raise CniError(Code.INVALID_CONFIG, f"{where}: {cause.msg}", cause.details) from cause


def _with_subdirectory(found: Conflist, folder: Path, own_type: str) -> Conflist:
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


def _with_cni_args(plugin: Mapping[str, Any], cni_args: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Merge what the pod wrote as `cni-args` into the plugin's `args.cni`."""
    if not cni_args:
        return plugin
    args = plugin.get("args")
    args = args if isinstance(args, Mapping) else {}
    cni = args.get("cni")
    return {**plugin, "args": {**args, "cni": {**(cni if isinstance(cni, Mapping) else {}), **cni_args}}}


def _ifname(n: int, network: Network, call: Call) -> str:
    """Return the name of the interface of a pod's network number *n*."""
    return (network.selection.interface if network.selection else "") or (call.ifname if n == 0 else f"net{n}")


def _wish(name: str, network: Network) -> devices.Wish | None:
    """Return what device a network, *name* for people, wants, None when none; the pod's word goes first."""
    asked = network.selection or Selection("", "")
    wish = devices.Wish(name, asked.resource or network.resource, asked.device_id, asked.container, asked.claim)
    if wish.container and not wish.counted:
        raise CniError(
            Code.INVALID_CONFIG,
            f"network {name}: a device of container {wish.container} is asked for, and of no resource",
            f"name a 'resourceName' or a 'claim' beside it, or annotate the definition with {RESOURCE_NAME}",
        )
    return wish if wish.counted or wish.id else None


def _attach(
    n: int, network: Network, call: Call, config: MultusConfig, pod: Pod | None, *, device: Device | None = None
) -> Attachment:
    asked = network.selection
    conf = _with_device(network.conflist, device)
    ifname = _ifname(n, network, call)
    told = capabilities.of(n == 0, asked, config.runtime_config or {})
    told |= {"deviceID": device.id} if device else {}
    if device or capabilities.declared(conf, device_info.CAPABILITY):
        told |= _device_file(network.name, ifname, call, config)
    return Attachment(
        name=network.name,
        conflist=conf,
        ifname=ifname,
        primary=n == 0,
        args=_args(call, pod, asked, conf),
        capabilities=told,
        default_route=asked.default_route if asked else None,
        device=device,
        origin=POD if asked and n else PLATFORM,
    )


def _device_file(name: str, ifname: str, call: Call, config: MultusConfig) -> dict[str, str]:
    path = device_info.path(config.device_info_dir, name, call.container_id, ifname)
    return {device_info.CAPABILITY: str(path)}


def _with_device(conf: Conflist, device: Device | None) -> Conflist:
    """Write the device into every plugin's config, under both names: some plugins read the one, some the other."""
    if device is None:
        return conf
    named = {"deviceID": device.id, "pciBusID": device.id}
    return replace(conf, plugins=tuple({**plugin, **named} for plugin in conf.plugins))


def _args(call: Call, pod: Pod | None, asked: Selection | None, conf: Conflist) -> tuple[tuple[str, str], ...]:
    """Return CNI_ARGS for a delegate: multus-cni's five keys first, each key once, then what the pod asked for."""
    own = dict(call.args)
    known = {"IgnoreUnknown": own.get("IgnoreUnknown", "true")}
    if pod:
        infra = own.get("K8S_POD_INFRA_CONTAINER_ID") or call.container_id
        known |= {
            "K8S_POD_NAMESPACE": pod.namespace,
            "K8S_POD_NAME": pod.name,
            "K8S_POD_INFRA_CONTAINER_ID": infra,
            "K8S_POD_UID": own.get("K8S_POD_UID") or pod.uid,
        }
    merged = {**known, **{key: value for key, value in own.items() if key not in known}}
    return tuple({**merged, **capabilities.args(asked, conf)}.items())


def _refuse_clashes(decided: tuple[Attachment, ...]) -> None:
    counted = Counter(attachment.ifname for attachment in decided)
    if clash := next((attachment for attachment in decided if counted[attachment.ifname] > 1), None):
        rivals = [attachment.name for attachment in decided if attachment.ifname == clash.ifname]
        raise CniError(
            Code.INVALID_CONFIG,
            f"two networks would have the interface {clash.ifname}: {', '.join(rivals)}",
            "ask for another interface name; net<N> counts from the default network, which is 0",
        )


def _refuse_rival_gateways(decided: tuple[Attachment, ...]) -> None:
    """Refuse a family's default route on two interfaces; one interface may have it by several gateways."""
    for family in (4, 6):
        claims = {
            attachment.ifname: f"{attachment} ({gateway})"
            for attachment in decided
            for gateway in attachment.default_route or ()
            if gateway.version == family
        }
        if len(claims) > 1:
            raise CniError(
                Code.INVALID_CONFIG,
                f"more than one network asks for the IPv{family} default-route: {', '.join(claims.values())}",
                "keep it in one element; that one may name several gateways",
            )
