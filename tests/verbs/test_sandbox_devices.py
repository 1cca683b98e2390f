# SPDX-License-Identifier: Apache-2.0
"""Devices from kubelet to the plugin: ADD and DEL in a namespace, kubelet on a real socket, scripted plugins."""

import json
import subprocess
import sys

import pytest
from lister import listening, pod
from stage import Stage, namespace

from multus_py.cni.errors import CniError
from multus_py.kube.store import Device, PodRef

VF = "intel.com/vf"
RESOURCE = {"k8s.v1.cni.cncf.io/resourceName": VF}
A, B, C = "0000:01:00.1", "0000:01:00.2", "0000:01:00.3"
INFO = {"type": "pci", "version": "1.1.0", "pci": {"pci-address": A, "representor-device": "eth9"}}
STATUS = "k8s.v1.cni.cncf.io/network-status"


@pytest.fixture
def kubelet():
    """A kubelet that gave three devices to the pod."""
    held = {"app": {VF: [C, A]}, "side": {VF: [B]}}
    with listening(Get=pod("p", held), List=pod("p", held)) as lister:
        yield lister


@pytest.fixture
def stage(tmp_path, kubelet):
    """A node with a default network without devices, and two networks that name the same resource."""
    with namespace() as netns:
        capabilities = {"deviceID": True, "CNIDeviceInfoFile": True}
        settings = {
            "delegates": [{"cniVersion": "1.0.0", "name": "cluster", "type": "first"}], "apiDeadline": 2,
            "podResourcesSocket": str(kubelet.socket), "deviceInfoDir": str(tmp_path / "devinfo"),
        }  # fmt: skip
        stage = Stage(tmp_path, netns, settings)
        for plugin in ("first", "one", "two"):
            stage.plugins.plugin(plugin)
        chain = [{"type": "one", "capabilities": capabilities}, {"type": "two"}]
        stage.definition("list", {"cniVersion": "1.1.0", "name": "listed", "plugins": chain}, **RESOURCE)
        stage.definition("single", {"cniVersion": "1.0.0", "type": "two", "capabilities": capabilities}, **RESOURCE)
        yield stage


def configs(stage: Stage, plugin: str, verb: str) -> list[dict[str, object]]:
    """Return the configs that a plugin got for a verb."""
    return [call["config"] for call in stage.plugins.calls(plugin, verb)]


def given(stage: Stage, verb: str = "ADD") -> list[tuple[object, object]]:
    """Return deviceID and pciBusID of every plugin's call for a network with a device."""
    found = configs(stage, "one", verb) + configs(stage, "two", verb)
    return [(config.get("deviceID"), config.get("pciBusID")) for config in found]


def statuses(stage: Stage) -> list[dict[str, object]]:
    """Return the pod's network-status."""
    return json.loads(stage.node().store.pod(PodRef("default", "p")).annotations[STATUS])


def tell(stage: Stage, body: object, device: str = A) -> None:
    """Write what the device plugin tells of a device."""
    folder = stage.folder / "devinfo/dp"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"intel.com-vf-{device}-device.json").write_text(json.dumps(body))


def left(stage: Stage) -> list[str]:
    """Return what is left of any sandbox, device information included."""
    folder = stage.folder / "devinfo/cni"
    kept = [name for name in stage.left() if name != "events.jsonl"]
    return kept + [path.name for path in folder.iterdir()] if folder.exists() else kept


def test_every_plugin_of_a_network_gets_its_device_and_del_gets_the_same(stage, kubelet):
    """Both keys in every member, the capability where it is declared; DEL says the same when kubelet is gone."""
    stage.pod("p", "list,single")
    stage.run("ADD", "p")
    assert [(A, A), (A, A), (B, B)] == given(stage)
    one, (tail, single) = configs(stage, "one", "ADD")[0], configs(stage, "two", "ADD")
    file = str(stage.folder / "devinfo/cni/default-list-c1_net1")
    assert {"deviceID": A, "CNIDeviceInfoFile": file} == one["runtimeConfig"]
    assert (None, B) == (tail.get("runtimeConfig"), single["runtimeConfig"]["deviceID"])
    assert "deviceID" not in configs(stage, "first", "ADD")[0]
    with stage.node().journal.lock_sandbox("c1", "eth0", wait=False) as page:
        held = [attachment.device for attachment in page.entry.attachments]
    assert [None, Device(VF, A, ("app",)), Device(VF, B, ("side",))] == held
    kubelet.stop()
    asked = len(kubelet.asked)
    stage.run("DEL", "p")
    assert sorted(given(stage)) == sorted(given(stage, "DEL"))
    assert one["runtimeConfig"] == configs(stage, "one", "DEL")[0]["runtimeConfig"]
    assert (asked, []) == (len(kubelet.asked), left(stage))


def test_the_default_network_and_a_further_one_share_a_resource(stage):
    """The network that the pod puts in the default's place takes its turn first."""
    default = {"v1.multus-cni.io/default-network": '[{"name":"single","namespace":"default"}]'}
    stage.pod("p", "list", **default)
    stage.run("ADD", "p")
    assert A == configs(stage, "two", "ADD")[0]["deviceID"]
    assert [B] == [config["deviceID"] for config in configs(stage, "one", "ADD")]


def test_a_pod_says_which_device_goes_where(stage):
    """By container, by id, by a resource that the definition does not name."""
    stage.definition("open", {"cniVersion": "1.0.0", "type": "one"})
    stage.pod("p", [{"name": "list", "container": "side"}, {"name": "single", "deviceID": C},
                    {"name": "open", "resourceName": VF}])  # fmt: skip
    stage.run("ADD", "p")
    assert [B, A] == [config["deviceID"] for config in configs(stage, "one", "ADD")]
    assert [B, C] == [config["deviceID"] for config in configs(stage, "two", "ADD")]


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ("list,single,list@x,single@y", "4 wanted"),
        ([{"name": "single", "deviceID": "0000:09:00.0"}], "wants device 0000:09:00.0"),
        ([{"name": "single", "deviceID": A}, {"name": "list", "deviceID": A}], "two networks ask for device"),
        ([{"name": "single", "container": "init"}], "of container init"),
        ([{"name": "single", "claim": "gpu"}], "of claim gpu"),
        ([{"name": "single", "resourceName": "intel.com/other"}], "a device of intel.com/other"),
        ([{"name": "bare", "container": "app"}], "of no resource"),
    ],
)
def test_what_cannot_be_given_is_refused_before_anything_is_touched(stage, networks, words):
    """Code 7, and no plugin was called."""
    stage.definition("bare", {"cniVersion": "1.0.0", "type": "one"})
    stage.pod("p", networks)
    with pytest.raises(CniError, match=words) as caught:
        stage.run("ADD", "p")
    assert 7 == caught.value.code
    assert ([], []) == (stage.plugins.calls("first"), left(stage))


def test_two_networks_of_one_definition_are_told_apart(stage):
    """By their interfaces, in what is wanted and in what clashes."""
    stage.pod("p", "single,single@x,single,single")
    with pytest.raises(
        CniError, match=r"4 wanted \(default/single as net1, default/single as x, default/single as net3"
    ):
        stage.run("ADD", "p")
    stage.pod("p", [{"name": "single", "deviceID": A}, {"name": "single", "deviceID": A, "interface": "x"}])
    with pytest.raises(CniError, match=r"default/single as net1 and default/single as x"):
        stage.run("ADD", "p")
    stage.pod("p", [{"name": "list", "default-route": ["10.0.0.1"]}, {"name": "list", "default-route": ["10.0.0.2"]}])
    with pytest.raises(CniError, match=r"network default/list as net1 \(10\.0\.0\.1\), network default/list as net2"):
        stage.run("ADD", "p")


def test_a_pod_that_kubelet_does_not_know_is_tried_again(stage):
    """Code 11, with network and resource, before anything is touched."""
    stage.pod("q", "single")
    with pytest.raises(
        CniError, match=r"default/single as net1 wants a device of intel\.com/vf: kubelet does not know"
    ) as caught:
        stage.run("ADD", "q")
    assert (11, []) == (caught.value.code, stage.plugins.calls("first"))


def test_an_id_without_a_resource_stays_the_pods_own_word(stage, kubelet):
    """As with multus-cni it reaches the capability and not the config, and kubelet is not asked."""
    stage.definition("own", {"cniVersion": "1.0.0", "type": "one", "capabilities": {"deviceID": True}})
    stage.pod("p", [{"name": "own", "deviceID": "mine"}])
    stage.run("ADD", "p")
    (config,) = configs(stage, "one", "ADD")
    assert ({"deviceID": "mine"}, False, []) == (config["runtimeConfig"], "deviceID" in config, kubelet.asked)


def test_the_pod_is_told_what_the_device_plugin_tells(stage):
    """The device plugin's file reaches the plugins' file and the status; without one a PCI address is told."""
    tell(stage, INFO)
    stage.pod("p", "list,single")
    stage.run("ADD", "p")
    assert INFO == json.loads((stage.folder / "devinfo/cni/default-list-c1_net1").read_text())
    found = [status.get("device-info") for status in statuses(stage)]
    assert [None, INFO, {"type": "pci", "version": "1.1.0", "pci": {"pci-address": B}}] == found
    stage.run("DEL", "p")
    assert [] == left(stage)


def test_a_plugin_that_writes_the_file_is_heard(stage):
    """A network without a device gets the path when it declares the capability; what its plugin writes is told."""
    body = {"type": "vhost-user", "version": "1.1.0", "vhost-user": {"mode": "client", "path": "/run/v.sock"}}
    program = stage.folder / "bin/writer"
    program.write_text(
        f"#!{sys.executable} -ISB\n"
        "import json, os, pathlib, sys\n"
        "config = json.load(sys.stdin)\n"
        "if os.environ['CNI_COMMAND'] == 'ADD':\n"
        "    path = pathlib.Path(config['runtimeConfig']['CNIDeviceInfoFile'])\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        f"    path.write_text({json.dumps(json.dumps(body))})\n"
        "    print(json.dumps({'cniVersion': config['cniVersion']}))\n"
    )
    program.chmod(0o755)
    stage.definition("user", {"cniVersion": "1.0.0", "type": "writer", "capabilities": {"CNIDeviceInfoFile": True}})
    stage.pod("p", "user")
    stage.run("ADD", "p")
    assert body == statuses(stage)[1]["device-info"]
    stage.run("DEL", "p")
    assert [] == left(stage)


def test_a_result_with_a_pci_address_is_told(stage):
    """CNI 1.1: `pciID` of the pod's interface becomes its device-info when no file tells more."""
    result = {"cniVersion": "1.1.0", "interfaces": [{"name": "net1", "sandbox": stage.netns, "pciID": C}]}
    stage.plugins.plugin("one", ADD={"result": result})
    stage.definition("plain", {"cniVersion": "1.1.0", "type": "one"})
    stage.pod("p", "plain")
    stage.run("ADD", "p")
    assert {"type": "pci", "version": "1.1.0", "pci": {"pci-address": C}} == statuses(stage)[1]["device-info"]


def test_a_damaged_file_does_not_keep_the_interface_away(stage, caplog):
    """It is logged and not told; the pod starts."""
    tell(stage, {"type": "pci"})
    stage.pod("p", "list")
    stage.run("ADD", "p")
    assert A == statuses(stage)[1]["device-info"]["pci"]["pci-address"]
    assert "intel.com-vf-0000:01:00.1-device.json" in caplog.text


@pytest.mark.parametrize("retry", [False, True])
def test_an_add_that_dies_half_way_leaves_no_file(stage, retry):
    """A failing later network, or a DEL that failed before: the files go with the attachments."""
    tell(stage, INFO)
    stage.plugins.plugin("two", ADD={"error": {"code": 100, "msg": "no"}}, DEL={"error": {"code": 5}} if retry else {})
    stage.pod("p", "list,single")
    with pytest.raises(CniError):
        stage.run("ADD", "p")
    if retry:
        assert "default-list-c1_net1" in left(stage)
        stage.plugins.plugin("two")
        stage.run("DEL", "p")
    assert [] == left(stage)


def test_grpc_is_imported_only_for_a_pod_that_names_a_resource(stage, kubelet):
    """A pod without devices does not pay for the package, nor ask kubelet."""
    program = (
        "import json, sys\n"
        "from multus_py.entry.plugin import handle\n"
        "from multus_py.cni.call import Call\n"
        "call = json.loads(sys.argv[1])\n"
        "handle(Call(**{**call, 'args': tuple(map(tuple, call['args'])), 'path': tuple(call['path'])}), {})\n"
        "print('grpc' in sys.modules)\n"
    )
    for networks, imported in (("", "False"), ("single", "True")):
        stage.pod("p", networks)
        call = stage.call("ADD", "p", container=f"c{imported}")
        words = {
            key: getattr(call, key) for key in ("verb", "container_id", "netns", "ifname", "args", "path", "config")
        }
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(words)], capture_output=True, text=True, check=False
        )
        assert imported == done.stdout.strip(), done.stderr
    assert ["Get"] == kubelet.asked


def test_a_static_pod_is_found_by_the_uid_that_kubelet_knows(stage, kubelet):
    """The API's mirror of a static pod has a uid of its own: the runtime's counts."""
    kubelet.stop()
    body = {"PodUID": "kubelets", "ContainerName": "app", "ResourceName": VF, "DeviceIDs": {"0": [B]}}
    kubelet.checkpoint.write_text(json.dumps({"Data": {"PodDeviceEntries": [body]}, "Checksum": 0}))
    stage.pod("p", "single", uid="mirror", **{"kubernetes.io/config.source": "file"})
    stage.run("ADD", "p", uid="kubelets")
    assert (B, B) in given(stage)
