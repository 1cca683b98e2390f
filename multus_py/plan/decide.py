# SPDX-License-Identifier: Apache-2.0
"""Decide what a pod gets: config + pod + definitions -> attachments. Reads, never writes; refuses here or nowhere."""

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


def requested_attachment(
    conf: Conflist, choice: Selection, call: Call, config: MultusConfig, pod: Pod | None
) -> Attachment:
    """Return the attachment of one network that a running sandbox gets; *choice* names its interface."""
    plugins = tuple(with_cni_args(plugin, choice.cni_args) for plugin in conf.plugins)
    name = f"{choice.namespace}/{choice.name}" if choice.namespace else conf.name
    if call.verb == "ADD":
        capabilities.refuse_unheard(f"{name} as {choice.interface}", conf, choice)
    decided = _attach(1, Network(name, replace(conf, plugins=plugins), choice), call, config, pod)
    return replace(decided, origin=REQUEST)


def additional_attachment(
    there: Sequence[Attachment],
    choice: Selection,
    call: Call,
    pod: Pod,
    *,
    sources: Sources,
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


def _cluster_networks(sources: Sources, pod: Pod | None) -> Iterator[Network]:
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


def _configured(sources: Sources) -> Iterator[Network]:
    config = sources.config
    if config.cluster_network:
        yield sources.named(config.cluster_network, "clusterNetwork")
        return
    for n, body in enumerate(config.delegates):
        found = sources.conflist(body, f"multus-py config: delegates[{n}]", config.name)
        yield Network(found.name, found)


def _pods_default(pod: Pod | None, sources: Sources) -> Network | None:
    """Return the network that the pod's default-network annotation puts in place of the cluster's."""
    text = pod.annotations.get(DEFAULT_NETWORK, "") if pod else ""
    chosen = selection.parse_default(text, sources.config.multus_namespace)
    return sources.selected(chosen, pod.namespace) if chosen and pod else None


def _selected(pod: Pod | None, sources: Sources) -> list[Network]:
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
    found = with_subdirectory(inline, Path(config.cluster_network).parent, config.type)
    return [Network(found.name, found)] if len(found.plugins) > 1 else []


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
