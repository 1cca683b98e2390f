# SPDX-License-Identifier: Apache-2.0
"""One network more, one less, while the pod runs: journalled, told, and gone with the pod."""

import base64
import json
from functools import partial

import pytest

from multus_py import netlink
from multus_py.agent import hotplug, reconciler
from multus_py.cni.errors import CniError
from multus_py.kube.store import PodRef


def request(running, verb, ifname, config, pod="p", **asked):
    """Send a `/delegate` request as the dynamic networks controller does; return its status and body."""
    env = running.stage.call(verb, pod).environment() | {"CNI_IFNAME": ifname}
    body = {"env": env, "config": base64.b64encode(json.dumps(config).encode()).decode(), "interfaceAttributes": asked}
    status, text = running.request("POST", "/delegate", body)
    return status, json.loads(text) if text else None


def interfaces(running):
    """Return the pod's interfaces in the kernel and in network-status."""
    with netlink.open(running.stage.netns) as kernel:
        there = sorted(link.name for link in kernel.links() if link.name != "lo")
    text = running.stage.node().store.pod(PodRef("default", "p")).annotations.get(STATUS, "[]")
    return there, sorted(status["interface"] for status in json.loads(text))


STATUS = "k8s.v1.cni.cncf.io/network-status"
MORE = {"cniVersion": "1.0.0", "name": "more", "type": "bridge", "bridge": "br1", "capabilities": {"mac": True}}


def test_a_hot_plugged_network_goes_with_the_pod(running, leftovers):
    """ADD by /delegate: result, wishes, status; the pod's DEL takes it down with the others."""
    running.start()
    running.call("ADD", "p")
    ipam = {"type": "host-local", "dataDir": str(running.folder / "ipam"), "subnet": "10.91.0.0/24"}
    status, answer = request(running, "ADD", "hot0", {**MORE, "ipam": ipam}, ips=["10.91.0.7"], mac="02:00:00:00:00:07")
    assert (200, "10.91.0.7/24") == (status, answer["Result"]["ips"][0]["address"])
    assert "02:00:00:00:00:07" in [item.get("mac") for item in answer["Result"]["interfaces"]]
    assert (["eth0", "hot0", "net1", "net2"],) * 2 == interfaces(running)
    assert (200, None) == request(running, "CHECK", "hot0", {**MORE, "ipam": ipam})
    assert 400 == request(running, "ADD", "hot0", MORE)[0]
    running.call("DEL", "p")
    assert [] == leftovers(running)


def test_it_is_unplugged_and_its_name_is_free_again(running, leftovers):
    """DEL by /delegate removes it from kernel, journal and status; a second time it is gone already."""
    running.start()
    running.call("ADD", "p")
    for _ in range(2):
        assert 200 == request(running, "ADD", "hot0", MORE)[0]
        assert (200, None) == request(running, "DEL", "hot0", MORE)
        assert (200, None) == request(running, "DEL", "hot0", MORE)
        assert (["eth0", "net1", "net2"],) * 2 == interfaces(running)
    running.call("DEL", "p")
    assert [] == leftovers(running)


def test_a_failure_leaves_the_pod_as_it_was(running, leftovers):
    """A delegate that fails is taken back; the others stay attached and told."""
    running.start()
    running.call("ADD", "p")
    running.stage.plugins.plugin("broken", ADD={"error": {"code": 108, "msg": "no"}})
    status, error = request(running, "ADD", "hot0", {"cniVersion": "1.0.0", "name": "x", "type": "broken"})
    assert (400, 108) == (status, error["code"])
    assert (["eth0", "net1", "net2"],) * 2 == interfaces(running)
    assert (0, None) == running.call("CHECK", "p")
    running.call("DEL", "p")
    assert [] == leftovers(running)


def test_a_sandbox_of_somebody_else_gets_a_page(running, leftovers):
    """A pod that another program attached: what is plugged in later is known at its DEL."""
    running.start()
    assert 200 == request(running, "ADD", "hot0", MORE)[0]
    running.call("DEL", "p")
    assert [] == leftovers(running)


@pytest.fixture
def attached(running):
    """A pod with eth0, net1 (b) and net2 (m), attached without a daemon."""
    netlink.visit(running.host, lambda: running.stage.run("ADD", "p"))
    yield running
    netlink.visit(running.host, lambda: running.stage.run("DEL", "p"))


def followed(running, networks):
    """Edit the pod's annotation and follow it; return what was attached and detached."""
    running.stage.pod("p", networks)
    node = running.stage.node()
    pod = node.store.pod(PodRef("default", "p"))
    call_of = partial(reconciler.call_for, verb="ADD", node=node)
    change = netlink.visit(running.host, lambda: hotplug.follow(pod, node, call_of))
    return [item.ifname for item in change.plug], [item.ifname for item in change.unplug]


def test_an_edited_annotation_is_followed(attached):
    """More, less, and both at once; what is asked for as before keeps its interface whatever its place."""
    assert ([], []) == followed(attached, "b,m")
    assert (["net3"], []) == followed(attached, "b,m,s")
    assert (["eth0", "net1", "net2"], ["eth0", "net1", "net2", "net3"]) == interfaces(attached)
    assert ([], ["net1"]) == followed(attached, "m,s")
    assert (["net1"], ["net3"]) == followed(attached, "m,b")
    assert (["data"], ["net2"]) == followed(attached, "b,m@data")
    assert (["data", "eth0", "net1"],) * 2 == interfaces(attached)
    assert ([], ["net1", "data"]) == followed(attached, "")
    assert (["eth0"],) * 2 == interfaces(attached)


def test_a_default_route_is_refused_while_the_pod_runs(attached):
    """Its connections would change under it: the error says so, nothing is changed."""
    with pytest.raises(CniError, match="while the pod runs"):
        followed(attached, '[{"name":"b"},{"name":"m"},{"name":"s","default-route":["10.89.0.1"]}]')
    assert (["eth0", "net1", "net2"],) * 2 == interfaces(attached)


def test_a_missing_interface_is_told_once_and_healed_on_demand(attached):
    """No silent repair: an Event; with selfHeal the interface is attached again."""
    counted = []
    watch = reconciler.Reconciler(None, None, counted.append)
    node = attached.stage.node()
    pod = node.store.pod(PodRef("default", "p"))
    running_pod = type(pod)(**{**{name: getattr(pod, name) for name in pod.__slots__}, "phase": "Running"})
    with netlink.open(attached.stage.netns) as kernel:
        kernel.delete_link(kernel.link("net2").index)
    for _ in range(2):
        watch.tell_missing(node, [running_pod])
    told = [(event.reason, event.message) for event in node.store.events(PodRef("default", "p"))]
    assert [("InterfaceMissing", "interface net2 is no longer in the pod")] == told[-1:]
    assert ["told"] == counted
    watch.heal = True
    netlink.visit(attached.host, lambda: watch.tell_missing(node, [running_pod]))
    assert ["eth0", "net1", "net2"] == interfaces(attached)[0]


def test_a_pod_that_started_without_us_is_told(running):
    """A running pod that asks for networks and has no journal entry raced with our start."""
    node = running.stage.node()
    pod = node.store.pod(PodRef("default", "p"))
    fields = {name: getattr(pod, name) for name in pod.__slots__}
    watch = reconciler.Reconciler(None, None, lambda kind: None)
    for more in (
        {"phase": "Running", "host_network": True},
        {"phase": "Pending"},
        {"phase": "Running", "deleted": True},
    ):
        watch.tell_missing(node, [type(pod)(**{**fields, **more})])
    assert [] == node.store.events(PodRef("default", "p"))
    watch.tell_missing(node, [type(pod)(**{**fields, "phase": "Running"})])
    assert ["NetworksMissing"] == [event.reason for event in node.store.events(PodRef("default", "p"))]
