# SPDX-License-Identifier: Apache-2.0
"""pyroute2 as an independent oracle: what our messages set is what it reads, and what it sets is what we read."""

import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from namespaces import Site
from pyroute2 import IPRoute

from multus_py.kernel import namespaces, rtnl
from multus_py.kernel.errors import NetlinkError
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.records import BOOT, Hop, Route, Vlan


@pytest.fixture
def oracle(place: Site) -> Iterator[IPRoute]:
    """Return pyroute2's socket in the host's namespace."""
    found = namespaces.run_in(place.host, IPRoute)
    try:
        yield found
    finally:
        found.close()


def link(oracle: IPRoute, name: str):
    """Return what pyroute2 reads of one link."""
    (index,) = oracle.link_lookup(ifname=name)
    return oracle.get_links(index)[0]


def test_links_are_created_as_asked(host: Netlink, oracle: IPRoute, place: Site) -> None:
    """Bridge, veth and macvlan: kind, MTU, address, master, mode and number of queues."""
    host.create_bridge("mptbr", mtu=1333)
    bridge, made = host.link("mptbr"), link(oracle, "mptbr")
    host.create_veth("mpta", "mptb", mtu=1300, peer_mac="02:00:00:00:00:0b", master=bridge.index)
    host.create_macvlan("mptm", bridge.index, "vepa", mtu=1290, mac="02:00:00:00:00:0c")
    assert made.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "bridge"
    assert made.get_attr("IFLA_MTU") == 1333
    end, peer = link(oracle, "mpta"), link(oracle, "mptb")
    assert (end.get_attr("IFLA_MASTER"), end.get_attr("IFLA_MTU")) == (bridge.index, 1300)
    assert (peer.get_attr("IFLA_ADDRESS"), peer.get_attr("IFLA_MTU")) == ("02:00:00:00:00:0b", 1300)
    assert (end.get_attr("IFLA_NUM_TX_QUEUES"), peer.get_attr("IFLA_NUM_RX_QUEUES")) == (1, 1)
    macvlan = link(oracle, "mptm")
    data = macvlan.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    assert data.get_attr("IFLA_MACVLAN_MODE") == "vepa"
    assert (macvlan.get_attr("IFLA_LINK"), macvlan.get_attr("IFLA_ADDRESS")) == (bridge.index, "02:00:00:00:00:0c")


def test_links_are_read_as_they_are(host: Netlink, oracle: IPRoute) -> None:
    """What pyroute2 creates and changes: names, flags, alias, group, kind of the parent."""
    oracle.link("add", ifname="mptd", kind="bridge", address="02:00:00:00:00:0d")
    (index,) = oracle.link_lookup(ifname="mptd")
    oracle.link("set", index=index, state="up", mtu=1234, ifalias="an alias", group=7)
    oracle.link("add", ifname="mptv", kind="macvlan", link=index, macvlan_mode="private")
    found, above = host.link("mptd"), host.link("mptv")
    assert (found.index, found.kind, found.mac, found.mtu) == (index, "bridge", "02:00:00:00:00:0d", 1234)
    assert (found.up, found.alias, found.group) == (True, "an alias", 7)
    assert (above.kind, above.parent, above.macvlan_mode) == ("macvlan", index, "private")
    host.set_link(index, up=False, mtu=1400, alias="another", mac="02:00:00:00:00:0e", group=9)
    changed = oracle.get_links(index)[0]
    assert (changed["state"], changed.get_attr("IFLA_MTU"), changed.get_attr("IFLA_IFALIAS")) == (
        "down",
        1400,
        "another",
    )
    assert (changed.get_attr("IFLA_ADDRESS"), changed.get_attr("IFLA_GROUP")) == ("02:00:00:00:00:0e", 9)


def test_ports_of_a_bridge(host: Netlink, oracle: IPRoute) -> None:
    """Hairpin and isolation of a port."""
    host.create_bridge("mptbr")
    host.create_veth("mpta", "mptb", master=host.link("mptbr").index)
    port = host.link("mpta").index
    host.set_port(port, hairpin=True, isolated=True)
    (read,) = oracle.get_links(port)
    slave = read.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA")
    assert (slave.get_attr("IFLA_BRPORT_MODE"), slave.get_attr("IFLA_BRPORT_ISOLATED")) == (1, 1)


def test_vlans_of_a_bridge(host: Netlink, oracle: IPRoute) -> None:
    """VLANs of a port, ranges and flags too, set by us and by pyroute2."""
    try:
        host.create_bridge("mptbr", vlan_filtering=True)
    except NetlinkError as error:
        pytest.skip(f"this kernel has no VLAN filtering: {error}")
    host.create_veth("mpta", "mptb", master=host.link("mptbr").index)
    port = host.link("mpta").index
    assert link(oracle, "mptbr").get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_BR_VLAN_FILTERING") == 1
    host.add_vlans(port, 10, 12)
    host.add_vlans(port, 20, 20, rtnl.BRIDGE_VLAN_INFO_PVID | rtnl.BRIDGE_VLAN_INFO_UNTAGGED)
    oracle.vlan_filter("add", index=port, vlan_info={"vid": 30})
    assert {vlan.vid for vlan in host.vlans(port)} >= {10, 11, 12, 20, 30}
    assert Vlan(20, rtnl.BRIDGE_VLAN_INFO_PVID | rtnl.BRIDGE_VLAN_INFO_UNTAGGED) in host.vlans(port)
    (vlans,) = [item for item in oracle.get_vlans() if item["index"] == port]
    infos = vlans.get_attr("IFLA_AF_SPEC").get_attrs("IFLA_BRIDGE_VLAN_INFO")
    assert {info["vid"] for info in infos} >= {10, 11, 12, 20, 30}


def test_addresses_of_both_families(host: Netlink, oracle: IPRoute) -> None:
    """Address, prefix length and broadcast address, set by us and by pyroute2."""
    host.create_bridge("mptbr")
    index = host.link("mptbr").index
    for text in ("10.1.2.3/24", "10.9.9.9/31", "fd00::3/64"):
        host.add_address(index, ip_interface(text))
    read = {item.get_attr("IFA_ADDRESS"): item for item in oracle.get_addr(index=index)}
    assert (read["10.1.2.3"]["prefixlen"], read["10.1.2.3"].get_attr("IFA_BROADCAST")) == (24, "10.1.2.255")
    assert (read["10.9.9.9"]["prefixlen"], read["10.9.9.9"].get_attr("IFA_BROADCAST")) == (31, None)
    assert read["fd00::3"]["prefixlen"] == 64
    oracle.addr("add", index=index, address="10.7.7.1", prefixlen=32, label="mptbr:x")
    found = {str(item.interface): item.label for item in host.addresses(index, 4)}
    assert found["10.7.7.1/32"] == "mptbr:x"


def test_routes_with_metrics_and_several_hops(host: Netlink, oracle: IPRoute) -> None:
    """Destination, gateway, priority, table, scope, source, MTU, advmss and multipath, in both directions."""
    host.create_bridge("mptbr")
    index = host.link("mptbr").index
    host.add_address(index, ip_interface("10.1.0.1/24"))
    gateway, other = ip_address("10.1.0.2"), ip_address("10.1.0.3")
    source = ip_address("10.1.0.1")
    host.add_route(
        Route(ip_network("10.2.0.0/16"), gateway, index, priority=7, table=1000, source=source, mtu=1400, advmss=1360)
    )
    host.add_route(Route(ip_network("10.3.0.0/16"), hops=(Hop(index, gateway), Hop(index, other))))
    (single,) = oracle.get_routes(family=socket.AF_INET, table=1000)
    assert (single.get_attr("RTA_DST"), single["dst_len"], single.get_attr("RTA_GATEWAY")) == (
        "10.2.0.0",
        16,
        "10.1.0.2",
    )
    assert (single.get_attr("RTA_PRIORITY"), single.get_attr("RTA_PREFSRC"), single["proto"]) == (7, "10.1.0.1", BOOT)
    metrics = single.get_attr("RTA_METRICS")
    assert (metrics.get_attr("RTAX_MTU"), metrics.get_attr("RTAX_ADVMSS")) == (1400, 1360)
    (several,) = [item for item in oracle.get_routes(family=socket.AF_INET) if item.get_attr("RTA_DST") == "10.3.0.0"]
    assert {hop.get_attr("RTA_GATEWAY") for hop in several.get_attr("RTA_MULTIPATH")} == {"10.1.0.2", "10.1.0.3"}
    oracle.route("add", dst="10.4.0.0/16", gateway="10.1.0.9", oif=index, priority=11, metrics={"mtu": 1350})
    (found,) = [route for route in host.routes(4) if route.dst == ip_network("10.4.0.0/16")]
    assert (found.gateway, found.ifindex, found.priority, found.mtu) == (ip_address("10.1.0.9"), index, 11, 1350)


def test_neighbours(host: Netlink, oracle: IPRoute) -> None:
    """An entry that pyroute2 makes is the one that we read."""
    host.create_bridge("mptbr")
    index = host.link("mptbr").index
    oracle.neigh("add", dst="10.1.0.7", lladdr="02:00:00:00:00:07", ifindex=index, state=0x80)
    found = {str(item.address): item.mac for item in host.neighbours(index, 4)}
    assert found["10.1.0.7"] == "02:00:00:00:00:07"
