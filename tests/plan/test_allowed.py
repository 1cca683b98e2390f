# SPDX-License-Identifier: Apache-2.0
"""The allow-list for shared clusters: what networks of tenants may use of the node, and who is not a tenant."""

import base64
import json

import pytest
from running import Running
from stage import Stage, namespace

from multus_py.cni.errors import CniError
from multus_py.config import daemon as daemon_config
from multus_py.config import plugin as configs
from multus_py.kube.store import PodRef
from multus_py.plan import decide

DEFAULT = {"cniVersion": "0.4.0", "name": "cluster", "type": "ptp", "ipam": {"type": "dhcp"}}
PLUGINS = {"allowedPlugins": ["macvlan", "tuning", "host-local"]}


@pytest.fixture
def stage(tmp_path):
    """A node whose own default network is on no list."""
    return Stage(tmp_path, settings={"delegates": [DEFAULT]})


def refusal(stage, config, settings, networks="n", namespace="tenant", **annotations):
    """Return the error of a plan of a pod in *namespace*, "" when it is made."""
    stage.definition("n", config, "tenant")
    stage.definition("n", config, "default")
    stage.pod("p", networks, namespace, **annotations)
    node = stage.node(**settings)
    pod = node.store.pod(PodRef(namespace, "p"))
    try:
        decide.sandbox_attachments(stage.call("ADD", f"{namespace}/p"), node.config, pod, node.store)
    except CniError as error:
        assert 7 == error.code
        return str(error)
    return ""


FOREIGN = [
    ({"type": "host-device"}, "host-device"),
    ({"type": "macvlan", "ipam": {"type": "dhcp"}}, "dhcp"),
    ({"type": "macvlan", "IPAM": {"Type": "dhcp"}}, "dhcp"),
    ({"type": "macvlan", "\u0131pam": {}, "ipam": {"type": "host-local"}}, ""),
    ({"type": "macvlan", "ipam": {"type": ["dhcp"]}}, "dhcp"),
    ({"type": "macvlan", "delegate": {"type": "bridge"}}, "bridge"),
    ({"type": "tuning", "delegates": [{"plugins": [{"type": "macvlan", "ipam": {"type": "static"}}]}]}, "static"),
    ({"plugins": [{"type": "macvlan"}, {"type": "sbr"}]}, "sbr"),
    ({"plugins": [{"type": "macvlan", "ipam": {"type": "host-local"}}, {"type": "tuning"}]}, ""),
    ({"type": "macvlan", "ipam": {}}, ""),
]


@pytest.mark.parametrize(("config", "found"), FOREIGN)
def test_a_plugin_that_is_not_listed_is_refused(stage, config, found):
    """Also as IPAM and in a plugin that runs others, in any case of the keys; the error says what to change."""
    told = refusal(stage, config, PLUGINS)
    assert bool(found) == bool(told)
    assert all(word in told for word in (found, "definition tenant/n", "allowedPlugins", "host-local") if found)
    assert "" == refusal(stage, config, {})


def test_an_empty_list_allows_nothing(stage):
    """It is a list all the same: absent is off, empty is none."""
    assert "has none" in refusal(stage, {"type": "macvlan"}, {"allowedPlugins": []})
    assert "has none" in refusal(stage, {"type": "macvlan", "x": "/y"}, {"allowedFolders": []})
    assert "" == refusal(stage, {"type": "macvlan"}, {"allowedFolders": []})


@pytest.mark.parametrize(
    ("more", "fine"),
    [
        ({"ipam": {"type": "host-local", "dataDir": "{ok}/ipam"}}, True),
        ({"ipam": {"type": "host-local", "dataDir": "{ok}"}}, True),
        ({"ipam": {"type": "host-local", "dataDir": "{ok}/a/../b"}}, True),
        ({"ipam": {"type": "host-local", "dataDir": "{ok}-not"}}, False),
        ({"ipam": {"type": "host-local", "dataDir": "/"}}, False),
        ({"ipam": {"type": "host-local", "dataDir": "{ok}/../etc"}}, False),
        ({"ipam": {"type": "host-local", "dataDir": "{ok}/link/x"}}, False),
        ({"ipam": {"type": "host-local", "dataDir": "{ok}/link/../ok"}}, False),
        ({"ipam": {"type": "host-local", "DATADIR": "networks"}}, False),
        ({"ipam": {"type": "host-local", "resolvConf": "/etc/resolv.conf"}}, False),
        ({"kernelpath": "/sys/devices/x"}, False),
        ({"device": "/dev/x"}, False), ({"device": "ens1f0"}, True), ({"master": "eth0.100"}, True),
        ({"pciBusID": "../../x"}, False), ({"pciBusID": "0000:01:10.0"}, True),
        ({"runtimeConfig": {"CNIDeviceInfoFile": "/etc/x"}}, False),
        ({"sysctl": {"net.core.somaxconn": "1"}}, True), ({"sysctl": {"/etc/x": "1"}}, False),
        ({"deep": [{"er": ["x", {"y": "/etc"}]}]}, False),
        ({"socket": "unix:///etc/x"}, False), ({"socket": "unix:/etc/x"}, False), ({"file": "FILE:////etc"}, False),
        ({"socket": "unix://{ok}/s"}, True), ({"url": "https://example.org/etc"}, True),
        ({"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}, {"subnet": "fd00::/64"}]]}}, True),
        ({"mac": "02:00:00:00:00:01", "note": "a/b", "resource": "intel.com/vf"}, True),
    ],
)  # fmt: skip
def test_a_path_that_is_not_in_a_listed_folder_is_refused(stage, tmp_path, more, fine):
    """Under whatever key, at any depth; `..`, links and relative paths count for where they lead."""
    ok = tmp_path / "ok"
    ok.mkdir()
    (ok / "link").symlink_to("/etc")
    config = json.loads(json.dumps({"type": "macvlan", **more}).replace("{ok}", str(ok)))
    told = refusal(stage, config, {"allowedFolders": [str(ok)]})
    assert fine == (not told), told
    assert fine or all(word in told for word in ("definition tenant/n", "allowedFolders", str(ok)))
    assert "" == refusal(stage, config, {})


def test_folders_are_compared_as_the_node_sees_them(stage, tmp_path):
    """A daemon in a container resolves links from the node's root, where it is mounted."""
    (tmp_path / "hostroot" / "var").mkdir(parents=True)
    (tmp_path / "hostroot" / "var" / "link").symlink_to("/etc")
    (tmp_path / "hostroot" / "var" / "same").symlink_to("/var/real")
    settings = {"cniVersion": "1.0.0", "name": "n", "allowedFolders": ["/var"]}
    config = configs.parse(settings, str(tmp_path / "hostroot"))
    from multus_py.plan import allowed

    allowed.refuse_foreign_paths({"dataDir": "/var/same/x"}, "x", config)
    for path in ("/var/link/x", "/var/../etc", "/etc"):
        with pytest.raises(CniError):
            allowed.refuse_foreign_paths({"dataDir": path}, "x", config)


ETC = {"type": "macvlan", "ipam": {"type": "x", "dataDir": "/etc"}}
BOTH = {"allowedPlugins": ["macvlan"], "allowedFolders": ["/var"]}


def test_the_platforms_own_networks_are_not_held_to_it(stage):
    """What our config names and what is in globalNamespaces is the platform's; nothing else is, not even its pods'."""
    assert refusal(stage, ETC, BOTH)
    assert "" == refusal(stage, ETC, {**BOTH, "globalNamespaces": "tenant"})
    assert "" == refusal(stage, ETC, BOTH, "default/n")
    assert refusal(stage, ETC, BOTH, "tenant/n", "default")
    stage.definition("own", ETC, "kube-system")
    assert "" == refusal(stage, ETC, {**BOTH, "clusterNetwork": "own", "defaultNetworks": ["own"]}, "")
    assert refusal(stage, ETC, BOTH, "", **{"v1.multus-cni.io/default-network": "own"})


def test_a_pod_sets_nothing_that_its_definition_may_not(stage):
    """cni-args are merged first; on a network of the platform they are still the pod's words."""
    plain = {"type": "macvlan"}
    asked = [{"name": "n", "namespace": "tenant", "cni-args": {"dataDir": "/etc"}}]
    assert "allowedFolders" in refusal(stage, plain, BOTH, asked)
    asked[0]["namespace"] = "default"
    assert "cni-args: dataDir: the path '/etc'" in refusal(stage, plain, BOTH, asked)
    assert "" == refusal(stage, plain, BOTH, asked, "default")
    asked[0]["cni-args"] = {"dataDir": "/var/x", "ips": ["10.0.0.1/24"]}
    assert "" == refusal(stage, plain, BOTH, asked)


def test_a_definition_that_stands_in_conf_dir_is_held_to_it(stage, tmp_path):
    """Whoever writes a definition without a config chooses which file of the node is used."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "n.conf").write_text(json.dumps({"cniVersion": "1.0.0", "name": "n", **ETC}))
    assert refusal(stage, "", BOTH)
    assert "" == refusal(stage, "", {})


@pytest.mark.parametrize("value", [{"allowedPlugins": "macvlan"}, {"allowedFolders": ["var"]}, {"allowedFolders": [7]}])
def test_a_list_that_cannot_be_meant_is_refused(value):
    """A wrong value must not read as no list."""
    with pytest.raises(CniError, match=next(iter(value))):
        configs.parse({"cniVersion": "1.0.0", **value})


def test_the_daemons_file_says_it_for_all_requests(tmp_path):
    """Its list goes over what a request says."""
    found = daemon_config.parse(BOTH)
    assert () == found.unknown
    assert BOTH == {key: found.effective({"allowedPlugins": ["x"]})[key] for key in BOTH}


def test_a_pod_is_refused_by_the_daemon_before_anything_is_touched(tmp_path):
    """Over the socket: code 7, the key to change, nothing is left; `/delegate` is root's word and not held to it."""
    with namespace() as host, namespace() as pod:
        stage = Stage(tmp_path, pod, {"delegates": [{"cniVersion": "1.0.0", "name": "cluster", "type": "first"}]})
        stage.plugins.plugin("first")
        stage.plugins.plugin("second")
        stage.definition("n", {"cniVersion": "1.0.0", "type": "second"}, "tenant")
        stage.pod("p", "n", "tenant")
        stage.pod("q", "", "tenant")
        running = Running(stage, host, {"allowedPlugins": ["macvlan"]})
        try:
            running.start()
            code, told = running.call("ADD", "tenant/p")
            assert (1, 7, True) == (code, told["code"], "allowedPlugins" in told["details"]), told
            assert [] == [name for name in stage.left() if name != "events.jsonl"]
            assert 0 == running.call("ADD", "tenant/q")[0]
            config = json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "second"}).encode()
            env = {**stage.call("ADD", "tenant/q").environment(), "CNI_IFNAME": "more"}
            asked = {"env": env, "config": base64.b64encode(config).decode()}
            assert 200 == running.request("POST", "/delegate", asked)[0]
        finally:
            running.stop(9)
