# SPDX-License-Identifier: Apache-2.0
"""One network more, one less, while the pod runs: journalled, told, and gone with the pod."""

import base64
import json
from dataclasses import replace

import pytest
from following import STATUS, events, followed, interfaces

from multus_py.agent.reconciling import reconciler
from multus_py.kernel import namespaces, netlink
from multus_py.kube.store import PodRef


def request(running, verb, ifname, config, pod="p", **asked):
    """Send a `/delegate` request as the dynamic networks controller does; return its status and body."""
    env = running.stage.call(verb, pod).environment() | {"CNI_IFNAME": ifname}
    body = {"env": env, "config": base64.b64encode(json.dumps(config).encode()).decode(), "interfaceAttributes": asked}
    status, text = running.request("POST", "/delegate", body)
    return status, json.loads(text) if text else None


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


def default_routes(running):
    """Return the IPv4 default routes of the kernel, of the kept results and of network-status, by interface."""
    with netlink.open(running.stage.netns) as kernel:
        names = {link.index: link.name for link in kernel.links()}
        there = [(names[route.ifindex], str(route.gateway)) for route in kernel.default_routes(4)]
    bodies = [json.loads(path.read_text()) for path in (running.folder / "cni/results").iterdir()]
    kept = [(body["ifName"], route.get("gw")) for body in bodies for route in body["result"].get("routes", [])]
    text = running.stage.node().store.pod(PodRef("default", "p")).annotations[STATUS]
    told = [(status["interface"], via) for status in json.loads(text) for via in status.get("gateway", [])]
    return there, kept, told


BY_ETH0, BY_NET1 = [("eth0", "10.88.0.1")], [("net1", "10.89.0.1")]
CLAIMING = '[{"name":"b","default-route":["10.89.0.1"]},{"name":"m"}]'


def test_a_default_route_moves_and_comes_back_while_the_pod_runs(attached, leftovers):
    """The edited annotation is true in the kernel, the results and the status; edited back, all is as before."""
    assert (BY_ETH0,) * 3 == default_routes(attached)
    for _ in range(2):
        assert (["net1"], ["net1"]) == followed(attached, CLAIMING)
        assert (BY_NET1,) * 3 == default_routes(attached)
        namespaces.run_in(attached.host, lambda: attached.stage.run("CHECK", "p"))
        assert (["net1"], ["net1"]) == followed(attached, "b,m")
        assert (BY_ETH0,) * 3 == default_routes(attached)
        namespaces.run_in(attached.host, lambda: attached.stage.run("CHECK", "p"))
    followed(attached, CLAIMING)
    namespaces.run_in(attached.host, lambda: attached.stage.run("DEL", "p"))
    assert [] == leftovers(attached)


def test_a_default_route_that_cannot_be_is_taken_back(attached):
    """A gateway that the kernel refuses: the network is gone again, the pod's own way out is as it was."""
    asked = '[{"name":"b"},{"name":"m"},{"name":"b","default-route":["10.99.0.1"]}]'
    assert ([], []) == followed(attached, asked, done=False)
    words = "network default/b as net3: default-route 10.99.0.1: the gateway 10.99.0.1 is in no network"
    assert words in events(attached)[-1][1]
    assert (["eth0", "net1", "net2"],) * 2 == interfaces(attached)
    assert (BY_ETH0,) * 3 == default_routes(attached)
    namespaces.run_in(attached.host, lambda: attached.stage.run("CHECK", "p"))


def test_a_claimer_of_the_pods_start_gives_back_too(running):
    """A network that took the default route over at ADD is detached later: the pod is not left without a way out."""
    running.stage.pod("p", CLAIMING)
    namespaces.run_in(running.host, lambda: running.stage.run("ADD", "p"))
    assert (BY_NET1,) * 3 == default_routes(running)
    assert ([], ["net1", "net2"]) == followed(running, "")
    assert (BY_ETH0,) * 3 == default_routes(running)
    namespaces.run_in(running.host, lambda: running.stage.run("DEL", "p"))


def test_a_name_that_something_else_has_is_refused(attached):
    """An interface that the workload made itself is neither taken nor removed."""
    with netlink.open(attached.stage.netns) as kernel:
        kernel.create_bridge("mine")
    assert ([], []) == followed(attached, "b,m,b@mine", done=False)
    assert "interface name mine already exists" in events(attached)[-1][1]
    assert ["eth0", "mine", "net1", "net2"] == interfaces(attached)[0]
    with netlink.open(attached.stage.netns) as kernel:
        kernel.delete_link(kernel.link("mine").index)


REPLACING = """#!/bin/sh
made="$0.$CNI_CONTAINERID"
if [ "$CNI_COMMAND" = ADD ]; then
    [ ! -e "$made" ] || nsenter --net="$CNI_NETNS" ip link del "$(cat "$made")"
    echo "$CNI_IFNAME" > "$made"
fi
exec /usr/lib/cni/bridge
"""


def test_a_plugin_of_one_interface_a_pod_is_refused(attached):
    """A system that replaces what it made before (as Calico) is told of by name, and what it made is taken back."""
    program = attached.stage.plugins.folder / "replacing"
    program.write_text(REPLACING)
    program.chmod(0o755)
    attached.stage.definition("r", {"cniVersion": "1.0.0", "name": "r", "type": "replacing", "bridge": "br1"})
    assert (["net3"], []) == followed(attached, "b,m,r")
    assert ([], []) == followed(attached, "b,m,r,r@again", done=False)
    assert "r as again: plugin replacing took net3 away" in events(attached)[-1][1]
    assert "another type" in events(attached)[-1][1]
    assert ["eth0", "net1", "net2"] == interfaces(attached)[0]
    page = attached.stage.node().journal.lock_sandbox("c1", "eth0")
    with page as found:
        assert ["eth0", "net1", "net2", "net3"] == [item.ifname for item in found.entry.attachments]


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
        watch.report_missing(node, [running_pod])
    told = [(event.reason, event.message) for event in node.store.events(PodRef("default", "p"))]
    assert [("InterfaceMissing", "interface net2 is no longer in the pod")] == told[-1:]
    assert ["told"] == counted
    watch.heal = True
    namespaces.run_in(attached.host, lambda: watch.report_missing(node, [running_pod]))
    assert ["eth0", "net1", "net2"] == interfaces(attached)[0]


@pytest.mark.parametrize("lost", ["eth0", "net1"])
def test_what_is_healed_leaves_one_default_route(running, lost):
    """The claimer that comes back has the default route again; the interface that yields brings no second one."""
    running.stage.pod("p", CLAIMING)
    namespaces.run_in(running.host, lambda: running.stage.run("ADD", "p"))
    with netlink.open(running.stage.netns) as kernel:
        kernel.delete_link(kernel.link(lost).index)
    node = running.stage.node()
    pod = replace(node.store.pod(PodRef("default", "p")), phase="Running")
    watch = reconciler.Reconciler(None, None, lambda kind: None, heal=True)
    namespaces.run_in(running.host, lambda: watch.report_missing(node, [pod]))
    assert (BY_NET1,) * 3 == default_routes(running)
    namespaces.run_in(running.host, lambda: running.stage.run("CHECK", "p"))
    namespaces.run_in(running.host, lambda: running.stage.run("DEL", "p"))


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
        watch.report_missing(node, [type(pod)(**{**fields, **more})])
    assert [] == node.store.events(PodRef("default", "p"))
    watch.report_missing(node, [type(pod)(**{**fields, "phase": "Running"})])
    assert ["NetworksMissing"] == [event.reason for event in node.store.events(PodRef("default", "p"))]
