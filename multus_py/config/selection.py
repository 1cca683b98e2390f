# SPDX-License-Identifier: Apache-2.0
"""The networks annotation of a pod, in the short form and in the JSON form.

Source: Kubernetes Network Custom Resource Definition De-facto Standard 1.3, sections 4.1 and 4.2.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from multus_py.cni import jsontext, names
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import FieldError, Fields
from multus_py.cni.result import Address
from multus_py.config import keys
from multus_py.config.formats import FORMATS, is_address
from multus_py.config.keys import PLUGIN, Key, Kind, key
from multus_py.kube.store import DEFAULT_NETWORK, DEFAULT_NETWORKS, NETWORKS

_PORT_MAX = 65535
_PORT = Kind("integer", {"type": "integer", "minimum": 1, "maximum": _PORT_MAX}, Fields.get)
_PROTOCOLS = ("tcp", "udp", "sctp")
_BITS = Kind("integer", {"type": "integer", "minimum": 0}, Fields.get)


# fmt: off
PORT_MAPPING = (
    Key("hostPort", _PORT, "Port on the node.", (PLUGIN,), required=True),
    Key("containerPort", _PORT, "Port in the pod.", (PLUGIN,), required=True),
    Key(
        "protocol",
        Kind("string", {"enum": [*_PROTOCOLS, *map(str.upper, _PROTOCOLS)]}, Fields.get),
        "Transport protocol.", (PLUGIN,)
    ),
    Key("hostIP", keys.TEXT, "Address on the node; absent: all.", (PLUGIN,), format="ip"),
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
        "portMappings", replace(keys.OBJECTS, members=PORT_MAPPING), "Ports of the node that lead to the pod.", PLUGIN,
        default=None
    )
    bandwidth: Mapping[str, Any] | None = key(
        "bandwidth", replace(keys.OBJECT, members=BANDWIDTH), "Traffic shaping.", PLUGIN, default=None
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
        "routes.",
        PLUGIN, format="ip", default=None
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
    (attribute, own, FORMATS[own.format], own.name not in ("name", "namespace"))
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
    if is_json(text):
        return _Json(text, namespace, annotation).selections()
    return tuple(_Short(text, namespace, annotation).selections())


def is_json(text: str) -> bool:
    """Return whether an annotation is in the JSON form: the short form has none of these characters."""
    return any(character in text for character in '[{"')


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


@dataclass(frozen=True)
class _Short:
    """`<namespace>/<name>@<interface>, ...`: names are DNS labels; dotted names need the JSON form."""

    text: str
    namespace: str
    annotation: str

    def selections(self) -> list[Selection]:
        found, at = [], 0
        for item in self.text.split(","):
            start = at + len(item) - len(item.lstrip())
            found.append(self._selection(item.strip(), start if item.strip() else at))
            at += len(item) + 1
        return found

    def _wrong(self, at: int, why: str, details: str = "") -> SelectionError:
        return SelectionError(self.annotation, self.text, at, why, details)

    def _selection(self, item: str, at: int) -> Selection:
        if not item:
            raise self._wrong(at, "an empty item", "remove the extra comma")
        for sign in "/@":
            if item.count(sign) > 1:
                second = item.index(sign, item.index(sign) + 1)
                raise self._wrong(at + second, f"a second {sign!r}", "write [namespace/]name[@interface]")
        path, named, interface = item.partition("@")
        namespace, slash, name = path.rpartition("/")
        if slash and not names.is_label(namespace):
            raise self._wrong(at, f"{namespace!r} is not a namespace", "lower-case letters, digits and '-', at most 63")
        if not names.is_label(name):
            raise self._wrong(
                at + len(namespace) + len(slash),
                f"{name!r} is not a DNS label",
                "a name with dots needs the JSON form" if names.is_subdomain(name) else "letters a-z, digits and '-'",
            )
        if named and (trouble := names.interface_problem(interface)):
            raise self._wrong(at + len(path) + 1, trouble)
        return Selection(name, namespace or self.namespace, interface)


@dataclass(frozen=True)
class _Json:
    """A JSON list of selection elements. Unknown keys are ignored: other implementations have keys with a domain."""

    text: str
    namespace: str
    annotation: str

    def selections(self) -> tuple[Selection, ...]:
        try:
            body = jsontext.parse(self.text)
        except json.JSONDecodeError as cause:
            raise self._wrong(cause.pos, f"not JSON: {cause.msg}") from cause
        if not isinstance(body, list):
            raise self._wrong(0, "must be a JSON list of networks", "put [ ] around it")
        return tuple(self._selection(item, n) for n, item in enumerate(body))

    def _wrong(self, at: int, why: str, details: str = "") -> SelectionError:
        return SelectionError(self.annotation, self.text, at, why, details)

    def _at(self, n: int, key: str = "") -> int:
        """Return the offset of element *n*, or of the value of its *key*, in the text."""
        offsets = value_offsets(self.text)
        found = next(
            (path for path in offsets if len(path) == 2 and path[0] == n and str(path[1]).casefold() == key), (n,)
        )
        return offsets.get(found, 0)

    def _selection(self, item: Any, n: int) -> Selection:
        if not isinstance(item, Mapping):
            raise self._wrong(self._at(n), f"a network must be a JSON object, not {json.dumps(item)[:40]}")
        fields = Fields(item, f"network {n + 1}")

        def wrong(key: str, why: str, details: str = "") -> SelectionError:
            return self._wrong(self._at(n, key.casefold()), why, details)

        try:
            found = keys.read(Selection, fields)
        except FieldError as cause:
            raise wrong(cause.key, cause.msg) from cause
        selection = Selection(**{"name": "", "namespace": self.namespace, **found})
        _validate(selection, wrong)
        # The annotation of the default network is not the standard's: OVN-Kubernetes takes both there.
        if selection.ips and selection.ipam_claim and self.annotation != DEFAULT_NETWORK:
            raise wrong(
                "ipam-claim-reference", "an IPAMClaim beside 'ips': the claim says which addresses", "keep one of them"
            )
        return selection


_Error = Callable[..., SelectionError]


def _validate(selection: Selection, wrong: _Error) -> None:
    for attribute, own, form, may_be_empty in _FORMATTED:
        value = getattr(selection, attribute)
        for text in (value,) if isinstance(value, str) else value:
            if not (form.accepts(text) or (may_be_empty and not text and not isinstance(value, tuple))):
                raise wrong(own.name, f"{text!r} is not {own.noun}", own.hint)
    if selection.interface and (problem := names.interface_problem(selection.interface)):
        raise wrong("interface", problem)
    for mapping in selection.port_mappings or ():
        _validate_port_mapping(mapping, wrong)
    for rate, value in (selection.bandwidth or {}).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise wrong("bandwidth", f"bandwidth {rate!r} must be a whole number of bits, it is {value!r}")
    for gateway in selection.default_route or ():
        if "%" in (address := str(gateway)):
            raise wrong("default-route", f"{address!r} names a zone", f"write {address.partition('%')[0]}")


def _validate_port_mapping(mapping: Mapping[str, Any], wrong: _Error) -> None:
    fields = Fields(mapping, "")
    for port in ("hostPort", "containerPort"):
        value = fields.get(port)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _PORT_MAX:
            raise wrong("portMappings", f"{port} must be a port from 1 to 65535, it is {value!r}")
    protocol = fields.get("protocol")
    if protocol is not None and str(protocol).lower() not in _PROTOCOLS:
        raise wrong("portMappings", f"protocol must be tcp, udp or sctp, it is {protocol!r}")
    host_ip = fields.get("hostIP")
    if host_ip not in (None, "") and not (isinstance(host_ip, str) and is_address(host_ip)):
        raise wrong("portMappings", f"hostIP must be an IP address, it is {host_ip!r}")


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
