# SPDX-License-Identifier: Apache-2.0
"""What a pod requests of one network, and how its plugins get it: in runtimeConfig or in CNI_ARGS.

runtimeConfig is for plugins that declare the capability. CNI_ARGS reaches every plugin of the chain, and few read it.
A request that no plugin would read is refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from multus_py.cni.conflist import Conflist
from multus_py.cni.errors import CniError, Code
from multus_py.config.selection import Selection

# What the runtime sets for one interface applies to the interface it requested, not to the pod's other ones.
_OF_AN_ADDRESS = ("ips", "ipRanges", "aliases", "portMappings")
_OF_A_DEVICE = ("mac", "infinibandGUID", "deviceID", "CNIDeviceInfoFile", "bandwidth")
_ONE_INTERFACE = frozenset(_OF_AN_ADDRESS + _OF_A_DEVICE)
# The keys of CNI_ARGS that known plugins read: the reference plugins 0.8 to 1.9, sriov-cni, ib-sriov-cni,
# rdma-cni, ovs-cni, bond-cni, whereabouts.
_READ: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("bridge", "macvlan", "tap", "tuning", "sriov", "ovs"), ("MAC",)),
    **dict.fromkeys(("host-local", "static", "whereabouts"), ("IP",)),
    **dict.fromkeys(("ipvlan", "vlan", "host-device", "ptp", "dummy", "loopback", "bond", "ib-sriov", "passthru"), ()),
    **dict.fromkeys(("portmap", "bandwidth", "firewall", "sbr", "vrf", "rdma", "dhcp"), ()),
}
# An unknown executable may read both, or the pod's annotation itself (OVN-Kubernetes does).
_MAYBE = ("MAC", "IP")
# The key of the annotation: the capability, the key of CNI_ARGS ("": none), plugins that support the capability.
_DELIVERY: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "ips": ("ips", "IP", ("host-local", "static")),
    "mac": ("mac", "MAC", ("bridge", "macvlan", "tap", "sriov", "tuning")),
    "infiniband-guid": ("infinibandGUID", "", ("ib-sriov",)),
    "portMappings": ("portMappings", "", ("portmap",)),
    "bandwidth": ("bandwidth", "", ("bandwidth",)),
}
# What an element of an annotation may request of a network.
REQUESTABLE = (*(capability for capability, _, _ in _DELIVERY.values()), "deviceID")


def runtime_config(primary: bool, asked: Selection | None, runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may become runtimeConfig: the runtime's values, then what the pod requests of this network."""
    base = {key: value for key, value in runtime.items() if primary or key not in _ONE_INTERFACE}
    if asked is None:
        return base
    requested = {_DELIVERY[key][0]: value for key, value in _requests(asked)}
    return {**base, **requested, **({"deviceID": asked.device_id} if asked.device_id else {})}


def cni_args(asked: Selection | None, conf: Conflist) -> dict[str, str]:
    """Return what the pod requests of this network as keys of CNI_ARGS."""
    if asked is None:
        return {}
    # host-local accepts one address here: a list needs the capability, if a plugin declares it.
    ips = asked.ips if len(asked.ips) == 1 or not is_declared(conf, "ips") else ()
    words = {"MAC": asked.mac, "IP": ",".join(ips)}
    return {word: value for word, value in words.items() if value}


def is_declared(conf: Conflist, capability: str) -> bool:
    """Tell whether a plugin of the chain declares *capability*."""
    return any(
        isinstance(found := plugin.get("capabilities"), Mapping) and found.get(capability) is True
        for plugin in conf.plugins
    )


def refuse_undeliverable(network: str, conf: Conflist, asked: Selection | None) -> None:
    """Refuse (code 7) what is requested of a network and reaches no plugin of its chain."""
    for key, value in _requests(asked) if asked else ():
        capability, word, _ = _DELIVERY[key]
        if is_declared(conf, capability):
            continue
        readers = {reader for reader in _readers(conf, word) if word in _READ.get(reader, _MAYBE)}
        if not readers:
            raise _undeliverable(network, conf, key, f"no plugin of its chain ({', '.join(conf.types)}) would be told")
        if key == "ips" and len(value) > 1 and readers == {"host-local"}:
            raise _undeliverable(network, conf, key, "host-local takes one address in CNI_ARGS")


def _requests(asked: Selection) -> Iterator[tuple[str, Any]]:
    """Yield what is requested, by its key in the annotation."""
    yield from (("ips", list(asked.ips)),) if asked.ips else ()
    yield from (("mac", asked.mac),) if asked.mac else ()
    yield from (("infiniband-guid", asked.infiniband_guid),) if asked.infiniband_guid else ()
    yield from (("portMappings", [dict(item) for item in asked.port_mappings]),) if asked.port_mappings else ()
    yield from (("bandwidth", asked.bandwidth),) if asked.bandwidth else ()


def _readers(conf: Conflist, word: str) -> Iterator[str]:
    """Yield the types of the plugins that may read a key of CNI_ARGS: for an address IPAM plugins, too."""
    yield from conf.types if word else ()
    if word == "IP":
        yield from filter(None, map(_ipam, conf.plugins))


def _ipam(plugin: Mapping[str, Any]) -> str:
    ipam = plugin.get("ipam")
    return str(ipam.get("type") or "") if isinstance(ipam, Mapping) else ""


def _undeliverable(network: str, conf: Conflist, key: str, why: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"network {network}: {key!r} is asked for, and {why}", _advice(conf, key))


def _advice(conf: Conflist, key: str) -> str:
    """Return what to write into which plugin of the chain, or which plugin the chain lacks."""
    capability, _, takers = _DELIVERY[key]
    line = f'"capabilities": {{"{capability}": true}}'
    for plugin in conf.plugins:
        if plugin["type"] in takers or _ipam(plugin) in takers:
            return f"write {line} into the plugin {plugin['type']}"
    for plugin in conf.plugins:
        if plugin["type"] not in _READ:
            return f"write {line} into the plugin {plugin['type']}, if it takes it"
    if key == "ips":
        return f"give a plugin an 'ipam' that takes them ({', '.join(takers)}), and write {line} beside it"
    return f'add a plugin that takes it, such as {{"type": "{takers[-1]}", {line}}}'
