# SPDX-License-Identifier: Apache-2.0
"""Devices of a real kubelet: a device plugin offers them, pods are given some, and networks get the pods' devices.

E2E_KUBELET_ROOT is kubelet's --root-dir, E2E_DEVICE_PLUGINS its folder of device plugins; without them a stock node's.
E2E_RESTART_KUBELET may hold a command that kills kubelet and starts it again.
"""

import json
import os
import secrets
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cluster_node import definition, pod, until
from device_plugin import ENVIRONMENT, DevicePlugin
from scripted import Scripted

_ROOT = Path(os.environ.get("E2E_KUBELET_ROOT") or "/var/lib/kubelet")
_DEVICE_PLUGINS = Path(os.environ.get("E2E_DEVICE_PLUGINS") or "/var/lib/kubelet/device-plugins")
_RESTART_KUBELET = os.environ.get("E2E_RESTART_KUBELET", "")

# One name for all runs: kubelet lists a resource with a count of zero long after its plugin has gone.
RESOURCE = "mpt.local/port"
PORTS = [f"0000:aa:00.{n}" for n in range(4)]

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def options(folder):
    """The daemon asks this node's kubelet, and finds executables in a folder of ours first."""
    return {
        "podResourcesSocket": str(_ROOT / "pod-resources/kubelet.sock"),
        "deviceInfoDir": str(folder / "devinfo"),
        "binDir": str(folder / "bin"),
    }


@pytest.fixture(scope="module")
def definitions():
    """Two networks that name the resource; the executable of their type writes down what it is told."""
    networks = [definition(name, {"cniVersion": "1.0.0", "type": "recorder"}) for name in ("one", "two")]
    for network in networks:
        network["metadata"]["annotations"] = {"k8s.v1.cni.cncf.io/resourceName": RESOURCE}
    return networks


@pytest.fixture(scope="module")
def ports(node):
    """A device plugin of four ports, which kubelet has told the API server."""
    plugin = DevicePlugin(_DEVICE_PLUGINS, RESOURCE, PORTS, f"mpt{secrets.token_hex(4)}.sock")
    try:
        plugin.start()
        until(lambda: offered(node) == len(PORTS), lambda: node.kubectl("get", "nodes", "-o", "yaml"), 60)
        yield plugin
    finally:
        plugin.stop()


@pytest.fixture
def recorder(clean, ports):
    """The executable of both networks; once the test's pods are deleted, every ADD of theirs had its DEL."""
    recorder = Scripted(clean.folder / "bin")
    recorder.plugin("recorder")
    yield recorder
    clean.kubectl("delete", "pods", "--all", "--wait=false")
    clean.gone()
    until(lambda: not recorder.held(), lambda: f"{recorder.held()} {clean.log()[-3000:]}")


def offered(node):
    """Return how many devices the node has, as its status says."""
    return int(only_node(node)["status"]["allocatable"].get(RESOURCE, 0))


def only_node(node):
    """Return the cluster's node."""
    return json.loads(node.kubectl("get", "nodes", "-o", "json"))["items"][0]


def with_ports(name, networks):
    """Return a pod of two containers, a and b, that are given one device each."""
    body = pod(name, networks)
    (one,) = body["spec"]["containers"]
    limits = {"limits": {RESOURCE: "1"}}
    body["spec"]["containers"] = [{**one, "name": container, "resources": limits} for container in ("a", "b")]
    return body


def given(node, name):
    """Return which devices each container of a pod was given, as the device plugin told the container itself."""
    said = ("sh", "-c", f"echo ${ENVIRONMENT}")
    return {container: node.kubectl("exec", name, "-c", container, "--", *said).strip() for container in ("a", "b")}


def told(recorder, name, verb):
    """Return the devices that the plugin was told for a pod: interface -> (deviceID, pciBusID), the same each time."""
    found = {}
    for call in recorder.calls("recorder", verb):
        if f"K8S_POD_NAME={name};" in f"{call['env']['CNI_ARGS']};":
            config, ifname = call["config"], call["env"]["CNI_IFNAME"]
            device = config.get("deviceID"), config.get("pciBusID")
            assert found.setdefault(ifname, device) == device
    return found


def in_status(node, name):
    """Return the PCI addresses in a pod's network-status: interface -> address, None without one."""
    addresses = {}
    for status in node.status(name):
        info = status.get("device-info", {})
        addresses[status["interface"]] = info.get("pci", {}).get("pci-address")
    return addresses


def test_each_network_gets_the_device_of_its_container(clean, recorder):
    """Two pods take all four devices: each goes once, to the network that names its container, on ADD and on DEL."""
    clean.apply(
        with_ports("x", [{"name": "one"}, {"name": "two", "container": "b"}]),
        with_ports("y", [{"name": "one", "container": "b"}, {"name": "two"}]),
    )
    clean.running(["x", "y"])
    x, y = given(clean, "x"), given(clean, "y")
    assert sorted(PORTS) == sorted([*x.values(), *y.values()])
    expected = {"x": {"net1": x["a"], "net2": x["b"]}, "y": {"net1": y["b"], "net2": y["a"]}}
    for name, devices in expected.items():
        assert {"eth0": None, **devices} == in_status(clean, name)
        assert {ifname: (port, port) for ifname, port in devices.items()} == told(recorder, name, "ADD")
    clean.kubectl("delete", "pods", "--all", "--wait=false")
    clean.gone()
    for name in expected:
        until(lambda name=name: told(recorder, name, "DEL") == told(recorder, name, "ADD"), clean.log)


def test_more_networks_than_devices(clean, recorder):
    """The pod does not start, its Event says how many were wanted and which were given, and no plugin was called."""
    before = clean.state()
    clean.apply(with_ports("greedy", "one,two,one@third"))

    def refusals():
        events = json.loads(clean.kubectl("get", "events", "-o", "json"))["items"]
        mine = [event for event in events if event["involvedObject"]["name"] == "greedy"]
        return [event["message"] for event in mine if event["reason"] == "FailedAttach"]

    until(refusals, lambda: clean.kubectl("get", "events") + clean.log()[-3000:], 60)
    message = refusals()[0]
    assert f"wants a device of {RESOURCE}" in message
    assert "3 wanted" in message
    assert "2 given" in message
    assert 2 == len([port for port in PORTS if port in message])
    until(lambda: clean.state() == before, lambda: f"{before} became {clean.state()}")
    assert {} == told(recorder, "greedy", "ADD")
    assert ["Pending"] == [each["status"]["phase"] for each in clean.pods()]


@pytest.mark.skipif(not _RESTART_KUBELET, reason="E2E_RESTART_KUBELET holds no command")
def test_kubelet_restarts_between_two_pods(clean, recorder, ports):
    """The device plugin registers again; the next pod gets the devices that the first, still there, does not have."""
    clean.apply(with_ports("before", "one,two"))
    clean.running(["before"])
    held = set(given(clean, "before").values())
    registered, moment = ports.registered, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    subprocess.run(_RESTART_KUBELET, shell=True, check=True)
    until(lambda: ports.registered > registered, seconds=60)

    def told_anew():
        # A new kubelet counts no device until the plugin is back; what an earlier one told does not count here.
        (ready,) = (each for each in only_node(clean)["status"]["conditions"] if each["type"] == "Ready")
        return ready["lastHeartbeatTime"] > moment and ready["status"] == "True" and offered(clean) == len(PORTS)

    until(told_anew, lambda: clean.kubectl("get", "nodes", "-o", "yaml"), 90)
    clean.apply(with_ports("after", [{"name": "two", "container": "b"}, {"name": "one"}]))
    clean.running(["after"])
    after = given(clean, "after")
    assert set(PORTS) - held == set(after.values())
    assert {"net1": (after["b"],) * 2, "net2": (after["a"],) * 2} == told(recorder, "after", "ADD")
    clean.kubectl("delete", "pod", "before", "--wait=false")
    until(lambda: told(recorder, "before", "DEL") == told(recorder, "before", "ADD"), clean.log, 60)
    assert held == {port for port, _ in told(recorder, "before", "DEL").values()}
