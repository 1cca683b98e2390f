# SPDX-License-Identifier: Apache-2.0
"""Which networks a pod asks for: the `networks` annotation, short form and JSON form, parsed equally strictly.

Source: Kubernetes Network Custom Resource Definition De-facto Standard 1.3, sections 4.1 and 4.2.
"""

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multus_py.cni import jsontext, names
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import FieldError, Fields
from multus_py.cni.result import Address
from multus_py.kube.store import DEFAULT_NETWORK, DEFAULT_NETWORKS, NETWORKS

# As the API server checks the names of extended resources: a domain, then a name.
_RESOURCE = re.compile(r"[^/]+/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")


@dataclass(frozen=True)
class Selection:
    """One network that a pod asks for, and what it asks of it. *default_route* None: nothing said; (): keep.

    *resource*, *container* and *claim* (`<claim>` or `<claim>/<request>`) say which of the pod's devices it means.
    """

    name: str
    namespace: str
    interface: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    infiniband_guid: str = ""
    port_mappings: tuple[Mapping[str, Any], ...] | None = None
    bandwidth: Mapping[str, Any] | None = None
    device_id: str = ""
    cni_args: Mapping[str, Any] | None = None
    default_route: tuple[Address, ...] | None = None
    ipam_claim: str = ""
    resource: str = ""
    container: str = ""
    claim: str = ""


class SelectionError(CniError):
    """An annotation that cannot be read; *offset* is the place in its text, counted from 0."""

    def __init__(self, annotation: str, text: str, offset: int, why: str, details: str = "") -> None:
        shown = text[max(0, offset - 12) : offset] + "»" + text[offset : offset + 20]
        super().__init__(
            Code.INVALID_CONFIG, f"annotation {annotation}, character {offset + 1} ({shown}): {why}", details
        )
        self.offset = offset
        self.why = why


def parse(text: str, namespace: str, annotation: str = NETWORKS) -> tuple[Selection, ...]:
    """Read an annotation; *namespace* is meant where none is written. Raise `SelectionError` at the character."""
    if not text.strip():
        return ()
    if any(sign in text for sign in '[{"'):
        return _Json(text, namespace, annotation).selections()
    return tuple(_Short(text, namespace, annotation).selections())


def parse_default(text: str, namespace: str) -> Selection | None:
    """Read the default-network annotation: one network or none; *namespace* is that of multus."""
    found = parse(text, namespace, DEFAULT_NETWORK)
    if len(found) > 1:
        raise SelectionError(DEFAULT_NETWORK, text, 0, "more than one default network is named", "name one")
    return found[0] if found else None


def declines_defaults(text: str) -> bool:
    """Read the annotation by which a pod declines the platform's further networks: "none" does, "" says nothing."""
    if (said := text.strip()) not in ("", "none"):
        raise SelectionError(
            DEFAULT_NETWORKS, text, 0, f"{said!r:.40} is not what it can say", 'write "none", or take it away'
        )
    return bool(said)


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
            raise self._wrong(at, "an empty item", "take away the extra comma")
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
    """A JSON list of selection elements. Unknown keys (the standard wants a domain in them) are others', and let be."""

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
        """Return where element *n*, or the value of its *key*, stands in the text."""
        spots = places(self.text)
        found = next(
            (spot for spot in spots if len(spot) == 2 and spot[0] == n and str(spot[1]).casefold() == key), (n,)
        )
        return spots.get(found, 0)

    def _selection(self, item: Any, n: int) -> Selection:
        if not isinstance(item, Mapping):
            raise self._wrong(self._at(n), f"a network must be a JSON object, not {json.dumps(item)[:40]}")
        fields = Fields(item, f"network {n + 1}")

        def wrong(key: str, why: str, details: str = "") -> SelectionError:
            return self._wrong(self._at(n, key.casefold()), why, details)

        try:
            selection = Selection(
                name=fields.text("name"),
                namespace=fields.text("namespace") or self.namespace,
                interface=fields.text("interface") or fields.text("interfaceRequest"),
                ips=fields.texts("ips") or (),
                mac=fields.text("mac"),
                infiniband_guid=fields.text("infiniband-guid"),
                port_mappings=fields.tables("portMappings"),
                bandwidth=fields.table("bandwidth") or None,
                device_id=fields.text("deviceID"),
                cni_args=fields.table("cni-args") or None,
                default_route=fields.addresses("default-route"),
                ipam_claim=fields.text("ipam-claim-reference"),
                resource=fields.text("resourceName"),
                container=fields.text("container"),
                claim=fields.text("claim"),
            )
        except FieldError as cause:
            raise wrong(cause.key, cause.msg) from cause
        self._validate(selection, wrong)
        # The annotation of the default network is not the standard's: OVN-Kubernetes takes both there.
        if selection.ips and selection.ipam_claim and self.annotation != DEFAULT_NETWORK:
            raise wrong(
                "ipam-claim-reference", "an IPAMClaim beside 'ips': the claim says which addresses", "keep one of them"
            )
        return selection

    @staticmethod
    def _validate(selection: Selection, wrong: Any) -> None:
        if not names.is_subdomain(selection.name):
            raise wrong("name", f"{selection.name!r} is not the name of a definition", "a DNS subdomain (RFC 1123)")
        if not names.is_label(selection.namespace):
            raise wrong("namespace", f"{selection.namespace!r} is not a namespace")
        if selection.interface and (trouble := names.interface_problem(selection.interface)):
            raise wrong("interface", trouble)
        for ip in selection.ips:
            if not is_ip(ip):
                raise wrong("ips", f"{ip!r} is not an IP address", 'such as "10.1.2.3/24" or "fd00::3/64"')
        if selection.mac and not names.is_mac(selection.mac):
            raise wrong("mac", f"{selection.mac!r} is not a MAC address", '6 bytes, such as "02:00:00:00:00:01", or 20')
        if selection.infiniband_guid and not names.is_guid(selection.infiniband_guid):
            raise wrong("infiniband-guid", f"{selection.infiniband_guid!r} is not a GUID", "8 bytes, colons between")
        for mapping in selection.port_mappings or ():
            _validate_port_mapping(mapping, wrong)
        for rate, value in (selection.bandwidth or {}).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise wrong("bandwidth", f"bandwidth {rate!r} must be a whole number of bits, it is {value!r}")
        if "/" in selection.device_id or ".." in selection.device_id:
            raise wrong("deviceID", f"{selection.device_id!r} is not a device id")
        _validate_device_choice(selection, wrong)
        for gateway in selection.default_route or ():
            _refuse_zone(gateway, wrong)


def _refuse_zone(gateway: Address, wrong: Any) -> None:
    if "%" in (text := str(gateway)):
        raise wrong("default-route", f"{text!r} names a zone", f"write {text.partition('%')[0]}")


def _validate_device_choice(selection: Selection, wrong: Any) -> None:
    if (resource := selection.resource) and not is_resource(resource):
        raise wrong("resourceName", f"{resource!r} is not the name of a resource", 'such as "intel.com/sriov_a"')
    if selection.container and not names.is_label(selection.container):
        raise wrong("container", f"{selection.container!r} is not the name of a container", "a DNS label (RFC 1123)")
    claim, slash, request = selection.claim.partition("/")
    if selection.claim and not (names.is_subdomain(claim) and names.is_label(request) == bool(slash)):
        raise wrong("claim", f"{selection.claim!r} is not a claim", 'such as "vf" or "vf/request-name"')


def _validate_port_mapping(mapping: Mapping[str, Any], wrong: Any) -> None:
    for port in ("hostPort", "containerPort"):
        value = Fields(mapping, "").get(port)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
            raise wrong("portMappings", f"{port} must be a port from 1 to 65535, it is {value!r}")
    protocol = Fields(mapping, "").get("protocol")
    if protocol is not None and str(protocol).lower() not in ("tcp", "udp", "sctp"):
        raise wrong("portMappings", f"protocol must be tcp, udp or sctp, it is {protocol!r}")
    host_ip = Fields(mapping, "").get("hostIP")
    if host_ip not in (None, "") and not (isinstance(host_ip, str) and "/" not in host_ip and is_ip(host_ip)):
        raise wrong("portMappings", f"hostIP must be an IP address, it is {host_ip!r}")


def is_ip(text: str) -> bool:
    """Tell whether *text* is an address, bare or with a prefix length."""
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    # A netmask ("10.0.0.1/255.0.0.0") or a zone ("fe80::1%eth0") is not what a plugin reads.
    return "%" not in text and text.partition("/")[2].isdigit() == ("/" in text)


def is_resource(text: str) -> bool:
    """Tell whether *text* is the name of an extended resource, `<domain>/<name>`."""
    return bool(_RESOURCE.match(text)) and names.is_subdomain(text.partition("/")[0])


def places(text: str) -> dict[tuple[int | str, ...], int]:
    """Return where each value of the JSON document *text* begins, by its path: (0, "name") -> 10. The text is valid."""
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
