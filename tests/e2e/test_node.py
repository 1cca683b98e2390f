# SPDX-License-Identifier: Apache-2.0
"""The daemon and its shim on a node of a real cluster: kubelet, its runtime and the API server are the real ones.

E2E_RESTART_API may hold a command that kills the API server and starts it again.
"""

import json
import os
import secrets
import signal
import subprocess
import time

import pytest
from cluster_node import definition, pod, until

from multus_py.kernel import netlink

_RESTART_API = os.environ.get("E2E_RESTART_API", "")

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def definitions(folder):
    """Three networks on two bridges of our own, which go when the node's pods are gone."""
    tag = secrets.token_hex(2)
    pool = {"type": "host-local", "dataDir": str(folder / "ipam")}
    bridge = {"cniVersion": "1.0.0", "type": "bridge", "bridge": f"mpt{tag}", "isGateway": True}
    yield [
        definition("b", {**bridge, "ipam": {**pool, "subnet": "10.61.0.0/16"}}),
        definition("b2", {**bridge, "bridge": f"mpu{tag}", "ipam": {**pool, "subnet": "10.62.0.0/16"}}),
        definition("m", {"cniVersion": "1.0.0", "type": "macvlan", "master": f"mpt{tag}",
                         "ipam": {**pool, "subnet": "10.63.0.0/16"}}),
    ]  # fmt: skip
    with netlink.open() as kernel:
        for link in kernel.links():
            if link.name in (f"mpt{tag}", f"mpu{tag}"):
                kernel.delete_link(link.index)


@pytest.mark.parametrize("networks", ["", "b", "b,b2,m", "b,b2,m,b,b2,m,b,b2"])
def test_pods_with_none_to_eight_networks_reach_each_other(clean, networks):
    """Two pods: every interface is told in network-status, answers a ping from the other, and has its Event."""
    clean.apply(pod("one", networks or None), pod("two", networks or None))
    clean.running(["one", "two"])
    count = 1 + len([item for item in networks.split(",") if item])
    told = clean.status("two")
    assert ["eth0", *(f"net{n}" for n in range(1, count))] == [status["interface"] for status in told]
    assert [True] + [False] * (count - 1) == [status.get("default", False) for status in told]
    for status in told:
        for address in status["ips"]:
            clean.ping("one", address)

    def added():
        events = json.loads(clean.kubectl("get", "events", "-o", "json"))["items"]
        return [e for e in events if e["reason"] == "AddedInterface" and e["involvedObject"]["name"] == "two"]

    until(lambda: len(added()) >= count)


def test_a_deployment_of_fifty_comes_and_goes(clean):
    """Fifty replicas with two more networks each: all run, all statuses are whole and no address is there twice."""
    template = pod("x", "b,m")
    labels = {"app": "fifty"}
    spec = {"replicas": 50, "selector": {"matchLabels": labels}, "template": {
        "metadata": {"labels": labels, "annotations": template["metadata"]["annotations"]},
        "spec": {**template["spec"]}}}  # fmt: skip
    clean.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "fifty"}, "spec": spec})
    started = time.monotonic()
    until(lambda: sum(p["status"].get("phase") == "Running" for p in clean.pods()) == 50, clean.log, 280)
    print(f"50 pods ran after {time.monotonic() - started:.0f} s")
    names = [p["metadata"]["name"] for p in clean.pods()]
    statuses = [json.loads(p["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"]) for p in clean.pods()]
    addresses = [address for status in statuses for item in status for address in item["ips"]]
    assert ([3] * 50, 150) == ([len(status) for status in statuses], len(set(addresses)))
    for n, name in enumerate(names[:8]):
        clean.ping(name, statuses[(n + 7) % 50][1]["ips"][0])
        clean.ping(name, statuses[(n + 7) % 50][2]["ips"][0])


def test_pods_deleted_while_the_daemon_is_away_leave_nothing(clean):
    """Twenty pods are force-deleted while nobody serves: ten seconds after the daemon is back nothing is left."""
    before = clean.state()
    names = [f"away{n}" for n in range(20)]
    clean.apply(*(pod(name, "b,m") for name in names))
    clean.running(names, 200)
    clean.stop(signal.SIGKILL)
    clean.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
    spool = clean.folder / "cni" / "spool"
    until(lambda: len(list(spool.glob("*.json"))) >= 20, seconds=90)
    clean.start(ready=False)
    until(lambda: clean.state() == before, lambda: f"{clean.state()} {clean.log()[-3000:]}", 10)
    until(lambda: "[INFO] ready" in clean.log().rpartition("listening on")[2], seconds=40)


def test_an_edited_annotation_is_followed(clean):
    """While the pod runs an interface appears and disappears, in the pod and in its status."""
    clean.apply(pod("edited", "b"))
    clean.running(["edited"])

    def interfaces():
        return [status["interface"] for status in clean.status("edited")]

    clean.kubectl("annotate", "pod", "edited", "--overwrite", "k8s.v1.cni.cncf.io/networks=b,m@data")
    until(lambda: interfaces() == ["eth0", "net1", "data"], clean.log)
    assert "data" in clean.kubectl("exec", "edited", "--", "ip", "-o", "link")
    clean.kubectl("annotate", "pod", "edited", "--overwrite", "k8s.v1.cni.cncf.io/networks=m@data")
    until(lambda: interfaces() == ["eth0", "data"], clean.log)
    assert "net1" not in clean.kubectl("exec", "edited", "--", "ip", "-o", "link")


def test_the_right_pod_of_one_name(clean):
    """A pod is deleted and made anew under its name at once, with other networks: the status is the new one's."""
    for n, networks in enumerate(("b", "b,m", "m")):
        clean.apply(pod("again", networks))
        clean.running(["again"])
        found = json.loads(clean.kubectl("get", "pod", "again", "-o", "json"))["metadata"]
        told = [
            item["name"].partition("/")[2]
            for item in json.loads(found["annotations"]["k8s.v1.cni.cncf.io/network-status"])
        ]
        assert networks.split(",") == told[1:], n
        clean.kubectl("delete", "pod", "again", "--force", "--grace-period=0")


@pytest.mark.skipif(not _RESTART_API, reason="E2E_RESTART_API holds no command")
def test_the_api_server_restarts_in_a_burst(clean):
    """It is killed and started again while ten pods start and ten end: all that are wanted run, with a whole status."""
    first = [f"first{n}" for n in range(10)]
    second = [f"second{n}" for n in range(10)]
    clean.apply(*(pod(name, "b,m") for name in first))
    clean.running(first, 150)
    clean.kubectl("delete", "pods", *first, "--wait=false")
    clean.apply(*(pod(name, "m,b") for name in second))
    subprocess.run(_RESTART_API, shell=True, check=True)
    until(lambda: clean.kubectl("get", "--raw", "/readyz", check=False) == "ok", seconds=60)
    clean.running(second, 200)
    for name in second:
        assert ["eth0", "net1", "net2"] == [status["interface"] for status in clean.status(name)], name
