# SPDX-License-Identifier: Apache-2.0
"""Routes of a pod's interface whose gateway is in none of its networks: on the link where the config says so."""

import copy
import ipaddress
from typing import Any

import plugin_run
import pytest
import witness
from namespaces import Site

from multus_py.cni.errors import CniError, Code

V4, V6 = ("10.9.0.5/32", "10.8.0.1"), ("fd09::5/64", "fd08::1")


def config(address: str, gateway: str | None, routes: list[dict[str, Any]], version: str = "1.0.0") -> dict[str, Any]:
    """Return a bridge whose IPAM gives one address and *routes*."""
    given = {"address": address, **({"gateway": gateway} if gateway else {})}
    ipam = {"type": "static", "addresses": [given], "routes": routes}
    return {"cniVersion": version, "name": "net", "type": "bridge", "bridge": "mptbr0", "ipam": ipam}


def everything(via: str) -> str:
    """Return the destination of the default route of a gateway's family."""
    return "0.0.0.0/0" if "." in via else "::/0"


@pytest.mark.parametrize(("address", "via"), [V4, V6])
@pytest.mark.parametrize("asked", ["scope", "scope, last", "host route", "unspecified gateway", "a wider network"])
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_a_way_to_the_gateway_on_the_link_comes_first(
    address: str, via: str, asked: str, version: str, place: Site
) -> None:
    """However it is asked for and wherever it stands, the default route through it works, and CHECK agrees."""
    host = str(ipaddress.ip_network(via))
    wide = str(ipaddress.ip_network(via).supernet(8))
    default = {"dst": everything(via)}
    routes: list[dict[str, Any]] = {
        "scope": [{"dst": host, "scope": 253}, default],
        "scope, last": [default, {"dst": host, "scope": 253}],
        "host route": [{"dst": host}, default],
        "unspecified gateway": [{"dst": host, "gw": "0.0.0.0" if "." in via else "::"}, default],
        "a wider network": [{"dst": wide, "scope": 253}, default],
    }[asked]
    body = config(address, via, routes, version)
    result = plugin_run.native(plugin_run.call("ADD", body, place), place)
    assert result
    family = "-4" if "." in via else "-6"
    (way,) = [route for route in witness.ip(place.pod, family, "route") if route["dst"] == "default"]
    assert (via, "net1") == (way["gateway"], way["dev"])
    assert [route["dst"] for route in routes] == [route["dst"] for route in result["routes"]]
    checked = copy.deepcopy(body) | {"prevResult": result}
    plugin_run.native(plugin_run.call("CHECK", checked, place), place)


@pytest.mark.parametrize(("address", "via"), [V4, V6])
@pytest.mark.parametrize("own", [True, False])
def test_a_gateway_that_nothing_leads_to_is_named(address: str, via: str, own: bool, place: Site) -> None:
    """The gateway, the route, the interface and its addresses, and the route that would help; nothing is left."""
    routes = [{"dst": everything(via), **({} if own else {"gw": via})}]
    with pytest.raises(CniError) as caught:
        plugin_run.native(plugin_run.call("ADD", config(address, via if own else None, routes), place), place)
    assert (
        f"the gateway {via} of the route to {everything(via)} is in no network of net1 ({address})" in caught.value.msg
    )
    assert f'{{"dst": "{ipaddress.ip_network(via)}", "scope": 253}}' in caught.value.details
    assert (Code.INVALID_CONFIG, ["lo"]) == (
        caught.value.code,
        [link["ifname"] for link in witness.ip(place.pod, "link")],
    )


@pytest.mark.parametrize("routes", [[{"dst": "0.0.0.0"}], [{"dst": "::"}], [{"dst": "10.1.0.0/255.255.0.0"}]])
@pytest.mark.parametrize("ipam", [{"type": "host-local", "subnet": "10.9.0.0/24"}, {"type": "static"}])
def test_a_network_without_its_length_is_refused_with_its_place(
    ipam: dict[str, Any], routes: list[Any], place: Site
) -> None:
    """A bare 0.0.0.0 is no default route, and a route to that host is what nobody means."""
    body = config("10.9.0.5/24", None, routes)
    body["ipam"] = {**body["ipam"], **ipam} if ipam["type"] == "static" else {**ipam, "routes": routes}
    with pytest.raises(CniError, match=r"ipam: routes\[0\]\.dst must be a network with its prefix length") as caught:
        plugin_run.native(plugin_run.call("ADD", body, place), place)
    assert Code.INVALID_CONFIG == caught.value.code
