# SPDX-License-Identifier: Apache-2.0
"""The verbs with scripted executables, in real namespaces."""

import json
import threading
import time

import pytest
from stage import Stage, namespace

from multus_py.cni.errors import CniError
from multus_py.kube.store import PodRef

RESULT = {
    "cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "X"}],
    "ips": [{"version": "4", "interface": 0, "address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}], "dns": {}, "private": {"vlan": 7},
}  # fmt: skip
CLUSTER = {
    "cniVersion": "0.4.0",
    "name": "cluster",
    "plugins": [
        {"type": "first", "key": {"kept": [1.50, 10**20]}},
        {"type": "second", "capabilities": {"portMappings": True}},
    ],
}


@pytest.fixture
def stage(tmp_path):
    """A sandbox, a default network of two plugins and a definition of one, all scripted."""
    with namespace() as netns:
        stage = Stage(tmp_path, netns, {"delegates": [CLUSTER]})
        stage.plugins.plugin("first", ADD={"result": RESULT})
        stage.plugins.plugin("second")
        stage.plugins.plugin("extra")
        stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": "extra", "capabilities": {"ips": True}})
        stage.pod("p", '[{"name":"x","ips":["10.7.0.9/24"],"mac":"02:00:00:00:00:09"}]')
        yield stage


def test_a_pod_is_attached_told_and_detached(stage):
    """ADD answers with the default network's result, the status tells all, DEL leaves nothing."""
    result = stage.run("ADD", "p")
    assert ("1.1.0", "10.1.0.5/24") == (result["cniVersion"], result["ips"][0]["address"])
    status = json.loads(stage.node().store.pod(PodRef("default", "p")).annotations["k8s.v1.cni.cncf.io/network-status"])
    assert [("cluster", "eth0"), ("default/x", "net1")] == [(item["name"], item["interface"]) for item in status]
    stage.run("CHECK", "p")
    stage.run("DEL", "p")
    assert [] == stage.left()


def test_each_plugin_is_spoken_to_as_libcni_would(stage):
    """Own version, own name, prevResult of the one before, capabilities only where declared, argv[0] as found."""
    stage.run("ADD", "p")
    stage.run("CHECK", "p")
    stage.run("DEL", "p")
    first, second, extra = (stage.plugins.calls(name, "ADD")[0] for name in ("first", "second", "extra"))
    assert CLUSTER["plugins"][0] | {"name": "cluster", "cniVersion": "0.4.0"} == first["config"]
    assert RESULT == second["config"]["prevResult"]
    assert ("xnet", "1.0.0", {"ips": ["10.7.0.9/24"]}) == (
        extra["config"]["name"], extra["config"]["cniVersion"], extra["config"]["runtimeConfig"],
    )  # fmt: skip
    assert ("net1", str(stage.folder / "bin" / "extra")) == (extra["env"]["CNI_IFNAME"], extra["argv0"])
    assert "prevResult" not in first["config"]
    assert "runtimeConfig" not in second["config"]
    for verb in ("CHECK", "DEL"):
        again = stage.plugins.calls("extra", verb)[0]
        assert extra["env"]["CNI_ARGS"] == again["env"]["CNI_ARGS"]
        assert extra["config"] == {key: value for key, value in again["config"].items() if key != "prevResult"}
        for name in ("first", "second"):
            assert RESULT == stage.plugins.calls(name, verb)[0]["config"]["prevResult"]


def test_runtime_capabilities_reach_delete_too(stage):
    """Port mappings that the runtime gave at ADD are there at DEL, whatever the runtime says then."""
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    stage.run("ADD", "p", runtimeConfig=ports)
    stage.run("DEL", "p")
    assert [ports, ports] == [call["config"]["runtimeConfig"] for call in stage.plugins.calls("second")]


def test_delete_is_newest_first_and_idempotent(stage):
    """The last attached goes first, within a network the last plugin first; DEL may come again and succeeds again."""
    stage.run("ADD", "p")
    stage.run("DEL", "p")
    asked = [stage.folder / "bin" / f"{name}.calls" for name in ("extra", "second", "first")]
    assert sorted(asked, key=lambda path: path.stat().st_mtime_ns) == asked
    stage.run("DEL", "p")
    stage.run("DEL", "p", netns="")
    assert (1, []) == (len(stage.plugins.calls("extra", "DEL")), stage.left())


def test_delete_of_a_sandbox_that_others_attached_asks_the_clusters_networks(stage):
    """A pod older than our install, or one that started without us, has the default network: it is detached."""
    held = stage.folder / "bin" / "held"
    held.mkdir()
    (held / "first@older@eth0").touch()
    stage.run("DEL", "p", container="older")
    assert ([], []) == (stage.plugins.calls("extra"), stage.left())
    asked = stage.plugins.calls("first", "DEL")[0]["env"]
    assert ("older", "eth0", stage.netns) == tuple(asked[f"CNI_{key}"] for key in ("CONTAINERID", "IFNAME", "NETNS"))


def test_delete_finishes_what_it_can_and_keeps_the_rest(stage):
    """One delegate refuses: the others are detached, the error has its code, the entry stays, the next DEL finishes."""
    stage.run("ADD", "p")
    stage.plugins.plugin("second", DEL={"error": {"code": 123, "msg": "not now"}})
    with pytest.raises(CniError) as caught:
        stage.run("DEL", "p")
    assert (123, True) == (caught.value.code, "not now" in caught.value.msg)
    assert ["second@c1@eth0"] == stage.plugins.held()
    stage.plugins.plugin("second")
    stage.run("DEL", "p", netns="")
    assert [] == stage.left()


def test_a_delegates_code_and_message_pass_through(stage):
    """Code 11 stays 11, its text is there, stderr is folded in, the network is named, and nothing is left."""
    stage.plugins.plugin(
        "extra", ADD={"error": {"code": 11, "msg": "pool is busy", "details": "wait"}, "stderr": "trace"}
    )
    with pytest.raises(CniError) as caught:
        stage.run("ADD", "p")
    error = caught.value
    assert (11, "wait; trace") == (error.code, error.details)
    assert "default/p: network default/x as net1: plugin extra: pool is busy" == error.msg
    assert ["events.jsonl"] == stage.left()  # the Event that tells the reason stays with the pod
    events = stage.node().store.events(PodRef("default", "p"))
    assert [("Warning", "FailedAttach", True)] == [(e.kind, e.reason, "pool is busy" in e.message) for e in events]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"stdout": ""}, "no usable result"), ({"stdout": "[]"}, "must be a JSON object"),
        ({"stdout": "{"}, "not JSON"),
        ({"stdout": '{"ips":[{"address":"nonsense"}]}'}, "nonsense"), ({"exit": 3, "stdout": "oops"}, "exit code 3"),
        ({"signal": 9}, "SIGKILL"), ({"stdout": '{"cniVersion":"9"}'}, "not supported"), ({"sleep": 30}, "took longer"),
    ],
)  # fmt: skip
def test_a_delegate_that_misbehaves_is_told_and_taken_back(stage, script, words):
    """Whatever it prints or however it ends: a CNI error with its name, and DEL for all that was tried."""
    stage.plugins.plugin("extra", ADD=script)
    with pytest.raises(CniError) as caught:
        stage.run("ADD", "p", execTimeout=1.5)
    assert (True, True) == ("extra" in caught.value.msg, words in str(caught.value))
    assert ["events.jsonl"] == stage.left()


def test_what_cannot_be_taken_back_is_left_for_delete(stage):
    """ADD fails and so does its undo: the error tells both, the journal keeps it, DEL finishes."""
    broken = {"error": {"code": 100, "msg": "stuck"}}
    stage.plugins.plugin("extra", ADD=broken, DEL=broken)
    with pytest.raises(CniError) as caught:
        stage.run("ADD", "p")
    assert "DEL will" in caught.value.to_json("1.0.0")["details"]
    stage.plugins.plugin("extra")
    stage.run("DEL", "p")
    assert [] == stage.left()


def test_a_missing_definition_is_told_by_its_own_event(stage):
    """NoNetworkFound is the reason that people look for."""
    stage.pod("q", "nowhere/gone")
    with pytest.raises(CniError, match="default/q: cannot find a network-attachment-definition"):
        stage.run("ADD", "q")
    assert ["NoNetworkFound"] == [event.reason for event in stage.node().store.events(PodRef("default", "q"))]


def test_check_needs_a_known_sandbox(stage):
    """CHECK of nothing is code 3; CHECK of a broken one is the delegate's error."""
    with pytest.raises(CniError) as caught:
        stage.run("CHECK", "p")
    assert 3 == caught.value.code
    stage.run("ADD", "p")
    stage.plugins.plugin("extra", CHECK={"error": {"code": 100, "msg": "gone"}})
    with pytest.raises(CniError, match="gone"):
        stage.run("CHECK", "p")


def test_status_speaks_for_the_default_network(stage, tmp_path):
    """An unready file is code 50; a delegate of 1.1.0 is asked, an older one is not."""
    with pytest.raises(CniError) as caught:
        stage.run("STATUS", readinessindicatorfile=str(tmp_path / "none"))
    assert 50 == caught.value.code
    stage.run("STATUS")
    assert [] == stage.plugins.calls("first", "STATUS")
    stage.plugins.plugin("first", STATUS={"error": {"code": 51, "msg": "half"}})
    with pytest.raises(CniError) as caught:
        stage.run("STATUS", delegates=[{**CLUSTER, "cniVersion": "1.1.0"}])
    assert 51 == caught.value.code


def test_add_waits_for_readiness_up_to_a_bound(stage, tmp_path):
    """The default network's file is waited for; without it ADD says try again and touches nothing."""
    late = tmp_path / "ready"
    threading.Timer(0.3, late.touch).start()
    stage.run("ADD", "p", readinessindicatorfile=str(late), readinessTimeout=10)
    stage.run("DEL", "p", readinessindicatorfile=str(tmp_path / "never"))
    with pytest.raises(CniError) as caught:
        stage.run("ADD", "p", readinessindicatorfile=str(tmp_path / "never"), readinessTimeout=0.1)
    assert (11, []) == (caught.value.code, stage.left())


def test_gc_honours_the_runtimes_list(stage):
    """What the runtime lists no more is detached, what it lists stays, every network is told what is left of it."""
    stage.definition("x", {"cniVersion": "1.1.0", "name": "xnet", "type": "extra"})
    for container in ("c1", "c2"):
        stage.run("ADD", "p", container=container)
    stage.run("GC", **{"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    assert ["extra@c1@net1", "first@c1@eth0", "second@c1@eth0"] == stage.plugins.held()
    swept = stage.plugins.calls("extra", "GC")[0]["config"]
    assert [{"containerID": "c1", "ifname": "net1"}] == swept["cni.dev/valid-attachments"]
    assert [] == stage.plugins.calls("first", "GC")


def test_gc_collects_strays_and_leaves_other_networks_alone(stage):
    """Results without a journal entry are detached; entries of another config of ours are not ours to judge."""
    stage.run("ADD", "p", container="stray")
    (stage.folder / "cni/attachments/stray@eth0").unlink()
    stage.run("ADD", "p", container="foreign", name="another")
    stage.run("GC", **{"cni.dev/valid-attachments": []})
    assert ["extra@foreign@net1", "first@foreign@eth0", "second@foreign@eth0"] == stage.plugins.held()


def test_gc_of_a_fresh_node_and_without_a_list(stage):
    """Nothing there is fine; a missing list is an error, for it would mean everything."""
    stage.run("GC", **{"cni.dev/valid-attachments": []})
    with pytest.raises(CniError) as caught:
        stage.run("GC")
    assert 7 == caught.value.code


def test_an_unknown_pod_is_tried_again_and_another_uid_too(stage):
    """A pod that is not there yet, or is another one of the same name: code 11, nothing touched."""
    stage.pod("u", uid="one")
    for pod, more in (("nobody", {}), ("u", {"uid": "two"})):
        with pytest.raises(CniError) as caught:
            stage.run("ADD", pod, **more)
        assert (11, []) == (caught.value.code, stage.left())
    stage.run("ADD", "u", uid="one")


def test_a_static_pod_may_have_another_uid(stage):
    """kubelet's own uid of a static pod differs from that of its mirror."""
    stage.pod("s", uid="one", **{"kubernetes.io/config.source": "file"})
    stage.run("ADD", "s", uid="two")


def test_a_sandbox_without_a_pod_gets_the_default_network(stage):
    """podman and others name no pod: the default network alone."""
    stage.run("ADD")
    assert ["first@c1@eth0", "second@c1@eth0"] == stage.plugins.held()


def test_our_own_namespace_is_refused(stage):
    """Code 8, unless the runtime overrides it; a namespace that is not there is code 3."""
    for path, code in (("/proc/self/ns/net", 8), ("/run/netns/mpt-none", 3)):
        with pytest.raises(CniError) as caught:
            stage.run("ADD", "p", netns=path)
        assert (code, []) == (caught.value.code, stage.left())


def test_a_missing_plugin_is_named(stage):
    """Which type, and where it was sought."""
    stage.definition("x", {"cniVersion": "1.0.0", "type": "not-installed"})
    with pytest.raises(CniError, match="not-installed") as caught:
        stage.run("ADD", "p")
    assert str(stage.folder / "bin") in caught.value.details


def test_a_chain_that_comes_back_is_refused(stage, monkeypatch):
    """Whatever runs under one of our delegates knows it, and the door refuses it."""
    from multus_py.entry import plugin

    stage.run("ADD", "p")
    assert "1" == stage.plugins.calls("first", "ADD")[0]["env"]["MULTUS_PY_DEPTH"]
    with pytest.raises(CniError, match="called by one of its own delegates"):
        plugin.handle(stage.call("ADD", "p"), {"MULTUS_PY_DEPTH": "1"})


@pytest.mark.parametrize("shape", ["4.3.0", "master"])
def test_a_sandbox_of_the_original_is_detached(stage, shape):
    """A node that was switched over: its delegates file names what to detach, and is removed after."""
    import base64

    def encoded(body):
        return base64.b64encode(json.dumps(body).encode()).decode()

    listed = {"CNINetworkConfigList": {"Bytes": encoded(CLUSTER)}} if shape == "4.3.0" else {}
    single = {"cniVersion": "1.0.0", "name": "xnet", "type": "extra", "capabilities": {"ips": True}}
    path = stage.folder / "cni" / "c1"
    path.parent.mkdir()
    path.write_text(json.dumps([
        {"Conf": {"ipam": {}}, "ConfList": CLUSTER, "Name": "cluster", "Bytes": encoded(CLUSTER), **listed},
        {"Conf": single, "ConfList": {}, "Name": "default/x", "ifnameRequest": "net7", "ipRequest": ["10.9.0.5/24"],
         "Bytes": encoded(single)},
    ]))  # fmt: skip
    stage.run("DEL", "p")
    deleted = stage.plugins.calls("extra", "DEL")[0]
    assert ("net7", {"ips": ["10.9.0.5/24"]}) == (deleted["env"]["CNI_IFNAME"], deleted["config"]["runtimeConfig"])
    assert CLUSTER["plugins"][0]["key"] == stage.plugins.calls("first", "DEL")[0]["config"]["key"]
    assert not path.exists()


def test_two_calls_for_one_sandbox_wait_for_each_other(stage):
    """A DEL that comes while ADD is at work waits for it, and then finds all of it."""
    stage.plugins.plugin("extra", ADD={"sleep": 0.6})
    adding = threading.Thread(target=stage.run, args=("ADD", "p"))
    adding.start()
    while adding.is_alive() and not stage.plugins.calls("extra", "ADD"):
        time.sleep(0.01)
    stage.run("DEL", "p")
    adding.join()
    assert [] == stage.left()


def test_an_ipam_executable_is_asked_once_when_the_namespace_is_gone(stage):
    """It gets the config of the interface's plugin, and its own DEL is no reason to ask it again."""
    stage.plugins.plugin("pool")
    stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": "extra", "ipam": {"type": "pool"}})
    stage.run("ADD", "p")
    stage.run("DEL", "p", netns="")
    assert (1, []) == (len(stage.plugins.calls("pool", "DEL")), stage.left())


def test_status_asks_for_no_device(stage):
    """A network of the cluster that is served by a device plugin: which function is free is not known before a pod."""
    sriov = {"cniVersion": "1.1.0", "name": "fast", "type": "sriov"}
    stage.run("STATUS", delegates=[{"cniVersion": "1.1.0", "name": "cluster", "type": "first"}, sriov])
