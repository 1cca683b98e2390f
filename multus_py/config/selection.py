# SPDX-License-Identifier: Apache-2.0
"""The networks annotation of a pod, in the short form and in the JSON form.

Source: Kubernetes Network Custom Resource Definition De-facto Standard 1.3, sections 4.1 and 4.2.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from multus_py.cni import jsontext, names
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import FieldError, Fields
from multus_py.cni.result import Address
from multus_py.config import keys
from multus_py.config.formats import FORMATS, is_address
from multus_py.config.keys import PLUGIN, Key, Kind, key
from multus_py.kube.store import DEFAULT_NETWORK, DEFAULT_NETWORKS, NETWORKS

_PROTOCOLS = ("tcp", "udp", "sctp")


def _read_port(body: Fields, name: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise body.error(name, "a port from 1 to 65535")
    return value


def _read_protocol(body: Fields, name: str) -> str:
    value = str(body.get(name))
    if value.lower() not in _PROTOCOLS:
        raise body.error(name, "tcp, udp or sctp")
    return value


def _read_address(body: Fields, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not (value == "" or is_address(value)):
        raise body.error(name, "an IP address")
    return value


_PORT = Kind("integer", {"type": "integer", "minimum": 1, "maximum": 65535}, _read_port)
_PROTOCOL = Kind("string", {"enum": [*_PROTOCOLS, *map(str.upper, _PROTOCOLS)]}, _read_protocol)
_ADDRESS = Kind("string", {"type": "string"}, _read_address)
_BITS = Kind("integer", {"type": "integer", "minimum": 0}, Fields.number)
# fmt: off
PORT_MAPPING = (
    Key("hostPort", _PORT, "Port on the node.", (PLUGIN,), required=True),
    Key("containerPort", _PORT, "Port in the pod.", (PLUGIN,), required=True),
    Key(
        "protocol", _PROTOCOL, "Transport protocol.", (PLUGIN,)
    ),
    Key("hostIP", _ADDRESS, "Address on the node; absent: all.", (PLUGIN,), format="ip"),
)
BANDWIDTH = (
    Key("ingressRate", _BITS, "Rate of traffic to the pod.", (PLUGIN,), unit="bit/s"),
    Key("ingressBurst", _BITS, "Burst of traffic to the pod.", (PLUGIN,), unit="bit"),
    Key("egressRate", _BITS, "Rate of traffic from the pod.", (PLUGIN,), unit="bit/s"),
    Key("egressBurst", _BITS, "Burst of traffic from the pod.", (PLUGIN,), unit="bit"),
)


@dataclass(frozen=True)
class Selection:
    """One network that a pod requests (a network selection element). *default_route* None: not set; (): set to [].

    *resource*, *container* and *claim* choose among the pod's devices.
    """

    name: str = key(
        "name", keys.TEXT, "Name of a NetworkAttachmentDefinition.", PLUGIN, required=True, format="subdomain",
        noun="the name of a definition", hint="a DNS subdomain (RFC 1123)"
    )
    namespace: str = key(
        "namespace", keys.TEXT, "Namespace of the definition.", PLUGIN, format="label",
        default_text="the pod's namespace", noun="a namespace"
    )
    interface: str = key(
        "interface", keys.TEXT, "Name of the interface in the pod.", PLUGIN, format="interface", default="",
        default_text="`net<N>`",
        alias=Key("interfaceRequest", keys.TEXT, "Former name of interface.", (PLUGIN,), format="interface")
    )
    ips: tuple[str, ...] = key(
        "ips", keys.TEXTS, "Requested addresses, with or without prefix length.", PLUGIN, format="ip-or-cidr",
        default=(), noun="an IP address", hint='such as "10.1.2.3/24" or "fd00::3/64"'
    )
    mac: str = key(
        "mac", keys.TEXT, "Requested hardware address.", PLUGIN, format="mac", default="",
        noun="a MAC address", hint='6 bytes, such as "02:00:00:00:00:01", or 20'
    )
    infiniband_guid: str = key(
        "infiniband-guid", keys.TEXT, "Requested InfiniBand GUID.", PLUGIN, format="guid", default="",
        noun="a GUID", hint="8 bytes, colons between"
    )
    port_mappings: tuple[Mapping[str, Any], ...] | None = key(
        "portMappings", keys.OBJECTS._replace(members=PORT_MAPPING), "Ports of the node that lead to the pod.", PLUGIN,
        default=None
    )
    bandwidth: Mapping[str, Any] | None = key(
        "bandwidth", keys.OBJECT._replace(members=BANDWIDTH), "Traffic shaping.", PLUGIN, default=None
    )
    device_id: str = key(
        "deviceID", keys.TEXT,
        "Requested device, one of those allocated to the pod if the network names a resource.", PLUGIN,
        format="device-id", default="", noun="a device id"
    )
    cni_args: Mapping[str, Any] | None = key(
        "cni-args", keys.OBJECT, "Any JSON object, passed to the plugins as args.cni.", PLUGIN, default=None
    )
    default_route: tuple[Address, ...] | None = key(
        "default-route", keys.ADDRESSES,
        "Gateways of the pod's default route through this network; several of one family share it. [] keeps the "
        "routes.", PLUGIN, format="ip", default=None
    )
    ipam_claim: str = key(
        "ipam-claim-reference", keys.TEXT, "Name of an IPAMClaim, for plugins that read it; excludes ips.", PLUGIN,
        default=""
    )
    resource: str = key(
        "resourceName", keys.TEXT, "Resource whose device is requested.", PLUGIN, format="resource", default="",
        default_text="that of the definition", noun="the name of a resource", hint='such as "intel.com/sriov_a"'
    )
    container: str = key(
        "container", keys.TEXT, "Container whose device is requested.", PLUGIN, format="label", default="",
        noun="the name of a container", hint="a DNS label (RFC 1123)"
    )
    claim: str = key(
        "claim", keys.TEXT, "Resource claim of the pod whose device is requested: `<claim>` or `<claim>/<request>`.",
        PLUGIN, format="claim", default="", noun="a claim", hint='such as "vf" or "vf/request-name"'
    )


# fmt: on
# Keys of a network selection element.
KEYS = keys.declared(Selection)
# Attributes whose texts have a format: attribute, key, format, whether it may be empty.
_FORMATTED = tuple(
    (attribute, own, FORMATS[own.format], own.name not in ("name", "namespace", "ips"))
    for attribute, (own, *_) in keys.attributes(Selection).items()
    if own.noun
)


class SelectionError(CniError):
    """An annotation that cannot be parsed; *offset* is the position of the error in its text, counted from 0."""

    def __init__(self, annotation: str, text: str, offset: int, why: str, details: str = "") -> None:
        excerpt = text[max(0, offset - 12) : offset] + "»" + text[offset : offset + 20]
        super().__init__(
            Code.INVALID_CONFIG, f"annotation {annotation}, character {offset + 1} ({excerpt}): {why}", details
        )
        self.offset = offset
        self.why = why


def parse(text: str, namespace: str, annotation: str = NETWORKS) -> tuple[Selection, ...]:
    """Parse an annotation; *namespace* is the default of each network. `SelectionError` has the character."""
    if not text.strip():
        return ()
    source = _Source(text, namespace, annotation)
    return _parse_json(source) if is_json(text) else _parse_short(source)


def parse_default(text: str, namespace: str) -> Selection | None:
    """Parse the default-network annotation: one network or none; *namespace* is multusNamespace."""
    found = parse(text, namespace, DEFAULT_NETWORK)
    if len(found) > 1:
        raise SelectionError(DEFAULT_NETWORK, text, 0, "more than one default network is named", "name one")
    return found[0] if found else None


def declines_defaults(text: str) -> bool:
    """Return whether a pod declines defaultNetworks by its annotation: "none" does, "" does not."""
    if (value := text.strip()) not in ("", "none"):
        raise SelectionError(
            DEFAULT_NETWORKS, text, 0, f"{value!r:.40} is not a value of it", 'write "none", or remove it'
        )
    return bool(value)


def is_json(text: str) -> bool:
    """Return whether an annotation is in the JSON form: the short form has none of these characters."""
    return any(character in text for character in '[{"')


class _Source(NamedTuple):
    """The text of an annotation, the default namespace of its networks, and the annotation's name."""

    text: str
    namespace: str
    annotation: str

    def error(self, offset: int, why: str, details: str = "") -> SelectionError:
        return SelectionError(self.annotation, self.text, offset, why, details)

    def element_error(self, n: int, name: str, why: str, details: str = "") -> SelectionError:
        """Return the error about the key *name* of element *n*, or about the element where it has no such key."""
        offsets = value_offsets(self.text)
        folded = name.casefold()
        found = next(
            (path for path in offsets if len(path) == 2 and path[0] == n and str(path[1]).casefold() == folded), (n,)
        )
        return self.error(offsets.get(found, 0), why, details)


def _parse_short(source: _Source) -> tuple[Selection, ...]:
    """Parse `<namespace>/<name>@<interface>, ...`: names are DNS labels; dotted names need the JSON form."""
    found, offset = [], 0
    for item in source.text.split(","):
        start = offset + len(item) - len(item.lstrip())
        found.append(_short_selection(source, item.strip(), start if item.strip() else offset))
        offset += len(item) + 1
    return tuple(found)


def _short_selection(source: _Source, item: str, offset: int) -> Selection:
    if not item:
        raise source.error(offset, "an empty item", "remove the extra comma")
    for separator in "/@":
        if item.count(separator) > 1:
            second = item.index(separator, item.index(separator) + 1)
            raise source.error(offset + second, f"a second {separator!r}", "write [namespace/]name[@interface]")
    path, at, interface = item.partition("@")
    namespace, slash, name = path.rpartition("/")
    if slash and not names.is_label(namespace):
        hint = "lower-case letters, digits and '-', at most 63"
        raise source.error(offset, f"{namespace!r} is not a namespace", hint)
    if not names.is_label(name):
        raise source.error(
            offset + len(namespace) + len(slash),
            f"{name!r} is not a DNS label",
            "a name with dots needs the JSON form" if names.is_subdomain(name) else "letters a-z, digits and '-'",
        )
    if at and (problem := names.interface_problem(interface)):
        raise source.error(offset + len(path) + 1, problem)
    return Selection(name, namespace or source.namespace, interface)


def _parse_json(source: _Source) -> tuple[Selection, ...]:
    """Parse a JSON list of elements. Unknown keys are ignored: other implementations have keys of their domains."""
    try:
        body = jsontext.parse(source.text)
    except json.JSONDecodeError as cause:
        raise source.error(cause.pos, f"not JSON: {cause.msg}") from cause
    if not isinstance(body, list):
        raise source.error(0, "must be a JSON list of networks", "put [ ] around it")
    return tuple(_json_selection(source, item, n) for n, item in enumerate(body))


def _json_selection(source: _Source, item: Any, n: int) -> Selection:
    error = partial(source.element_error, n)
    if not isinstance(item, Mapping):
        raise error("", f"a network must be a JSON object, not {json.dumps(item)[:40]}")
    try:
        found = keys.read(Selection, Fields(item, f"network {n + 1}"))
    except FieldError as cause:
        raise error(cause.key, cause.msg) from cause
    selection = Selection(**{"name": "", "namespace": source.namespace, **found})
    _validate(selection, error)
    # The default network's annotation is not part of the standard: OVN-Kubernetes accepts both keys in it.
    if selection.ips and selection.ipam_claim and source.annotation != DEFAULT_NETWORK:
        raise error(
            "ipam-claim-reference", "an IPAMClaim beside 'ips': the claim says which addresses", "keep one of them"
        )
    return selection


def _validate(selection: Selection, error: Callable[..., SelectionError]) -> None:
    """Check what the kinds of the keys do not; *error* takes the key, the reason and the hint."""
    for attribute, own, form, may_be_empty in _FORMATTED:
        value = getattr(selection, attribute)
        for text in (value,) if isinstance(value, str) else value:
            if not (form.accepts(text) or (may_be_empty and not text)):
                raise error(own.name, f"{text!r} is not {own.noun}", own.hint)
    if selection.interface and (problem := names.interface_problem(selection.interface)):
        raise error("interface", problem)
    try:
        for mapping in selection.port_mappings or ():
            keys.check(PORT_MAPPING, Fields(mapping, "a port mapping"))
    except FieldError as cause:
        raise error("portMappings", cause.msg) from cause
    for rate, bits in (selection.bandwidth or {}).items():
        if isinstance(bits, bool) or not isinstance(bits, int) or bits < 0:
            raise error("bandwidth", f"bandwidth {rate!r} must be a whole number of bits, it is {bits!r}")
    for gateway in selection.default_route or ():
        if "%" in (address := str(gateway)):
            raise error("default-route", f"{address!r} names a zone", f"write {address.partition('%')[0]}")


def value_offsets(text: str) -> dict[tuple[int | str, ...], int]:
    """Return the offset of each value of the valid JSON document *text*, by its path: (0, "name") -> 10."""
    decoder, blank = json.JSONDecoder(strict=False), re.compile(r"[ \t\r\n]*")
    found: dict[tuple[int | str, ...], int] = {}

    def skip(at: int) -> int:
        match = blank.match(text, at)
        return match.end() if match else at

    def walk(at: int, path: tuple[int | str, ...]) -> int:
        found[path] = at
        if text[at] not in "[{":
            return decoder.raw_decode(text, at)[1]
        opening, n, at = text[at], 0, skip(at + 1)
        while text[at] not in "]}":
            key: int | str = n
            if opening == "{":
                key, at = decoder.raw_decode(text, at)
                at = skip(skip(at) + 1)
            at = skip(walk(at, (*path, key)))
            at, n = skip(at + 1) if text[at] == "," else at, n + 1
        return at + 1

    walk(skip(0), ())
    return found
