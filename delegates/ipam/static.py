# SPDX-License-Identifier: Apache-2.0
"""The static delegate: the addresses that the config, the pod or the runtime names. It stores nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multus_py.cni import result as results
from multus_py.cni import versions
from multus_py.cni.call import Call
from multus_py.cni.delegate import Request
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.cni.result import DNS, IP, Address, Result, Route
from multus_py.config import delegate_schema
from multus_py.delegates import requested
from multus_py.delegates.ipam import ranges

SCHEMA: Mapping[str, Any] = delegate_schema.load("static")


@dataclass(frozen=True)
class Config:
    """A static config, checked."""

    ips: tuple[IP, ...]
    routes: tuple[Route, ...]
    dns: DNS


@requested.cached_for_add
def parse(call: Call) -> Config:
    """Read the config and what the call requests; code 7 says what is wrong."""
    fields = Fields(call.config, "config")
    if fields.get("ipam") is None:
        raise CniError(Code.INVALID_CONFIG, "IPAM config missing 'ipam' key", "add 'ipam' with its addresses")
    ipam = Fields(fields.table("ipam"), "ipam")
    ips = _ips(call, ipam)
    families = [ip.address.version for ip in ips]
    if not versions.at_least(call.version, "0.3.0") and len(set(families)) < len(families):
        raise CniError(
            Code.INVALID_CONFIG,
            f"CNI version {call.version} does not support more than 1 address per family",
            "use cniVersion 0.3.0 or newer",
        )
    return Config(ips, *ranges.routes_and_dns(ipam))


def add(request: Request) -> Result:
    """Return the addresses, routes and DNS settings of the config."""
    config = parse(request.call)
    return Result(ips=config.ips, routes=config.routes, dns=config.dns)


def delete(request: Request) -> None:
    """Do nothing: no address was reserved."""


def check(request: Request) -> None:
    """Raise when prevResult lacks an address that the config names."""
    body = request.call.config.get("prevResult")
    if not isinstance(body, Mapping):
        raise CniError(Code.INVALID_CONFIG, "required prevResult is missing", "CHECK compares with the result of ADD")
    promised = {ip.address for ip in results.read(body, request.call.version).ips}
    for ip in parse(request.call).ips:
        if ip.address not in promised:
            raise CniError(Code.INTERNAL, f"static: Failed to find address {ip.address}", "the config has changed")


def status(request: Request) -> None:
    """Raise when the config is wrong."""
    parse(request.call)


def _ips(call: Call, ipam: Fields) -> tuple[IP, ...]:
    """Return the runtime's addresses, else those of args.cni, else the config's own and those of CNI_ARGS."""
    for source in (requested.runtime(call), requested.cni_args(call)):
        if texts := source.texts("ips"):
            return tuple(IP(ranges.cidr(text, f"{source.where}: ips")) for text in texts)
    written = tuple(_written(item, n) for n, item in enumerate(ipam.tables("addresses") or ()))
    gateways = [ranges.address(text, "CNI_ARGS: GATEWAY") for text in _items(call.arg("GATEWAY"))]
    return written + tuple(_with_gateway(text, gateways) for text in _items(call.arg("IP")))


def _with_gateway(text: str, gateways: Sequence[Address]) -> IP:
    """Read an address of CNI_ARGS; its gateway is the last of *gateways* that is in its network."""
    address = ranges.cidr(text, "CNI_ARGS: IP")
    return IP(address, next((item for item in reversed(gateways) if item in address.network), None))


def _written(item: Mapping[str, Any], n: int) -> IP:
    fields = Fields(item, f"ipam.addresses[{n}]")
    gateway = fields.text("gateway")
    return IP(
        ranges.cidr(fields.text("address"), f"{fields.where}: address"),
        ranges.address(gateway, f"{fields.where}: gateway") if gateway else None,
    )


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
