# SPDX-License-Identifier: Apache-2.0
"""The plan: everything that can be refused is refused here, and what is left says all that the plugins will be told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from stage import Stage

from multus_py.agent.reconciling import hotplug
from multus_py.cni.errors import CniError
from multus_py.kube.store import PodRef
from multus_py.plan import decide
from multus_py.plan.networks import NoNetwork

BRIDGE = {"cniVersion": "1.0.0", "type": "bridge"}
DEFAULT = {"cniVersion": "0.4.0", "name": "cluster", "type": "ptp"}


@pytest.fixture
def stage(tmp_path):
    """A node with one inline default network and two definitions."""
    stage = Stage(tmp_path, settings={"delegates": [DEFAULT]})
    stage.definition("a", BRIDGE)
    stage.definition("b", {"cniVersion": "1.0.0", "name": "bees", "plugins": [{"type": "macvlan"}, {"type": "tuning"}]})
    return stage


def planned(stage, networks="", namespace="default", settings=None, **annotations):
    """Return the attachments of a pod that asks for *networks*."""
    stage.pod("p", networks, namespace, **annotations)
    node = stage.node(**(settings or {}))
    pod = node.store.pod(PodRef(namespace, "p"))
    return decide.sandbox_attachments(stage.call("ADD", f"{namespace}/p"), node.config, pod, node.store)


def refusal(stage, *args, **more):
    """Return the error of a plan that is refused."""
    with pytest.raises(CniError) as caught:
        planned(stage, *args, **more)
    return caught.value


def test_names_count_from_the_default_network(stage):
    """net<N> is the place in the whole list, explicit names do not shift it."""
    found = planned(stage, "a,b@data,a")
    assert [("eth0", True), ("net1", False), ("data", False), ("net3", False)] == [(a.ifname, a.primary) for a in found]
    assert ["cluster", "default/a", "default/b", "default/a"] == [a.name for a in found]
    assert ["cluster", "a", "bees", "a"] == [a.conflist.name for a in found]


@pytest.mark.parametrize("networks", ["a@eth0", "a@x,b@x", "a@net2,b"])
def test_interface_clashes_are_refused(stage, networks):
    """Two networks cannot have one interface, whether named or numbered."""
    assert 7 == refusal(stage, networks).code


def test_rival_default_routes_are_refused_per_family(stage):
    """One claimer for IPv4 and another for IPv6 is fine, two of one family are not; one may name several gateways."""
    v4, v6 = {"name": "a", "default-route": ["10.0.0.1"]}, {"name": "b", "default-route": ["fd00::1"]}
    assert 3 == len(planned(stage, [v4, v6]))
    assert "default-route" in refusal(stage, [v4, {**v6, "default-route": ["10.0.0.2"]}]).msg
    for several in (["fd00::1", "fd00::2"], ["10.0.0.1", "10.0.0.2", "fd00::1"]):
        assert several == [str(one) for one in planned(stage, [{**v4, "default-route": several}])[1].default_route]


ISOLATED = {"namespaceIsolation": True}


@pytest.mark.parametrize(
    ("networks", "default", "settings", "allowed"),
    [
        ("other/a", "", {}, True), ("other/a", "", ISOLATED, False), ("a", "", ISOLATED, True),
        ('[{"name":"a","namespace":"other"}]', "", ISOLATED, False),
        ("default/a", "", ISOLATED, True), ("default/a", "", {**ISOLATED, "globalNamespaces": "x,y"}, False),
        ("other/a", "", {**ISOLATED, "globalNamespaces": "x, other"}, True),
        ("", "other/a", ISOLATED, False), ("", "other/a", {}, True), ("", "a", ISOLATED, False),
        ("", "a", {**ISOLATED, "globalNamespaces": "kube-system"}, True),
        ("", '[{"name":"a","namespace":"other"}]', ISOLATED, False),
    ],
)  # fmt: skip
def test_isolation_holds_on_every_path(stage, networks, default, settings, allowed):
    """Both annotations, both forms: a definition of another namespace is refused unless that namespace is global."""
    for namespace in ("other", "tenant", "kube-system"):
        stage.definition("a", BRIDGE, namespace)
    annotations = {"v1.multus-cni.io/default-network": default} if default else {}
    if allowed:
        assert planned(stage, networks, "tenant", settings, **annotations)
    else:
        error = refusal(stage, networks, "tenant", settings, **annotations)
        assert (7, True) == (error.code, "isolation" in error.msg)


def test_what_is_asked_becomes_arguments_and_capabilities(stage):
    """MAC and IP travel in CNI_ARGS, everything in capabilities; each key of CNI_ARGS stands once."""
    element = {
        "name": "a", "ips": ["10.0.0.5/24"], "mac": "02:00:00:00:00:01",
        "portMappings": [{"hostPort": 1, "containerPort": 2}], "bandwidth": {"ingressRate": 1},
        "infiniband-guid": "11:22:33:44:55:66:77:88", "deviceID": "0000:01:00.1", "cni-args": {"k": "v"},
    }  # fmt: skip
    stage.definition(
        "a", {**BRIDGE, "capabilities": {"ips": True, "portMappings": True, "bandwidth": True, "infinibandGUID": True}}
    )
    found = planned(stage, [element])[1]
    assert [
        "IgnoreUnknown",
        "K8S_POD_NAMESPACE",
        "K8S_POD_NAME",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_UID",
        "MAC",
        "IP",
    ] == [key for key, _ in found.args]
    assert {
        "ips": ["10.0.0.5/24"], "mac": "02:00:00:00:00:01", "portMappings": [{"hostPort": 1, "containerPort": 2}],
        "bandwidth": {"ingressRate": 1}, "infinibandGUID": "11:22:33:44:55:66:77:88", "deviceID": "0000:01:00.1",
    } == found.capabilities  # fmt: skip
    assert {"cni": {"k": "v"}} == found.conflist.plugins[0]["args"]


def test_several_addresses_go_by_the_capability_alone(stage):
    """host-local takes no list in CNI_ARGS: with the capability declared the list goes there only."""
    stage.definition("c", {**BRIDGE, "capabilities": {"ips": True}})
    one, two = {"name": "c", "ips": ["10.0.0.5/24"]}, {"name": "c", "ips": ["10.0.0.5/24", "fd00::5/64"]}
    assert [True, False] == ["IP" in dict(item.args) for item in planned(stage, [one, two])[1:]]


def test_the_runtimes_own_values_concern_its_own_interface(stage):
    """What the runtime asks of eth0 is not done to net1, which may ask for its own; name servers are the pod's."""
    stage.definition("shaped", {**BRIDGE, "capabilities": {"bandwidth": True, "portMappings": True}})
    runtime = {
        "mac": "02:00:00:00:00:09", "dns": {"x": 1}, "bandwidth": {"ingressRate": 1}, "ipRanges": [[]],
        "portMappings": [{"hostPort": 1, "containerPort": 2}],
    }  # fmt: skip
    own = {"name": "shaped", "bandwidth": {"ingressRate": 7}}
    found = planned(stage, [{"name": "shaped"}, own], settings={"runtimeConfig": runtime})
    assert [set(runtime), {"dns"}, {"dns", "bandwidth"}] == [set(item.capabilities) for item in found]
    assert {"ingressRate": 7} == found[2].capabilities["bandwidth"]


STATIC = {"ipam": {"type": "static"}}
IPS, MAC = {"ips": ["10.0.0.5/24"]}, {"mac": "02:00:00:00:00:01"}
PORTS, RATE = {"portMappings": [{"hostPort": 1, "containerPort": 2}]}, {"bandwidth": {"ingressRate": 1}}
GUID = {"infiniband-guid": "11:22:33:44:55:66:77:88"}


@pytest.mark.parametrize(
    ("chain", "asked", "advice"),
    [
        ([{"type": "bridge"}], IPS, "give a plugin an 'ipam' that takes them (host-local, static), and write {}"),
        ([{"type": "bridge", "ipam": {}}], IPS, "give a plugin an 'ipam'"),
        ([{"type": "macvlan", "ipam": {"type": "dhcp"}}], IPS, "give a plugin an 'ipam'"),
        ([{"type": "bridge", "ipam": {"type": "host-local"}}], {"ips": ["10.0.0.5", "fd00::5"]},
         "write {} into the plugin bridge"),
        ([{"type": "ipvlan", **STATIC}], MAC, 'add a plugin that takes it, such as {{"type": "tuning", {}}}'),
        ([{"type": "ptp", "capabilities": {"ips": True, "mac": False}}], MAC, "add a plugin"),
        ([{"type": "vlan", "ipam": {"type": "vendor-ipam"}}], MAC, "add a plugin"),
        ([{"type": "bridge"}], PORTS, 'such as {{"type": "portmap", {}}}'),
        ([{"type": "bridge"}, {"type": "portmap"}], PORTS, "write {} into the plugin portmap"),
        ([{"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": True}}], RATE, '"bandwidth", {}'),
        ([{"type": "vendor"}], RATE, "write {} into the plugin vendor, if it takes it"),
        ([{"type": "ib-sriov"}], GUID, "write {} into the plugin ib-sriov"),
        ([{"type": "vendor"}], GUID, "write {} into the plugin vendor, if it takes it"),
    ],
)  # fmt: skip
def test_what_is_asked_and_no_plugin_would_be_told_is_refused(stage, chain, asked, advice):
    """The error names the network, the key, and what to write into which plugin; DEL is not held up by it."""
    stage.definition("c", {"cniVersion": "1.0.0", "plugins": chain})
    element = {"name": "c", **asked}
    (key,) = asked
    capability = {"infiniband-guid": "infinibandGUID"}.get(key, key)
    error = refusal(stage, [element])
    assert 7 == error.code
    assert f"network default/c as net1: {key!r} is asked for" in error.msg
    assert advice.format(f'"capabilities": {{"{capability}": true}}') in error.details
    node = stage.node()
    pod = node.store.pod(PodRef("default", "p"))
    assert 2 == len(decide.sandbox_attachments(stage.call("DEL", "default/p"), node.config, pod, node.store))


@pytest.mark.parametrize(
    ("chain", "asked"),
    [
        ([{"type": "bridge", **STATIC}], IPS), ([{"type": "macvlan", "ipam": {"type": "host-local"}}], IPS),
        ([{"type": "ipvlan", "ipam": {"type": "whereabouts"}}], IPS),
        ([{"type": "bridge", **STATIC}], {"ips": ["::5/64", "10.0.0.5/24"]}),
        ([{"type": "sriov", "ipam": {"type": "vendor-ipam"}}], IPS),
        ([{"type": "ovn-k8s-cni-overlay"}], {**IPS, **MAC}),
        ([{"type": "macvlan"}], MAC), ([{"type": "bridge"}], MAC), ([{"type": "ipvlan"}, {"type": "tuning"}], MAC),
        ([{"type": "sriov"}], MAC), ([{"type": "ovs"}], MAC), ([{"type": "tap"}], MAC),
        ([{"type": "ipvlan", "capabilities": {"mac": True}}], MAC),
        ([{"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": True}}], PORTS),
        ([{"type": "bridge"}], {"ips": [], "portMappings": [], "bandwidth": {}, "mac": ""}),
    ],
)  # fmt: skip
def test_what_a_plugin_reads_without_declaring_it_goes_through(stage, chain, asked):
    """MAC and IP of CNI_ARGS are read by many plugins, and may be by those that we do not know."""
    stage.definition("c", {"cniVersion": "1.0.0", "plugins": chain})
    assert 2 == len(planned(stage, [{"name": "c", **asked}]))


def test_a_delegate_request_is_held_to_the_same(stage):
    """`/delegate` refuses what its config's plugin would not be told, and detaches what came to be before."""
    stage.pod("p")
    node, config = stage.node(), {"cniVersion": "1.0.0", "name": "d", "type": "ipvlan"}
    add, gone = (replace(stage.call(verb, "p"), config=config, ifname="net1") for verb in ("ADD", "DEL"))
    with pytest.raises(CniError, match="'mac' is asked for"):
        hotplug.requested_attachment(add, MAC, node, None)
    assert "net1" == hotplug.requested_attachment(gone, MAC, node, None).ifname


def test_the_default_network_annotation_replaces_the_primary(stage):
    """It is sought in multusNamespace, keeps the runtime's interface name unless it asks for another."""
    stage.definition("fast", BRIDGE, "kube-system")
    found = planned(stage, "a", **{"v1.multus-cni.io/default-network": "fast"})
    assert [("kube-system/fast", "eth0"), ("default/a", "net1")] == [(item.name, item.ifname) for item in found]
    renamed = planned(stage, "", **{"v1.multus-cni.io/default-network": "fast@data"})
    assert "data" == renamed[0].ifname


@pytest.mark.parametrize("path", ["definition", "name", "directory", "file", "conflist"])
def test_the_cluster_network_is_found_by(stage, tmp_path, path):
    """A definition in multusNamespace, a name in confDir, a folder, a file, a list with its own subfolder."""
    conf, other = tmp_path / "conf", tmp_path / "other"
    conf.mkdir()
    other.mkdir()
    (conf / "00-broken.conf").write_text("{")
    (conf / "10-x.conf").write_text(json.dumps({"name": "byname", "type": "ptp"}))
    (other / "00-multus.conflist").write_text(json.dumps({"name": "us", "plugins": [{"type": "multus-py"}]}))
    (other / "05-list.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "list", "plugins": [{"type": "ptp"}]})
    )
    (other / "list").mkdir()
    (other / "list" / "20-more.conf").write_text(json.dumps({"type": "tuning"}))
    stage.definition("nad", BRIDGE, "kube-system")
    value, name, types = {
        "definition": ("nad", "kube-system/nad", ("bridge",)),
        "name": ("byname", "byname", ("ptp",)),
        "directory": (str(other), "list", ("ptp", "tuning")),
        "file": (str(conf / "10-x.conf"), "byname", ("ptp",)),
        "conflist": (str(other / "05-list.conflist"), "list", ("ptp", "tuning")),
    }[path]
    found = planned(stage, settings={"clusterNetwork": value})
    assert [(name, types)] == [(item.name, item.conflist.types) for item in found]


def test_default_networks_are_for_all_but_system_pods(stage):
    """They follow the primary; pods in systemNamespaces do without."""
    stage.definition("nad", BRIDGE, "kube-system")
    settings = {"clusterNetwork": "nad", "defaultNetworks": ["nad", "nad"]}
    assert ["eth0", "net1", "net2"] == [item.ifname for item in planned(stage, settings=settings)]
    assert ["eth0"] == [item.ifname for item in planned(stage, namespace="kube-system", settings=settings)]


DECLINES = {"multus-py/default-networks": "none"}


def test_a_pod_may_decline_the_default_networks(stage):
    """It keeps the primary and what it asks for itself; where the platform requires them it is refused, and told."""
    stage.definition("nad", BRIDGE, "kube-system")
    settings = {"clusterNetwork": "nad", "defaultNetworks": ["nad", "nad"]}
    assert ["eth0", "net1"] == [item.ifname for item in planned(stage, "a", settings=settings, **DECLINES)]
    several = {"delegates": [DEFAULT, {**BRIDGE, "name": "second"}]}
    assert ["eth0", "net1"] == [item.ifname for item in planned(stage, settings=several)]
    assert ["eth0"] == [item.ifname for item in planned(stage, settings=several, **DECLINES)]
    error = refusal(stage, settings={**settings, "requireDefaultNetworks": True}, **DECLINES)
    assert (7, True) == (error.code, "may not decline" in error.msg)
    wrong = refusal(stage, settings=settings, **{"multus-py/default-networks": "no"})
    assert (7, True) == (wrong.code, 'write "none"' in wrong.details)


@pytest.mark.parametrize("other", [".conf", ".json"])
def test_a_list_goes_before_a_file_of_the_same_name(stage, tmp_path, other):
    """By the network's name in confDir wherever they sort, and by the file's name in a folder."""
    conf, folder = tmp_path / "conf", tmp_path / "folder"
    listed = json.dumps({"cniVersion": "1.0.0", "name": "empty", "plugins": [{"type": "macvlan"}]})
    for place, first in ((conf, "00"), (folder, "10")):
        place.mkdir()
        (place / f"{first}{other}").write_text(json.dumps({"name": "empty", "type": "vlan"}))
        (place / "10.conflist").write_text(listed)
    stage.definition("empty", "")
    assert ("macvlan",) == planned(stage, "empty")[1].conflist.types
    assert ("macvlan",) == planned(stage, settings={"clusterNetwork": str(folder)})[0].conflist.types
    assert ("macvlan",) == planned(stage, settings={"clusterNetwork": "empty"})[0].conflist.types


@pytest.mark.parametrize("said", [{}, {"plugins": []}, {"loadOnlyInlinedPlugins": False}])
def test_a_list_may_have_all_its_plugins_in_a_folder(stage, tmp_path, said):
    """CNI 1.1: `<folder of the file>/<name>/*.conf`; without them, or when it says not to, the list is refused."""
    conf = tmp_path / "conf"
    (conf / "split").mkdir(parents=True)
    path = conf / "10.conflist"
    path.write_text(json.dumps({"cniVersion": "1.1.0", "name": "split", **said}))
    (conf / "split" / "20.conf").write_text(json.dumps({"type": "tuning"}))
    (conf / "split" / "10.conf").write_text(json.dumps({"type": "macvlan"}))
    stage.definition("split", "")
    for settings, networks, n in (({"clusterNetwork": str(path)}, "", 0), ({"clusterNetwork": str(conf)}, "", 0),
                                  ({"clusterNetwork": "split"}, "", 0), ({}, "split", 1)):  # fmt: skip
        assert ("macvlan", "tuning") == planned(stage, networks, settings=settings)[n].conflist.types
    path.write_text(json.dumps({"cniVersion": "1.1.0", "name": "split", "loadOnlyInlinedPlugins": True}))
    assert "has no plugins" in refusal(stage, settings={"clusterNetwork": str(path)}).msg
    path.write_text(json.dumps({"cniVersion": "1.1.0", "name": "alone", **said}))
    assert "has no plugins" in refusal(stage, settings={"clusterNetwork": str(path)}).msg


def test_an_empty_definition_is_read_from_conf_dir(stage, tmp_path):
    """By its name, past a broken file; nowhere else."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "00.conf").write_text("]")
    (tmp_path / "conf" / "10.conf").write_text(json.dumps({"name": "empty", "type": "vlan"}))
    stage.definition("empty", "")
    stage.definition("lost", "")
    assert ("vlan",) == planned(stage, "empty")[1].conflist.types
    assert isinstance(refusal(stage, "lost"), NoNetwork)


@pytest.mark.parametrize(
    "config",
    ["{", "[]", "{}", '{"type": "../evil"}', '{"type": "/bin/sh"}', '{"type": 7}', '{"plugins": [null]}',
     '{"plugins": 1}', '{"plugins": []}', '{"name": "a", "cniVersion": "1.1.0"}',
     '{"type": "bridge", "name": "a/b"}', '{"type": "bridge", "cniVersion": "7"}', '{"type": "multus-py"}',
     '{"plugins": [{"type": "bridge"}, {"type": "multus"}]}', '{"plugins": [{"type": "multus-shim"}]}',
     '{"type": "bridge", "disableCheck": 7, "plugins": []}'],
)  # fmt: skip
def test_a_bad_definition_is_refused(stage, config):
    """Broken JSON, paths as types, a chain that comes back to us: named and refused before anything is touched."""
    stage.definition("bad", config)
    error = refusal(stage, "bad")
    assert (True, True) == (error.code in (1, 7), "default/bad" in error.msg)


def test_a_missing_definition_is_named(stage):
    """The message is the one that people know from Events."""
    assert "cannot find a network-attachment-definition (gone) in namespace (ns)" in refusal(stage, "ns/gone").msg


def test_the_auxiliary_chain_is_the_last_network(stage, tmp_path):
    """Plugins in <folder of clusterNetwork>/<name>/ are one more attachment behind all others; none, none."""
    (tmp_path / "net.conf").write_text(json.dumps({"name": "n", "type": "ptp"}))
    settings = {"clusterNetwork": str(tmp_path / "net.conf"), "auxiliaryCNIChainName": "aux"}
    assert 1 == len(planned(stage, settings=settings))
    (tmp_path / "aux").mkdir()
    (tmp_path / "aux" / "a.conf").write_text(json.dumps({"type": "tuning"}))
    last = planned(stage, "a", settings=settings)[-1]
    assert ("aux", "net2", ("passthru", "tuning")) == (last.name, last.ifname, last.conflist.types)


def test_a_delegate_without_version_gets_ours_and_others_keep_their_own(stage):
    """Each delegate is spoken to in its own cniVersion."""
    stage.definition("old", {"cniVersion": "0.3.1", "type": "bridge"})
    stage.definition("none", {"type": "bridge"})
    assert ["0.4.0", "0.3.1", "1.1.0"] == [item.conflist.version for item in planned(stage, "old,none")]


def test_no_default_network_is_said(tmp_path):
    """Neither clusterNetwork nor delegates: the config says nothing to do."""
    stage = Stage(tmp_path)
    assert "no default network" in refusal(stage).msg


def test_files_that_are_away_are_tried_again(stage):
    """A cluster network's file that is being rewritten is code 11, not a verdict."""
    assert 11 == refusal(stage, settings={"clusterNetwork": str(Path("/nonexistent/x.conflist"))}).code
