# SPDX-License-Identifier: Apache-2.0
"""default-route: the kernel, the returned result, the kept result and the status agree, family by family."""

import ipaddress
import json
import socket
import struct
import time
from argparse import Namespace
from pathlib import Path

import pytest
from stage import Stage, namespace

from multus_py.agent.reconciling import hotplug
from multus_py.cli import status as status_command
from multus_py.cni.errors import CniError
from multus_py.kernel import namespaces, netlink, records, removal
from multus_py.kube.store import PodRef
from multus_py.plan import decide
from multus_py.verbs import default_route


@pytest.fixture(params=["builtin", "exec"])
def stage(tmp_path, request):
    """A dual-stack default network with both default routes and one more route; two further networks."""
    with namespace() as host, namespace() as pod:
        ipam = {
            "type": "static",
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.0.2.0/24", "gw": "10.88.0.1"}],
        }
        cluster = bridge("br0", ipam, "10.88.0.2/24", "10.88.0.1", "fd88::2/64", "fd88::1")
        stage = Stage(tmp_path, pod, {"delegates": [{**cluster, "name": "cluster"}], "host": host,
                                      "delegateBackend": request.param})  # fmt: skip
        stage.definition("b", bridge("br1", {"type": "static"}, "10.89.0.2/24", "10.89.0.1", "fd89::2/64", "fd89::1"))
        stage.definition("d", bridge("br2", {**ipam, "routes": [{"dst": "0.0.0.0/0"}]}, "10.90.0.2/24", "10.90.0.1"))
        yield stage


def bridge(name, ipam, *pairs):
    """Return a bridge's config with (address, gateway) pairs."""
    addresses = [{"address": address, "gateway": via} for address, via in zip(pairs[::2], pairs[1::2], strict=True)]
    return {"cniVersion": "1.0.0", "type": "bridge", "bridge": name, "ipam": {**ipam, "addresses": addresses}}


def attached(stage, networks):
    """Run ADD for a pod with *networks*; return the result and, per interface, the status."""
    stage.pod("p", networks)
    result = namespaces.run_in(stage.settings["host"], lambda: stage.run("ADD", "p"))
    text = stage.node().store.pod(PodRef("default", "p")).annotations["k8s.v1.cni.cncf.io/network-status"]
    return result, {status["interface"]: status for status in json.loads(text)}


def defaults(stage):
    """Return the ways of the kernel's default routes as (family, interface, gateway)."""
    with netlink.open(stage.netns) as kernel:
        names = {link.index: link.name for link in kernel.links()}
        return {
            (family, names[way.ifindex], str(way.gateway))
            for family in (4, 6)
            for route in kernel.default_routes(family)
            for way in route.ways
        }


def kept(stage):
    """Return the kept results' default routes as (network, destination, gateway)."""
    results = [json.loads(path.read_text()) for path in (stage.folder / "cni/results").iterdir()]
    return {
        (item["networkName"], route["dst"], route.get("gw"))
        for item in results for route in item["result"].get("routes", []) if route["dst"].endswith("/0")
    }  # fmt: skip


def test_one_family_is_taken_over_and_the_other_stays(stage):
    """IPv4 goes to net1, IPv6 stays on eth0; the cluster's other route stays."""
    result, status = attached(stage, '[{"name":"b","default-route":["10.89.0.1"]}]')
    assert {(4, "net1", "10.89.0.1"), (6, "eth0", "fd88::1")} == defaults(stage)
    assert ["::/0", "192.0.2.0/24"] == [route["dst"] for route in result["routes"]]
    assert {("cluster", "::/0", None), ("b", "0.0.0.0/0", "10.89.0.1")} == kept(stage)
    assert ["10.89.0.1"] == status["net1"]["gateway"]
    with netlink.open(stage.netns) as kernel:
        assert "192.0.2.0/24" in [str(route.dst) for route in kernel.routes(4)]
    namespaces.run_in(stage.settings["host"], lambda: stage.run("CHECK", "p"))


def test_two_families_may_go_to_two_networks(stage):
    """A claimer for each, eth0 keeps none; a delegate's own default route yields to a claim too."""
    result, status = attached(
        stage, '[{"name":"b","default-route":["fd89::1"]},{"name":"d","default-route":["10.90.0.9"]}]'
    )
    assert {(4, "net2", "10.90.0.9"), (6, "net1", "fd89::1")} == defaults(stage)
    assert ["192.0.2.0/24"] == [route["dst"] for route in result["routes"]]
    assert {("b", "::/0", "fd89::1"), ("d", "0.0.0.0/0", "10.90.0.9")} == kept(stage)
    assert ([], ["fd89::1"], ["10.90.0.9"]) == tuple(
        status[name].get("gateway", []) for name in ("eth0", "net1", "net2")
    )


def test_several_gateways_of_one_element_share_the_default_route(stage):
    """The standard's example has two IPv6 gateways: one route with two ways, in kernel, results and status."""
    both = ["fd89::1", "fd89::9"]
    result, status = attached(stage, json.dumps([{"name": "b", "default-route": [*both, "10.89.0.1", "10.89.0.9"]}]))
    ways = {(6, "net1", one) for one in both} | {(4, "net1", "10.89.0.1"), (4, "net1", "10.89.0.9")}
    assert ways == defaults(stage)
    with netlink.open(stage.netns) as kernel:
        assert [1, 1] == [len(kernel.default_routes(family)) for family in (4, 6)]
    assert ["192.0.2.0/24"] == [route["dst"] for route in result["routes"]]
    assert {("b", "::/0", one) for one in both} <= kept(stage)
    assert {*both, "10.89.0.1", "10.89.0.9"} == set(status["net1"]["gateway"])
    call, node = stage.call("DEL", "p"), stage.node()
    namespaces.run_in(stage.settings["host"], lambda: stage.run("CHECK", "p"))
    assert namespaces.run_in(stage.settings["host"], lambda: hotplug.unplug("net1", call, node, pod_of(node)))
    assert {(4, "eth0", "10.88.0.1"), (6, "eth0", "fd88::1")} == defaults(stage)


def test_an_empty_list_keeps_what_is_there(stage):
    """`[]` claims nothing and takes nothing from anybody."""
    before, _ = attached(stage, '[{"name":"b","default-route":[]}]')
    assert {(4, "eth0", "10.88.0.1"), (6, "eth0", "fd88::1")} == defaults(stage)
    assert ["0.0.0.0/0", "::/0", "192.0.2.0/24"] == [route["dst"] for route in before["routes"]]


def test_metrics_do_not_leave_a_second_default(stage):
    """A default route with another metric goes as well: one claim, one default route."""
    cluster = stage.settings["delegates"][0]
    if stage.settings["delegateBackend"] == "builtin":  # the executable of 2022 has no route priorities
        cluster["ipam"]["routes"] = [{"dst": "0.0.0.0/0", "priority": 100}, {"dst": "::/0", "priority": 50}]
        cluster["cniVersion"] = "1.1.0"
    attached(stage, '[{"name":"b","default-route":["10.89.0.1","fd89::1"]}]')
    assert {(4, "net1", "10.89.0.1"), (6, "net1", "fd89::1")} == defaults(stage)


def test_what_yielded_comes_back_when_the_claimer_goes(stage):
    """Both families and a further metric: kernel and kept results are as if nobody had claimed."""
    cluster = stage.settings["delegates"][0]
    if stage.settings["delegateBackend"] == "builtin":
        more = [{"dst": "0.0.0.0/0", "priority": 100}, {"dst": "::/0", "priority": 50}]
        cluster["ipam"]["routes"] = [*cluster["ipam"]["routes"], *more]
        cluster["cniVersion"] = "1.1.0"
    attached(stage, "")
    before = ways_out(stage), sorted(route[:2] for route in kept(stage))
    namespaces.run_in(stage.settings["host"], lambda: stage.run("DEL", "p"))
    attached(stage, '[{"name":"b","default-route":["10.89.0.1","fd89::1"]}]')
    assert {(4, "net1", "10.89.0.1"), (6, "net1", "fd89::1")} == defaults(stage)
    call, node = stage.call("DEL", "p"), stage.node()
    pod = node.store.pod(PodRef("default", "p"))
    assert namespaces.run_in(stage.settings["host"], lambda: hotplug.unplug("net1", call, node, pod))
    assert before == (ways_out(stage), sorted(route[:2] for route in kept(stage)))
    namespaces.run_in(stage.settings["host"], lambda: stage.run("CHECK", "p"))


def pod_of(node):
    """Return the pod as the store has it."""
    return node.store.pod(PodRef("default", "p"))


def ways_out(stage):
    """Return the default routes of every table, with the metric."""
    with netlink.open(stage.netns) as kernel:
        found = [route for route in kernel.routes(table=0) if route.is_default and route.kind == records.UNICAST]
        return sorted((route.table, str(route.gateway), route.priority) for route in found)


def test_check_sees_a_default_route_that_was_changed(stage):
    """CHECK asks the kernel whether the claim still holds."""
    attached(stage, '[{"name":"b","default-route":["10.89.0.1"]}]')
    with netlink.open(stage.netns) as kernel:
        for route in kernel.default_routes(4):
            kernel.delete_route(route)
    with pytest.raises(CniError, match=r"default route|0\.0\.0\.0"):
        namespaces.run_in(stage.settings["host"], lambda: stage.run("CHECK", "p"))


# --- beside a router that advertises itself ---------------------------------------------------------------------------

ROUTER = ipaddress.IPv6Address("fe80::a:b:c:d")


def advertise(netns, ifname, prefix):
    """Send a router advertisement (RFC 4861, 4.2) with a *prefix* for addresses from an interface of a namespace."""
    mac = bytes.fromhex("0200000000aa")
    option = (
        struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 7200, 3600, 0) + ipaddress.IPv6Network(prefix).network_address.packed
    )
    body = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + struct.pack("!BB", 1, 1) + mac + option
    to = ipaddress.IPv6Address("ff02::1").packed
    pseudo = ROUTER.packed + to + struct.pack("!II", 4 + len(body), 58) + struct.pack("!BBH", 134, 0, 0) + body
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet = struct.pack("!IHBB", 0x60000000, 4 + len(body), 58, 255) + ROUTER.packed + to
    frame = bytes.fromhex("333300000001") + mac + struct.pack("!H", 0x86DD) + packet

    def send():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind((ifname, 0))
            wire.send(frame + struct.pack("!BBH", 134, 0, checksum) + body)

    namespaces.run_in(netns, send)


def heard(stage, bridge, prefix, ifname):
    """Advertise on a bridge until the pod's interface has an address by it: then its routes are there, too."""
    with netlink.open(stage.netns) as kernel:
        end = time.monotonic() + 10
        index = kernel.link(ifname).index
        while time.monotonic() < end:
            advertise(stage.settings["host"], bridge, prefix)
            time.sleep(0.05)
            held = [address.interface.network for address in kernel.addresses(index, 6)]
            if ipaddress.ip_network(prefix) in held:
                return
    raise AssertionError(f"{ifname} hears no advertisement")


def everywhere(stage):
    """Let a router advertise itself on every link of the pod."""
    for bridge, prefix, ifname in (
        ("br0", "fd70::/64", "eth0"),
        ("br1", "fd71::/64", "net1"),
        ("br2", "fd72::/64", "net2"),
    ):
        heard(stage, bridge, prefix, ifname)


def shown(stage, capsys):
    """Run `multus-py status`; return its exit code and what is marked, by interface."""
    code = status_command.run(Namespace(pod="", cni_dir=stage.folder / "cni", json=True))
    (sandbox,) = json.loads(capsys.readouterr().out)
    return code, {item["ifname"]: "; ".join(item["drift"]) for item in sandbox["interfaces"]}


def test_an_advertised_router_takes_no_claimed_default_route(stage, capsys):
    """Routers on all three links, one of them of an IPv4-only network: kernel, CHECK and status hold to the claim."""
    attached(stage, '[{"name":"b","default-route":["fd89::1"]},{"name":"d"}]')
    everywhere(stage)
    assert [(6, "net1", "fd89::1")] == [route for route in defaults(stage) if route[0] == 6]
    namespaces.run_in(stage.settings["host"], lambda: stage.run("CHECK", "p"))
    assert (0, {"eth0": "", "net1": "", "net2": ""}) == shown(stage, capsys)


def test_a_network_plugged_in_later_hears_no_router_either(stage):
    """What comes beside a claim yields to it: the router on its link, and the default route that it brings."""
    attached(stage, '[{"name":"b","default-route":["10.89.0.1","fd89::1"]}]')
    stage.pod("p", '[{"name":"b","default-route":["10.89.0.1","fd89::1"]},{"name":"d"}]')
    node = stage.node()
    pod, call = node.store.pod(PodRef("default", "p")), stage.call("ADD", "p")
    added = decide.sandbox_attachments(call, node.config, pod, node.store)[-1]
    namespaces.run_in(stage.settings["host"], lambda: hotplug.plug(added, call, node, pod))
    everywhere(stage)
    assert {(4, "net1", "10.89.0.1"), (6, "net1", "fd89::1")} == defaults(stage)
    namespaces.run_in(stage.settings["host"], lambda: stage.run("CHECK", "p"))


def test_what_an_advertisement_set_is_told_by_check_and_status_alike(stage, capsys):
    """Somebody lets the interface listen again: CHECK is an error, status says the same and exits with 1."""
    attached(stage, '[{"name":"b","default-route":["fd89::1"]},{"name":"d"}]')
    namespaces.run_in(stage.netns, lambda: namespaces.write_sysctl("net/ipv6/conf/net2/accept_ra_defrtr", "1"))
    everywhere(stage)
    words = f"by {ROUTER} on net2 (from a router advertisement)"
    with pytest.raises(CniError) as caught:
        namespaces.run_in(stage.settings["host"], lambda: stage.run("CHECK", "p"))
    code, drift = shown(stage, capsys)
    assert ("network default/b as net1: the IPv6 default route is not by fd89::1" in caught.value.msg, 1) == (
        True,
        code,
    )
    assert (True, True) == (words in caught.value.msg, words in drift["net1"])


def test_routers_are_heard_again_when_the_claimer_goes(stage):
    """What was learned before the claim is dropped, not kept; who listened before listens again."""
    attached(stage, "b,d")
    everywhere(stage)
    namespaces.run_in(stage.netns, lambda: namespaces.write_sysctl("net/ipv6/conf/eth0/accept_ra_defrtr", "0"))
    claim = default_route.Claim("network default/b as net1", "net1", (ipaddress.ip_address("fd89::1"),))
    default_route.apply_claims(stage.netns, [claim])
    assert [(6, "net1", "fd89::1")] == [route for route in defaults(stage) if route[0] == 6]
    default_route.apply_claims(stage.netns, [claim])  # once more changes nothing
    removal.remove_links(stage.netns, ["net1"])
    default_route.restore(stage.netns, [claim])
    settings = [f"net/ipv6/conf/{name}/accept_ra_defrtr" for name in ("eth0", "net2")]
    assert ["0", "1"] == namespaces.run_in(stage.netns, lambda: [namespaces.read_sysctl(name) for name in settings])
    heard(stage, "br2", "fd75::/64", "net2")
    assert {(6, "eth0", "fd88::1"), (6, "net2", str(ROUTER))} == {route for route in defaults(stage) if route[0] == 6}
    with netlink.open(stage.netns) as kernel:
        assert [] == kernel.routes(6, default_route.WAITING_TABLE)


# --- gateways ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/usr/lib/cni/sbr").exists(), reason="needs the reference plugins")
@pytest.mark.parametrize("vias", [["10.89.0.1"], ["fd89::1"], ["10.89.0.1", "10.89.0.9"], ["fd89::1", "fd89::9"]])
def test_a_claimer_may_be_routed_by_source(stage, vias):
    """sbr moves its interface's routes to another table: the default route is taken over all the same."""
    native = stage.settings["delegateBackend"] == "builtin"
    stage.settings["delegateBackend"] = "auto" if native else "exec"
    member = bridge("br1", {"type": "static"}, "10.89.0.2/24", "10.89.0.1", "fd89::2/64", "fd89::1")
    version = member.pop("cniVersion")
    stage.definition("s", {"cniVersion": version, "name": "s", "plugins": [member, {"type": "sbr"}]})
    _, status = attached(stage, json.dumps([{"name": "s", "default-route": vias}]))
    family = ipaddress.ip_address(vias[0]).version
    assert {(family, "net1", via) for via in vias} == {route for route in defaults(stage) if route[0] == family}
    assert set(vias) == set(status["net1"]["gateway"])
    if native:  # the executable's CHECK looks for the gateway in the main table, where sbr left nothing
        namespaces.run_in(stage.settings["host"], lambda: stage.run("CHECK", "p"))


@pytest.mark.parametrize("via", ["10.77.0.1", "fd77::1"])
def test_a_gateway_in_no_network_of_the_claimer_is_refused_by_name(stage, via):
    """The message has the network, its interface, the gateway, the addresses there are, and what would help."""
    with pytest.raises(CniError) as caught:
        attached(stage, f'[{{"name":"b","default-route":["{via}"]}}]')
    held = "10.89.0.2/24" if "." in via else "fd89::2/64"
    assert (
        f"network default/b as net1: default-route {via}: the gateway {via} is in no network of net1 ({held}"
        in caught.value.msg
    )
    assert (7, True) == (caught.value.code, '"scope": 253' in caught.value.details)


def test_equal_default_routes_all_come_back(stage):
    """Two that yielded have the same metric: neither takes the other's place while they wait."""
    with netlink.open(stage.settings["host"]) as kernel:
        kernel.create_bridge("br2")
    attached(stage, "b,d")
    before = ways_out(stage)
    claim = default_route.Claim("network default/b as net1", "net1", (ipaddress.ip_address("10.89.0.1"),))
    default_route.apply_claims(stage.netns, [claim])
    assert [(4, "net1", "10.89.0.1")] == [route for route in defaults(stage) if route[0] == 4]
    with netlink.open(stage.netns) as kernel:
        for route in kernel.default_routes(4):
            kernel.delete_route(route)
    default_route.restore(stage.netns, [claim])
    assert before == ways_out(stage)
