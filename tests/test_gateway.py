# SPDX-License-Identifier: Apache-2.0
"""default-route: the kernel, the returned result, the kept result and the status agree, family by family."""

import json

import pytest
from story import Stage, namespace

from multus_py import netlink
from multus_py.agent import hotplug
from multus_py.cni.errors import CniError
from multus_py.kube.store import PodRef


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
    result = netlink.visit(stage.settings["host"], lambda: stage.run("ADD", "p"))
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
    netlink.visit(stage.settings["host"], lambda: stage.run("CHECK", "p"))


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
    netlink.visit(stage.settings["host"], lambda: stage.run("CHECK", "p"))
    assert netlink.visit(stage.settings["host"], lambda: hotplug.unplug("net1", call, node, pod_of(node)))
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
    netlink.visit(stage.settings["host"], lambda: stage.run("DEL", "p"))
    attached(stage, '[{"name":"b","default-route":["10.89.0.1","fd89::1"]}]')
    assert {(4, "net1", "10.89.0.1"), (6, "net1", "fd89::1")} == defaults(stage)
    call, node = stage.call("DEL", "p"), stage.node()
    pod = node.store.pod(PodRef("default", "p"))
    assert netlink.visit(stage.settings["host"], lambda: hotplug.unplug("net1", call, node, pod))
    assert before == (ways_out(stage), sorted(route[:2] for route in kept(stage)))
    netlink.visit(stage.settings["host"], lambda: stage.run("CHECK", "p"))


def pod_of(node):
    """Return the pod as the store has it."""
    return node.store.pod(PodRef("default", "p"))


def ways_out(stage):
    """Return the default routes of every table, with the metric."""
    with netlink.open(stage.netns) as kernel:
        found = [route for route in kernel.routes(table=0) if route.is_default and route.kind == netlink.UNICAST]
        return sorted((route.table, str(route.gateway), route.priority) for route in found)


def test_check_sees_a_default_route_that_was_changed(stage):
    """CHECK asks the kernel whether the claim still holds."""
    attached(stage, '[{"name":"b","default-route":["10.89.0.1"]}]')
    with netlink.open(stage.netns) as kernel:
        for route in kernel.default_routes(4):
            kernel.delete_route(route)
    with pytest.raises(CniError, match=r"default route|0\.0\.0\.0"):
        netlink.visit(stage.settings["host"], lambda: stage.run("CHECK", "p"))
