# SPDX-License-Identifier: Apache-2.0
"""Decide what a pod gets: config + pod + definitions -> attachments. Reads only; refuses what can be refused."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from multus_py.cni.call import Call
from multus_py.cni.conflist import Conflist
from multus_py.cni.errors import CniError, Code
from multus_py.config import selection
from multus_py.config.plugin import MultusConfig
from multus_py.config.selection import Selection
from multus_py.kube.store import (
    DEFAULT_NETWORK,
    DEFAULT_NETWORKS,
    NETWORKS,
    RESOURCE_NAME,
    Device,
    KubeStore,
    Pod,
)
from multus_py.plan import capabilities, device_info, devices
from multus_py.plan.attachment import PLATFORM, POD, REQUEST, Attachment
from multus_py.plan.networks import Network, Sources, with_cni_args, with_subdirectory


def sandbox_attachments(
    call: Call,
    config: MultusConfig,
    pod: Pod | None,
    store: KubeStore | None,
    device_sources: Sequence[devices.Source] | None = None,
) -> tuple[Attachment, ...]:
    """Return a sandbox's attachments in order: the default network, the other defaults, the pod's own.

    *device_sources* return the devices allocated to the pod, and are read when a network names a resource. None (no
    pod, or no ADD): no network gets a device.
    """
    sources = Sources(config, store)
    networks = list(_cluster_networks(sources, pod))
    networks += _selected(pod, sources)
    networks += _auxiliary(config)
    names = [f"{network.name} as {_ifname(n, network, call)}" for n, network in enumerate(networks)]
    if call.verb != "DEL":  # DEL has to work for what was attached before this was refused
        for name, network in zip(names, networks, strict=True):
            capabilities.refuse_undeliverable(name, network.conflist, network.selection)
    requests = [_device_request(name, network) for name, network in zip(names, networks, strict=True)]
    assigned = [None] * len(requests) if device_sources is None else devices.assign(requests, device_sources)
    attachments = tuple(
        _attachment(n, network, call, config, pod, device=device)
        for n, (network, device) in enumerate(zip(networks, assigned, strict=True))
    )
    _refuse_duplicate_names(attachments)
    _refuse_two_default_routes(attachments)
    return attachments


def requested_attachment(
    conf: Conflist, choice: Selection, call: Call, config: MultusConfig, pod: Pod | None
) -> Attachment:
    """Return the attachment of a network that a /delegate request asks for; *choice* names its interface."""
    plugins = tuple(with_cni_args(plugin, choice.cni_args) for plugin in conf.plugins)
    name = f"{choice.namespace}/{choice.name}" if choice.namespace else conf.name
    if call.verb == "ADD":
        capabilities.refuse_undeliverable(f"{name} as {choice.interface}", conf, choice)
    attachment = _attachment(1, Network(name, replace(conf, plugins=plugins), choice), call, config, pod)
    return replace(attachment, origin=REQUEST)


def additional_attachment(
    existing: Sequence[Attachment],
    choice: Selection,
    call: Call,
    pod: Pod,
    *,
    sources: Sources,
    device_sources: Sequence[devices.Source],
) -> Attachment:
    """Return the attachment of a network that a running pod requests in addition to its *existing* ones.

    *choice* names its interface. Its device is one of *device_sources* that no existing attachment has.
    """
    network = sources.selected_network(choice, pod.namespace)
    name = f"{network.name} as {choice.interface}"
    capabilities.refuse_undeliverable(name, network.conflist, choice)
    request = _device_request(name, network)
    (device,) = devices.assign([request], [partial(_free_devices, source, existing) for source in device_sources])
    attachment = _attachment(1, network, call, sources.config, pod, device=device)
    _refuse_two_default_routes((*existing, attachment))
    return attachment


def _free_devices(source: devices.Source, existing: Sequence[Attachment]) -> list[Device]:
    """Return the devices of a source that no attachment has."""
    used = {devices.identity(attachment.device) for attachment in existing if attachment.device}
    named = {attachment.capabilities.get("deviceID") for attachment in existing if not attachment.device}
    return [device for device in source() if devices.identity(device) not in used and device.id not in named]


def _cluster_networks(sources: Sources, pod: Pod | None) -> Iterator[Network]:
    """Yield the networks that the platform gives to every pod; the first is the primary."""
    config = sources.config
    primary = _default_network(pod, sources) or next(_configured(sources), None)
    if primary is None:
        raise CniError(
            Code.INVALID_CONFIG,
            "multus-py config: no default network",
            "set 'clusterNetwork' (a definition, a file or a folder) or 'delegates'",
        )
    yield primary
    if _declines_defaults(pod, config):
        return
    if not config.cluster_network:
        yield from list(_configured(sources))[1:]
    elif pod is None or pod.namespace not in config.system_namespaces:
        yield from (sources.configured_network(value, "defaultNetworks") for value in config.default_networks)


def _declines_defaults(pod: Pod | None, config: MultusConfig) -> bool:
    """Tell whether the pod declines the networks that the platform attaches in addition to the primary, and may."""
    if pod is None or not selection.declines_defaults(pod.annotations.get(DEFAULT_NETWORKS, "")):
        return False
    if config.require_default_networks:
        raise CniError(
            Code.INVALID_CONFIG,
            f"annotation {DEFAULT_NETWORKS}: a pod may not decline the default networks here",
            "take the annotation away (requireDefaultNetworks of the node's config)",
        )
    return True


def _configured(sources: Sources) -> Iterator[Network]:
    config = sources.config
    if config.cluster_network:
        yield sources.configured_network(config.cluster_network, "clusterNetwork")
        return
    for n, body in enumerate(config.delegates):
        found = sources.conflist(body, f"multus-py config: delegates[{n}]", config.name)
        yield Network(found.name, found)


def _default_network(pod: Pod | None, sources: Sources) -> Network | None:
    """Return the network that the pod's default-network annotation puts in place of the cluster's."""
    text = pod.annotations.get(DEFAULT_NETWORK, "") if pod else ""
    chosen = selection.parse_default(text, sources.config.multus_namespace)
    return sources.selected_network(chosen, pod.namespace) if chosen and pod else None


def _selected(pod: Pod | None, sources: Sources) -> list[Network]:
    if pod is None:
        return []
    chosen = selection.parse(pod.annotations.get(NETWORKS, ""), pod.namespace)
    return [sources.selected_network(choice, pod.namespace) for choice in chosen]


def _auxiliary(config: MultusConfig) -> list[Network]:
    """Return the auxiliary chain: plugins in a folder next to the cluster network's file, as an additional network."""
    if not config.auxiliary_chain:
        return []
    if "/" not in config.cluster_network:
        raise CniError(
            Code.INVALID_CONFIG,
            "multus-py config: 'auxiliaryCNIChainName' needs 'clusterNetwork' to be a path",
            "name the file of the default network",
        )
    inline = Conflist(config.auxiliary_chain, config.version, ({"type": "passthru"},))
    found = with_subdirectory(inline, Path(config.cluster_network).parent, config.type)
    return [Network(found.name, found)] if len(found.plugins) > 1 else []


def _ifname(n: int, network: Network, call: Call) -> str:
    """Return the name of the interface of a pod's network number *n*."""
    return (network.selection.interface if network.selection else "") or (call.ifname if n == 0 else f"net{n}")


def _device_request(name: str, network: Network) -> devices.DeviceRequest | None:
    """Return the device that a network requests, None when none; *name* is for messages. The pod's request wins."""
    asked = network.selection or Selection("", "")
    resource = asked.resource or network.resource
    request = devices.DeviceRequest(name, resource, asked.device_id, asked.container, asked.claim)
    if request.container and not request.is_allocated:
        raise CniError(
            Code.INVALID_CONFIG,
            f"network {name}: a device of container {request.container} is asked for, and of no resource",
            f"name a 'resourceName' or a 'claim' beside it, or annotate the definition with {RESOURCE_NAME}",
        )
    return request if request.is_allocated or request.id else None


def _attachment(
    n: int, network: Network, call: Call, config: MultusConfig, pod: Pod | None, *, device: Device | None = None
) -> Attachment:
    asked = network.selection
    conf = _with_device(network.conflist, device)
    ifname = _ifname(n, network, call)
    values = capabilities.runtime_config(n == 0, asked, config.runtime_config or {})
    values |= {"deviceID": device.id} if device else {}
    if device or capabilities.is_declared(conf, device_info.CAPABILITY):
        values |= _device_file(network.name, ifname, call, config)
    return Attachment(
        name=network.name,
        conflist=conf,
        ifname=ifname,
        primary=n == 0,
        args=_args(call, pod, asked, conf),
        capabilities=values,
        default_route=asked.default_route if asked else None,
        device=device,
        origin=POD if asked and n else PLATFORM,
    )


def _device_file(name: str, ifname: str, call: Call, config: MultusConfig) -> dict[str, str]:
    path = device_info.path(config.device_info_dir, name, call.container_id, ifname)
    return {device_info.CAPABILITY: str(path)}


def _with_device(conf: Conflist, device: Device | None) -> Conflist:
    """Add the device to every plugin's config under both keys in use."""
    if device is None:
        return conf
    named = {"deviceID": device.id, "pciBusID": device.id}
    return replace(conf, plugins=tuple({**plugin, **named} for plugin in conf.plugins))


def _args(call: Call, pod: Pod | None, asked: Selection | None, conf: Conflist) -> tuple[tuple[str, str], ...]:
    """Return CNI_ARGS for a delegate: multus-cni's five keys first, each key once, then what the pod requests."""
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
    return tuple({**merged, **capabilities.cni_args(asked, conf)}.items())


def _refuse_duplicate_names(attachments: tuple[Attachment, ...]) -> None:
    counted = Counter(attachment.ifname for attachment in attachments)
    if first := next((attachment for attachment in attachments if counted[attachment.ifname] > 1), None):
        same = [attachment.name for attachment in attachments if attachment.ifname == first.ifname]
        raise CniError(
            Code.INVALID_CONFIG,
            f"two networks would have the interface {first.ifname}: {', '.join(same)}",
            "ask for another interface name; net<N> counts from the default network, which is 0",
        )


def _refuse_two_default_routes(attachments: tuple[Attachment, ...]) -> None:
    """Refuse a family's default route on two interfaces; one interface may have it by several gateways."""
    for family in (4, 6):
        claims = {
            attachment.ifname: f"{attachment} ({gateway})"
            for attachment in attachments
            for gateway in attachment.default_route or ()
            if gateway.version == family
        }
        if len(claims) > 1:
            raise CniError(
                Code.INVALID_CONFIG,
                f"more than one network asks for the IPv{family} default-route: {', '.join(claims.values())}",
                "keep it in one element; that one may name several gateways",
            )
