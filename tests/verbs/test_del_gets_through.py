# SPDX-License-Identifier: Apache-2.0
"""The runtime is never held up by what never came to be: refused in the plan, or kept for our own later tries."""

import base64
import json
import os
import signal
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from running import until
from stage import Stage, namespace

from multus_py.agent.reconciling.reconciler import Reconciler
from multus_py.cni.errors import CniError
from multus_py.cni.result import Result
from multus_py.kernel import namespaces, netlink
from multus_py.kube.store import PodRef
from multus_py.state import journal_entry
from multus_py.state.spool import Spool
from multus_py.verbs import plugins
from multus_py.verbs.add import add

REFERENCE = Path("/usr/lib/cni")
NO = {"error": {"code": 100, "msg": "scripted no"}}


@pytest.fixture
def stage(tmp_path):
    """A sandbox on a host; a scripted default network, and scripted plugins for more."""
    with namespace() as host, namespace() as pod:
        cluster = {"cniVersion": "1.0.0", "name": "cluster", "type": "first"}
        stage = Stage(tmp_path, pod, {"delegates": [cluster], "host": host})
        for name in ("first", "one", "two", "three"):
            stage.plugins.plugin(name)
        stage.pod("p", "x")
        yield stage


def told(stage: Stage, verb: str, **more: object) -> str:
    """Run the handler of a verb on the host; return the error message, "" without one."""
    try:
        namespaces.run_in(stage.settings["host"], lambda: stage.run(verb, "p", **more))
    except CniError as error:
        return str(error)
    return ""


def pages(stage: Stage) -> list[str]:
    """Return the files of the journal."""
    folder = stage.folder / "cni" / "attachments"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def chain(stage: Stage, *types: str, **more: object) -> None:
    """Define the network x as a chain of scripted plugins."""
    stage.definition(
        "x", {"cniVersion": "1.0.0", "name": "xnet", "plugins": [{"type": kind, **more} for kind in types]}
    )


NEVER = {
    "a type with a typing error": {"type": "mavclan", "master": "eth0"},
    "an IPAM type with a typing error": {"type": "bridge", "bridge": "br0", "ipam": {"type": "host-lokal"}},
    "an executable's IPAM type with a typing error": {"type": "ptp", "ipam": {"type": "host-lokal"}},
    "an executable's IPAM that is no object": {"type": "ptp", "ipam": "x"},
    "an IPAM that is no object": {"type": "bridge", "bridge": "br0", "ipam": "x"},
    "an IPAM whose ranges cannot be read": {
        "type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "subnet": "10.0.0.1/24"}},
    "a device that is no PCI address": {"type": "sriov", "deviceID": "eth0"},
    "no device": {"type": "sriov"},
    "a mode that is none": {"type": "macvlan", "mode": "bride"},
    "a second plugin with a typing error": {"plugins": [{"type": "one"}, {"type": "tuningg"}]},
}  # fmt: skip


@pytest.mark.parametrize("config", NEVER.values(), ids=NEVER)
def test_what_can_be_refused_is_refused_before_the_journal_is_written(stage, config):
    """ADD fails with the network's name and no plugin is asked; DEL and GC have nothing to wait for."""
    stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", **config})
    said = told(stage, "ADD")
    assert ("network default/x as net1" in said, [], pages(stage)) == (True, stage.plugins.calls("first"), [])
    assert "" == told(stage, "DEL") == told(stage, "DEL", netns="")
    assert [] == [name for name in stage.left() if name != "events.jsonl"]


def test_a_plugin_whose_add_failed_does_not_fail_the_sandboxs_del(stage):
    """Its DEL is tried; the error becomes an Event, stands in the journal and is tried again, with nobody waiting."""
    chain(stage, "one")
    stage.plugins.plugin("one", ADD=NO, DEL=NO)
    assert "scripted no" in told(stage, "ADD")
    assert "" == told(stage, "DEL")
    events = stage.node().store.events(PodRef("default", "p"))
    assert [("Warning", "FailedDetach", True)] == [(e.kind, e.reason, "scripted no" in e.message) for e in events]
    assert "" == told(stage, "DEL", netns="")
    entry = stage.node().journal.read("c1", "eth0")
    assert ((), [("net1", 3, True)]) == (
        entry.attachments, [(one.attachment.ifname, one.tries, "scripted no" in one.reason) for one in entry.failures],
    )  # fmt: skip
    (stage.folder / "manifests/NetworkAttachmentDefinition-default-x.json").unlink()
    assert "" == told(stage, "DEL", netns="")
    stage.plugins.plugin("one")
    Reconciler(Spool(stage.folder), lambda tombstone: None, lambda kind: None).release_dead(stage.node())
    assert ([], []) == (pages(stage), stage.plugins.held())


def test_a_plugin_that_refuses_its_config_is_not_waited_for(stage):
    """host-device without a device: the executable refuses ADD, CHECK and DEL alike."""
    if not (REFERENCE / "host-device").exists():
        pytest.skip("no host-device in /usr/lib/cni")
    stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": "host-device"})
    assert "host-device" in told(stage, "ADD")
    assert "" == told(stage, "DEL") == told(stage, "DEL", netns="")


def test_a_plugin_whose_add_never_began_is_not_asked(stage):
    """Of three plugins the second fails: DEL asks it and the first, and the first, which came to be, must confirm."""
    chain(stage, "one", "two", "three")
    stage.plugins.plugin("two", ADD=NO, DEL=NO)
    stage.plugins.plugin("one", DEL=NO)
    assert "DEL will" in told_details(stage)
    assert "plugin one: scripted no" in told(stage, "DEL")
    assert [] == stage.plugins.calls("three")
    stage.plugins.plugin("one")
    assert "" == told(stage, "DEL")
    assert ["two@c1@net1"] == stage.plugins.held()


def told_details(stage: Stage) -> str:
    """Return all that a failing ADD told the runtime."""
    with pytest.raises(CniError) as caught:
        namespaces.run_in(stage.settings["host"], lambda: stage.run("ADD", "p"))
    return json.dumps(caught.value.to_json("1.0.0"))


def killed_in(stage: Stage, plugin: str) -> None:
    """Kill an ADD with SIGKILL while *plugin* hangs."""
    stage.plugins.plugin(plugin, ADD={"sleep": 30}, DEL=NO)
    child = os.fork()
    if child == 0:
        try:
            told(stage, "ADD")
        finally:
            os._exit(0)
    until(lambda: stage.plugins.calls(plugin, "ADD"))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(stage.folder / "bin" / plugin).encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue


def test_a_kill_between_begun_and_done_is_known(stage):
    """What hung when we died may have done its deed: it is asked, not waited for; what came after it is not asked."""
    chain(stage, "one", "two", "three")
    killed_in(stage, "two")
    assert "" == told(stage, "DEL")
    asked = [len(stage.plugins.calls(name, "DEL")) for name in ("first", "one", "two", "three")]
    assert [1, 1, 1, 0] == asked
    assert ["two@c1@net1"] == stage.plugins.held()


def test_after_a_power_loss_every_plugin_is_asked_and_none_is_waited_for(stage):
    """Only the plan was brought to the disk for certain: what came to be nobody knows."""
    chain(stage, "one", "two")
    assert "" == told(stage, "ADD")
    page = stage.folder / "cni/attachments/c1@eth0"
    entry = replace(stage.node().journal.read("c1", "eth0"), boot="an earlier one", progress={})
    page.write_bytes(journal_entry.encode(entry))
    for path in (stage.folder / "cni/results").iterdir():
        path.unlink()
    stage.plugins.plugin("two", DEL=NO)
    assert "" == told(stage, "DEL", netns="")
    assert ["two@c1@net1"] == stage.plugins.held()
    stage.plugins.plugin("two")
    assert "" == told(stage, "DEL", netns="")
    assert [] == [name for name in stage.left() if name != "events.jsonl"]


def test_a_plugin_whose_add_succeeded_has_to_confirm(stage):
    """Its error fails DEL, the others are detached and leave the page as they confirm."""
    chain(stage, "one")
    assert "" == told(stage, "ADD")
    stage.plugins.plugin("one", DEL=NO)
    assert "scripted no" in told(stage, "DEL")
    assert ["net1"] == [one.ifname for one in stage.node().journal.read("c1", "eth0").attachments]
    assert "scripted no" in told(stage, "DEL", netns="")
    assert 1 == len(stage.plugins.calls("first", "DEL"))
    stage.plugins.plugin("one")
    assert "" == told(stage, "DEL", netns="")
    assert [] == [name for name in stage.left() if name != "events.jsonl"]


def test_an_add_again_keeps_what_failed_before(stage):
    """A runtime tries the same sandbox again, and it comes to be: one DEL takes down both tries."""
    chain(stage, "one")
    stage.plugins.plugin("one", ADD=NO, DEL=NO)
    assert told(stage, "ADD")
    stage.plugins.plugin("one")
    assert "" == told(stage, "ADD")
    assert "" == told(stage, "DEL")
    assert [] == [name for name in stage.left() if name != "events.jsonl"]


def old_page(stage: Stage, seal: str) -> Path:
    """Write a page as an earlier build left it, for a network that was never attached."""
    config = {"cniVersion": "1.0.0", "name": "xnet", "plugins": [{"type": "mavclan"}]}
    body = json.dumps({
        "format": 1, "network": "mp", "containerId": "c1", "ifName": "eth0", "netns": "/run/netns/none", "boot": "",
        "pod": {"namespace": "default", "name": "p", "uid": ""},
        "attachments": [{"name": "default/x", "config": config, "single": True, "ifName": "net1", "primary": False,
                         "args": [], "capabilities": {}, "defaultRoute": None}],
    }, separators=(",", ":")).encode()  # fmt: skip
    folder = stage.folder / "cni/attachments"
    folder.mkdir(parents=True)
    path = folder / "c1@eth0"
    import binascii
    import hashlib

    sealed = {"SHA-256": hashlib.sha256(body).hexdigest(), "CRC-32": f"{binascii.crc32(body):08x}"}
    path.write_bytes(sealed[seal].encode() + b" " + body + b"\n")
    return path


@pytest.mark.parametrize("seal", ["SHA-256", "CRC-32"])
def test_a_page_of_an_earlier_build_is_read_and_does_not_hold_up_the_runtime(stage, seal):
    """Pods that could never be deleted can be, after an upgrade."""
    old_page(stage, seal)
    assert ["net1"] == [one.ifname for one in stage.node().journal.read("c1", "eth0").attachments]
    assert "" == told(stage, "DEL", netns="")


def test_what_fails_again_and_again_is_given_up_and_bounded(stage, caplog):
    """After ten tries nobody tries any more, and of a network that never worked only so many sandboxes stay."""
    chain(stage, "one")
    stage.plugins.plugin("one", ADD=NO, DEL=NO)
    assert told(stage, "ADD")
    assert "" == told(stage, "DEL", netns="")
    now = [0.0]
    watch = Reconciler(Spool(stage.folder), lambda tombstone: None, lambda kind: None, monotonic=lambda: now[0])
    for _ in range(20):
        watch.release_dead(stage.node())
        now[0] += 601
    tried = len(stage.plugins.calls("one", "DEL"))
    watch.release_dead(stage.node())
    entry = stage.node().journal.read("c1", "eth0")
    assert (10, 10, True, 1) == (tried, len(stage.plugins.calls("one", "DEL")), entry.failures[0].is_final, watch.left)
    assert 1 == caplog.text.count("is given up after 10 tries")
    for n in range(120):
        with stage.node().journal.lock_sandbox(f"more{n}", "eth0") as page:
            page.write(type(entry)(**{**entry.__dict__, "container_id": f"more{n}"}))
    watch.release_dead(stage.node())
    assert 100 == len(stage.node().journal.sandboxes())


def test_tries_come_after_longer_and_longer_pauses(stage):
    """A round every second does not ask a plugin that fails every second."""
    chain(stage, "one")
    stage.plugins.plugin("one", ADD=NO, DEL=NO)
    assert told(stage, "ADD")
    now = [0.0]
    watch = Reconciler(Spool(stage.folder), lambda tombstone: None, lambda kind: None, monotonic=lambda: now[0])
    assert "" == told(stage, "DEL", netns="")
    before = len(stage.plugins.calls("one", "DEL"))
    for _ in range(60):
        watch.release_dead(stage.node())
        now[0] += 1
    assert 5 == len(stage.plugins.calls("one", "DEL")) - before  # at 0, 2, 6, 14, 30


def test_a_long_network_name_is_attached_and_detached(stage):
    """A name of 185 bytes and a container id of 64 make no file name together: the result has another."""
    stage.definition("x", {"cniVersion": "1.0.0", "name": "n" * 185, "type": "one"})
    container = "c" * 64
    assert "" == told(stage, "ADD", container=container)
    assert "" == told(stage, "CHECK", container=container)
    (stage.folder / f"cni/attachments/{container}@eth0").unlink()
    assert "" == told(stage, "DEL", container=container)
    assert ([], []) == (stage.plugins.held(), [name for name in stage.left() if name != "events.jsonl"])


@pytest.fixture
def raises(monkeypatch):
    """A delegate of another package that raises what no CniError is."""
    module = types.ModuleType("mpt_raises")

    def add(request):
        return Result()

    def delete(request):
        raise KeyError("words")

    module.SCHEMA = {"type": "object"}  # type: ignore[attr-defined]
    module.add, module.delete, module.check, module.status = add, delete, delete, delete  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpt_raises", module)
    monkeypatch.setitem(plugins.NATIVE, "raises", "mpt_raises")
    if clear := getattr(plugins._native_delegate, "cache_clear", None):
        clear()
    yield
    if clear:
        clear()


def test_a_delegate_that_raises_anything_keeps_no_other_network_attached(stage, raises):
    """KeyError in DEL: the other networks are detached, and the error is a CNI error with the plugin's name."""
    stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": "raises"})
    assert "" == told(stage, "ADD")
    said = told(stage, "DEL")
    assert ("plugin raises" in said, "KeyError" in said, []) == (True, True, stage.plugins.held())


def test_a_config_that_no_path_can_be_made_of_is_detached(stage):
    """A lone surrogate in sriov's dataDir cannot be encoded: nothing else stays for it."""
    stage.definition(
        "x", '{"cniVersion":"1.0.0","name":"xnet","type":"sriov","deviceID":"0000:01:10.0","dataDir":"/\\ud800"}'
    )
    assert told(stage, "ADD")
    assert "" == told(stage, "DEL") == told(stage, "DEL", netns="")
    assert [] == stage.plugins.held()


def test_a_journal_of_several_sources_is_a_union(stage):
    """The page knows one network, a kept result another, a delegates file a third: all are detached."""
    chain(stage, "one")
    assert "" == told(stage, "ADD")
    cluster = {"cniVersion": "1.0.0", "name": "hot", "type": "two"}
    (stage.folder / "cni/c1").write_text(json.dumps([
        {"Conf": stage.settings["delegates"][0], "ConfList": {}, "Name": "cluster", "ifnameRequest": "eth0"},
        {"Conf": cluster, "ConfList": {}, "Name": "hot", "ifnameRequest": "net7"},
    ]))  # fmt: skip
    result = json.loads((stage.folder / "cni/results/xnet-c1-net1").read_text())
    config = json.loads(base64.b64decode(result["config"]))
    encoded = base64.b64encode(json.dumps({**config, "name": "ynet"}).encode()).decode()
    (stage.folder / "cni/results/ynet-c1-net8").write_text(
        json.dumps({**result, "ifName": "net8", "networkName": "ynet", "config": encoded})
    )
    assert "" == told(stage, "DEL")
    assert ["net8", "net1"] == [call["env"]["CNI_IFNAME"] for call in stage.plugins.calls("one", "DEL")]
    assert ["net7"] == [call["env"]["CNI_IFNAME"] for call in stage.plugins.calls("two", "DEL")]
    assert [] == [name for name in stage.left() if name != "events.jsonl"]


def device(stage: Stage, tmp_path: Path) -> None:
    """Give the host an interface for host-device, with an address from host-local."""
    if not (REFERENCE / "host-device").exists():
        pytest.skip("no host-device in /usr/lib/cni")
    with netlink.open(stage.settings["host"]) as kernel:
        kernel.create_veth("nic0", "nic1")
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "ipam"), "subnet": "10.70.0.0/24"}
    config = {"cniVersion": "1.0.0", "name": "xnet", "type": "host-device", "device": "nic0", "ipam": ipam}
    stage.definition("x", config)


def reserved(tmp_path: Path) -> list[str]:
    """Return the addresses that are reserved."""
    return [path.name for path in (tmp_path / "ipam").rglob("10.*")]


def test_an_executable_that_skips_its_ipam_is_not_believed(stage, tmp_path):
    """host-device confirms a DEL without namespace at once: the address is given back all the same."""
    device(stage, tmp_path)
    assert "" == told(stage, "ADD")
    assert ["10.70.0.2"] == reserved(tmp_path)
    assert "" == told(stage, "DEL", netns="")
    assert [] == reserved(tmp_path)


def test_an_interface_that_was_renamed_in_the_pod_is_found(stage, tmp_path):
    """host-device looks for it by name: it has its name again before DEL."""
    device(stage, tmp_path)
    assert "" == told(stage, "ADD")
    with netlink.open(stage.netns) as kernel:
        index = kernel.link("net1").index
        kernel.set_link(index, up=False)
        kernel.set_link(index, name="renamed")
    assert "" == told(stage, "DEL")
    with netlink.open(stage.settings["host"]) as kernel:
        assert kernel.find_link("nic0")
    assert [] == reserved(tmp_path)


def test_a_result_that_the_callers_version_cannot_say_is_taken_back(stage):
    """No address at all has no form in 0.2.0: the error comes before anybody is told, and nothing stays attached."""
    chain(stage, "one")
    assert told(stage, "ADD", cniVersion="0.2.0")
    assert [] == [name for name in stage.left() if name != "events.jsonl"]
    assert ["FailedAttach"] == [event.reason for event in stage.node().store.events(PodRef("default", "p"))]


def test_pages_hold_one_line_for_each_plugin_and_one_fsync(stage, monkeypatch):
    """What is begun is written before it is, without bringing each to the disk."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file) or real(file))
    chain(stage, "one", "two")
    namespaces.run_in(stage.settings["host"], lambda: stage.run("ADD", "p"))
    lines = (stage.folder / "cni/attachments/c1@eth0").read_bytes().splitlines()
    assert (1, 5) == (len(synced), len(lines))
    entry = stage.node().journal.read("c1", "eth0")
    assert {"eth0": journal_entry.Progress(1, 1), "net1": journal_entry.Progress(2, 2)} == entry.progress


@pytest.mark.parametrize("plugin", ["ptp", "two"])
def test_an_ipam_executable_is_asked_once_more_and_no_further(stage, plugin):
    """Without a namespace its executable's IPAM plugin is asked beside it; that one has no IPAM plugin of its own."""
    stage.plugins.plugin("pool")
    stage.plugins.plugin(plugin)
    stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": plugin, "ipam": {"type": "pool"}})
    assert "" == told(stage, "ADD")
    assert "" == told(stage, "DEL", netns="")
    assert 1 == len(stage.plugins.calls("pool", "DEL"))


def test_a_native_delegates_ipam_executable_is_asked_once(stage):
    """macvlan with an executable for addresses, and no namespace: one DEL reaches it."""
    stage.plugins.plugin("pool", ADD={"result": {"cniVersion": "1.0.0", "ips": [{"address": "10.71.0.2/24"}]}})
    with netlink.open(stage.settings["host"]) as kernel:
        kernel.create_veth("nic0", "nic1")
    config = {"cniVersion": "1.0.0", "name": "xnet", "type": "macvlan", "master": "nic0", "ipam": {"type": "pool"}}
    stage.definition("x", config)
    assert "" == told(stage, "ADD")
    assert "" == told(stage, "DEL", netns="")
    assert 1 == len(stage.plugins.calls("pool", "DEL"))


def test_what_an_executable_means_by_ipam_is_its_own_affair(stage):
    """One that starts no IPAM plugin of its config by the standard is believed, whatever that plugin says of half a
    config; of one that does, the addresses stay reserved, and DEL says so."""
    stage.plugins.plugin("pool", DEL=NO)
    for plugin in ("two", "ptp"):
        stage.plugins.plugin(plugin)
        stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": plugin, "ipam": {"type": "pool"}})
        assert "" == told(stage, "ADD")
        said = told(stage, "DEL", netns="")
        assert (plugin == "ptp") == ("plugin pool: scripted no" in said)


def native(stage: Stage) -> Stage:
    """Return the stage with a native bridge as default network, and a pod that asks for nothing."""
    stage.pod("p")
    return replace(
        stage,
        settings={**stage.settings, "delegates": [{"cniVersion": "1.0.0", "name": "cluster", "type": "bridge"}]},
    )


def test_a_del_in_our_own_namespace_removes_nothing_of_the_nodes(stage):
    """ADD refuses it and leaves no page: DEL of what nobody knows takes no interface of the node for the sandbox's."""
    stage, own = native(stage), "/proc/thread-self/ns/net"
    with netlink.open(stage.settings["host"]) as kernel:
        kernel.create_veth("eth0", "peer")
    assert "own network namespace" in told(stage, "ADD", netns=own)
    assert "" == told(stage, "DEL", netns=own)
    with netlink.open(stage.settings["host"]) as kernel:
        assert kernel.find_link("eth0")


def test_after_a_reboot_a_process_id_leads_to_nobodys_namespace(stage):
    """A page of another boot names /proc/<pid>/ns/net, and a program of today has that id: it keeps its interfaces."""
    stage = native(stage)
    assert "" == told(stage, "ADD")
    with namespace() as other:
        with netlink.open(other) as kernel:
            kernel.create_veth("eth0", "peer")
        program = namespaces.run_in(other, lambda: subprocess.Popen(["sleep", "60"]))
        try:
            with stage.node().journal.lock_sandbox("c1", "eth0") as page:
                page.write(replace(page.entry, boot="another", netns=f"/proc/{program.pid}/ns/net"))
            Reconciler(Spool(stage.folder), lambda tombstone: None, lambda kind: None).release_dead(stage.node())
            with netlink.open(other) as kernel:
                assert (True, []) == (kernel.find_link("eth0") is not None, pages(stage))
        finally:
            program.kill()
            program.wait()


def test_what_has_no_hardware_address_is_not_renamed(stage):
    """A result with zeros, and no interface of that name: lo has zeros, too, and stays lo."""
    chain(stage, "one")
    mine = {"name": "net1", "mac": "00:00:00:00:00:00", "sandbox": stage.netns}
    stage.plugins.plugin("one", ADD={"result": {"cniVersion": "1.0.0", "interfaces": [mine]}})
    assert "" == told(stage, "ADD")
    assert "" == told(stage, "DEL")
    with netlink.open(stage.netns) as kernel:
        assert ["lo"] == [link.name for link in kernel.links()]


def test_a_pod_of_the_same_name_is_not_planned_for(stage):
    """The page cannot be read and the pod was made anew: what the new one asks for the old sandbox never had."""
    chain(stage, "one")
    stage.pod("p", uid="before")
    assert "" == told(stage, "ADD", uid="before")
    (stage.folder / "cni/attachments/c1@eth0").write_text("nonsense")
    stage.pod("p", "x", uid="after")
    assert "" == told(stage, "DEL", uid="before")
    assert ([], 1) == (stage.plugins.calls("one"), len(stage.plugins.calls("first", "DEL")))


def test_without_namespace_and_result_nothing_is_waited_for(stage):
    """The journal says that it came to be, and nobody can prove it: the rest is released, this is tried again."""
    chain(stage, "one")
    assert "" == told(stage, "ADD")
    stage.plugins.plugin("one", DEL=NO)
    assert "scripted no" in told(stage, "DEL", netns="")
    for path in (stage.folder / "cni/results").iterdir():
        path.unlink()
    assert "" == told(stage, "DEL", netns="")
    entry = stage.node().journal.read("c1", "eth0")
    assert ((), ["net1"]) == (entry.attachments, [one.attachment.ifname for one in entry.failures])


def test_the_sweep_finds_plugins_where_add_found_them(stage, tmp_path):
    """CNI_PATH of the runtime is kept: a plugin that is not in our own folder is called at the sweep, too."""
    elsewhere = Stage(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    elsewhere.plugins.plugin("far")
    stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": "far"})
    with namespace() as gone:
        call = replace(
            stage.call("ADD", "p", netns=gone), path=(str(elsewhere.folder / "bin"), str(stage.folder / "bin"))
        )
        namespaces.run_in(stage.settings["host"], lambda: add(call, stage.node()))
    Reconciler(Spool(stage.folder), lambda tombstone: None, lambda kind: None).release_dead(stage.node())
    assert ([], []) == (elsewhere.plugins.held(), pages(stage))
