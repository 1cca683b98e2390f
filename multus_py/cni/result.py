# SPDX-License-Identifier: Apache-2.0
"""A plugin's result of ADD: read and written in the formats of the versions 0.1.0 to 1.1.0.

Unknown keys are stored in *extra* and written back, because some systems (AWS VPC CNI) read their own state from the
result at DEL.
"""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

from multus_py.cni import versions
from multus_py.cni.addresses import read_address, read_cidr
from multus_py.cni.errors import CniError, Code

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Cidr = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Extra = Mapping[str, Any]
_KEYS_030 = ("cniVersion", "interfaces", "ips", "routes", "dns")
_KEYS_020 = ("cniVersion", "ip4", "ip6", "dns")
T = TypeVar("T")


@dataclass(frozen=True)
class Interface:
    """An interface that a plugin made or uses. *sandbox* is as the plugin wrote it: not always a path, never opened."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""
    extra: Extra = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class IP:
    """An address with its prefix; *interface* is an index into the result's interfaces."""

    address: Cidr
    gateway: Address | None = None
    interface: int | None = None
    extra: Extra = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Route:
    """A route in the sandbox. Without *gw* it uses the gateway of the address of the same family."""

    dst: Network
    gw: Address | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None
    extra: Extra = field(default_factory=dict, compare=False)

    @property
    def is_default(self) -> bool:
        """Tell whether this is the default route of its family: prefix length 0, not only an unspecified address."""
        return self.dst.prefixlen == 0


@dataclass(frozen=True)
class DNS:
    """Name servers and search list (spec section 5)."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    extra: Extra = field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the object with the keys that have a value."""
        body = {
            "nameservers": list(self.nameservers),
            "domain": self.domain,
            "search": list(self.search),
            "options": list(self.options),
        }
        return {**{key: value for key, value in body.items() if value}, **self.extra}


@dataclass(frozen=True)
class Result:
    """The result of ADD, with the fields of version 1.1.0."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()
    extra: Extra = field(default_factory=dict, compare=False)


class InvalidResult(CniError):
    """A result that cannot be read; *why* names the key that is wrong."""

    def __init__(self, why: str) -> None:
        super().__init__(Code.DECODE, f"result: {why}")
        self.why = why


def read(body: Mapping[str, Any], version: str | None = None) -> Result:
    """Read a result; *version* is that of a body without cniVersion. `InvalidResult` names the key that is wrong."""
    return _FORMATS[versions.resolve(body.get("cniVersion") or version)].read(body)


def write(result: Result, version: str) -> dict[str, Any]:
    """Write *result* in the format of *version*; code 1 when that format cannot hold it (0.2.0 needs an address)."""
    return {"cniVersion": version, **_FORMATS[version].write(result, version)}


def with_routes(body: Mapping[str, Any], result: Result, version: str) -> dict[str, Any]:
    """Return *body*, a plugin's reply, with the routes of *result*, all other keys unchanged.

    Systems read their own state from it at DEL, also under keys that are defined in later versions than the body's.
    """
    written = write(result, version)
    if _FORMATS[version] is _FORMAT_020:
        return written
    before = dict(zip(read(body, version).routes, _objects(body, "routes"), strict=True))
    now = zip(result.routes, written.get("routes", ()), strict=True)
    routes = [before.get(route, plain) for route, plain in now]
    return {**{key: value for key, value in body.items() if key != "routes"}, **({"routes": routes} if routes else {})}


# --- 0.3.0 to 1.1.0 -------------------------------------------------------------------------------------------------


def _read_030(body: Mapping[str, Any]) -> Result:
    return Result(
        interfaces=tuple(_interface(item, f"interfaces[{n}]") for n, item in enumerate(_objects(body, "interfaces"))),
        ips=tuple(_ip(item, f"ips[{n}]") for n, item in enumerate(_objects(body, "ips"))),
        routes=tuple(_route(item, f"routes[{n}]") for n, item in enumerate(_objects(body, "routes"))),
        dns=_dns(body),
        extra=_others(body, *_KEYS_030),
    )


def _write_030(result: Result, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "interfaces": [_interface_body(item, version) for item in result.interfaces],
        "ips": [_ip_body(item, version) for item in result.ips],
        "routes": [_route_body(item, version) for item in result.routes],
    }
    filled = {key: value for key, value in body.items() if value}
    dns = result.dns.to_json()
    # Up to 0.4.0 libcni always writes the key; from 1.0.0 on it leaves an empty one out.
    if dns or not versions.at_least(version, "1.0.0"):
        filled["dns"] = dns
    return {**filled, **_others(result.extra, *_KEYS_030)}


def _interface_body(item: Interface, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {"name": item.name, "mac": item.mac, "sandbox": item.sandbox}
    if versions.at_least(version, "1.1.0"):
        body |= {"mtu": item.mtu, "socketPath": item.socket_path, "pciID": item.pci_id}
    return {**{key: value for key, value in body.items() if value or key == "name"}, **item.extra}


def _ip_body(item: IP, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if not versions.at_least(version, "1.0.0"):
        body["version"] = str(item.address.version)
    if item.interface is not None:
        body["interface"] = item.interface
    body["address"] = item.address.with_prefixlen
    if item.gateway is not None:
        body["gateway"] = str(item.gateway)
    return {**body, **item.extra}


def _route_body(item: Route, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {"dst": str(item.dst)}
    if item.gw is not None:
        body["gw"] = str(item.gw)
    # The specification has them from 1.1.0 on. The reference plugins write them in every version that has `routes`,
    # because the plugin that adds a route needs what IPAM set for it.
    if versions.at_least(version, "0.3.0"):
        numbers = {"mtu": item.mtu, "advmss": item.advmss, "priority": item.priority}
        body |= {key: value for key, value in numbers.items() if value}
        body |= {key: value for key, value in {"table": item.table, "scope": item.scope}.items() if value is not None}
    return {**body, **item.extra}


# --- 0.1.0 and 0.2.0: one address per family --------------------------------------------------------------------------


def _read_020(body: Mapping[str, Any]) -> Result:
    ips, routes = [], []
    for key in ("ip4", "ip6"):
        if (part := body.get(key)) is None:
            continue
        if not isinstance(part, Mapping):
            raise _wrong(key, "must be an object")
        ips.append(IP(_cidr(part.get("ip"), f"{key}.ip"), _address(part.get("gateway"), f"{key}.gateway")))
        routes += [_route(item, f"{key}.routes[{n}]") for n, item in enumerate(_objects(part, "routes", key))]
    return Result(ips=tuple(ips), routes=tuple(routes), dns=_dns(body), extra=_others(body, *_KEYS_020))


def _write_020(result: Result, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for family in (4, 6):
        first = next((ip for ip in result.ips if ip.address.version == family), None)
        if first is None:
            continue
        part: dict[str, Any] = {"ip": first.address.with_prefixlen}
        if first.gateway is not None:
            part["gateway"] = str(first.gateway)
        if routes := [_route_body(route, version) for route in result.routes if route.dst.version == family]:
            part["routes"] = routes
        body[f"ip{family}"] = part
    if not body:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"a result without addresses cannot be written in cniVersion {version}",
            "use cniVersion 0.3.0 or newer",
        )
    return {**body, "dns": result.dns.to_json(), **_others(result.extra, *_KEYS_020)}


@dataclass(frozen=True)
class _Format:
    read: Callable[[Mapping[str, Any]], Result]
    write: Callable[[Result, str], dict[str, Any]]


_FORMAT_020 = _Format(_read_020, _write_020)
_FORMAT_030 = _Format(_read_030, _write_030)
_FORMATS = {version: _FORMAT_020 if version in ("0.1.0", "0.2.0") else _FORMAT_030 for version in versions.SUPPORTED}


# --- single values ---------------------------------------------------------------------------------------------------


def _wrong(where: str, why: str) -> InvalidResult:
    return InvalidResult(f"{where} {why}")


def _objects(body: Mapping[str, Any], key: str, where: str = "") -> list[Mapping[str, Any]]:
    items = body.get(key)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise _wrong(f"{where}.{key}" if where else key, "must be a list of objects")
    return items


def _others(body: Mapping[str, Any], *known: str) -> Extra:
    return MappingProxyType({key: value for key, value in body.items() if key not in known})


def _text(body: Mapping[str, Any], key: str, where: str) -> str:
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(f"{where}.{key}", f"must be a string, it is {value!r}")
    return value


def _number(body: Mapping[str, Any], key: str, where: str) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(f"{where}.{key}", f"must be a whole number, it is {value!r}")
    return value


def _texts(body: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = body.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(f"{where}.{key}", "must be a list of strings")
    return tuple(value)


def _interface(body: Mapping[str, Any], where: str) -> Interface:
    return Interface(
        name=_text(body, "name", where),
        mac=_text(body, "mac", where),
        mtu=_number(body, "mtu", where) or 0,
        sandbox=_text(body, "sandbox", where),
        socket_path=_text(body, "socketPath", where),
        pci_id=_text(body, "pciID", where),
        extra=_others(body, "name", "mac", "mtu", "sandbox", "socketPath", "pciID"),
    )


def _ip(body: Mapping[str, Any], where: str) -> IP:
    return IP(
        address=_cidr(body.get("address"), f"{where}.address"),
        gateway=_address(body.get("gateway"), f"{where}.gateway"),
        interface=_number(body, "interface", where),
        extra=_others(body, "version", "address", "gateway", "interface"),
    )


def _route(body: Mapping[str, Any], where: str) -> Route:
    return Route(
        dst=_network(body.get("dst"), f"{where}.dst"),
        gw=_address(body.get("gw"), f"{where}.gw"),
        mtu=_number(body, "mtu", where) or 0,
        advmss=_number(body, "advmss", where) or 0,
        priority=_number(body, "priority", where) or 0,
        table=_number(body, "table", where),
        scope=_number(body, "scope", where),
        extra=_others(body, "dst", "gw", "mtu", "advmss", "priority", "table", "scope"),
    )


def _dns(body: Mapping[str, Any]) -> DNS:
    dns = body.get("dns")
    if dns is None:
        return DNS()
    if not isinstance(dns, Mapping):
        raise _wrong("dns", "must be an object")
    return DNS(
        _texts(dns, "nameservers", "dns"),
        _text(dns, "domain", "dns"),
        _texts(dns, "search", "dns"),
        _texts(dns, "options", "dns"),
        _others(dns, "nameservers", "domain", "search", "options"),
    )


def _parsed(value: object, where: str, read_as: Callable[[str], T], expected: str) -> T:
    # A zone ("fe80::1%eth0") may be any text, and no plugin supports one.
    if not isinstance(value, str) or "%" in value:
        raise _wrong(where, f"must be {expected}, it is {value!r:.80}")
    try:
        return read_as(value)
    except ValueError as cause:
        raise _wrong(where, f"must be {expected}, it is {value!r}") from cause


def _cidr(value: object, where: str) -> Cidr:
    return _parsed(value, where, read_cidr, "an address with its prefix length")


def _address(value: object, where: str) -> Address | None:
    # Some plugins in Go write an absent gateway as "<nil>".
    return None if value in (None, "", "<nil>") else _parsed(value, where, read_address, "an address")


def _network(value: object, where: str) -> Network:
    return _parsed(value, where, read_cidr, "a network with its prefix length, such as 0.0.0.0/0").network


def without_default_routes(result: Result, families: frozenset[int]) -> Result:
    """Return *result* without the default routes of *families* (4, 6)."""
    routes = tuple(route for route in result.routes if not (route.is_default and route.dst.version in families))
    return replace(result, routes=routes)
