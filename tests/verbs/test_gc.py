# SPDX-License-Identifier: Apache-2.0
"""GC: the runtime's list is the truth, and no plugin is told that something living is dead."""

import json
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
from running import until
from stage import Stage, namespace

from multus_py.cni.errors import CniError
from multus_py.verbs import gc


def conf(name: str, plugin: str) -> dict[str, object]:
    """Return a network of one scripted plugin that knows GC."""
    return {"cniVersion": "1.1.0", "name": name, "type": plugin}


@pytest.fixture
def stage(tmp_path):
    """A scripted default network, and a further one; both know GC."""
    with namespace() as pod:
        stage = Stage(tmp_path, pod, {"delegates": [conf("cluster", "first")]})
        stage.plugins.plugin("first")
        stage.plugins.plugin("one")
        stage.definition("x", conf("xnet", "one"))
        stage.pod("p", "x")
        yield stage


def collect(stage: Stage, *living: str) -> None:
    """Run GC with the runtime's list."""
    listed = [{"containerID": container, "ifname": "eth0"} for container in living]
    stage.run("GC", **{"cni.dev/valid-attachments": listed})


def told(stage: Stage, plugin: str) -> list[list[str]]:
    """Return what a plugin was told to be in use, call by call."""
    calls = [call["config"]["cni.dev/valid-attachments"] for call in stage.plugins.calls(plugin, "GC")]
    return [[f"{one['containerID']}@{one['ifname']}" for one in listed] for listed in calls]


def test_what_only_the_runtime_knows_is_not_told_as_dead(stage):
    """A pod older than our install is valid for the default network, and others are not swept: it might have them."""
    stage.run("ADD", "p")
    collect(stage, "c1", "older")
    assert [["c1@eth0", "older@eth0"]] == told(stage, "first")
    assert [] == told(stage, "one")


def test_a_living_sandbox_with_a_damaged_page_is_kept(stage):
    """What it has nobody knows for certain: the default network keeps it, the others are not swept."""
    stage.run("ADD", "p")
    stage.run("ADD", "p", container="c2")
    (stage.folder / "cni/attachments/c2@eth0").write_text("nonsense")
    collect(stage, "c1", "c2")
    assert [["c1@eth0", "c2@eth0"]] == told(stage, "first")
    assert [] == told(stage, "one")
    assert ["first@c1@eth0", "first@c2@eth0", "one@c1@net1", "one@c2@net1"] == stage.plugins.held()


def test_a_living_sandbox_that_was_taken_over_is_kept(stage):
    """Results of the original tell what it has: every network is swept, with it on the list."""
    stage.run("ADD", "p")
    stage.run("ADD", "p", container="taken")
    (stage.folder / "cni/attachments/taken@eth0").unlink()
    collect(stage, "c1", "taken")
    assert [["c1@eth0", "taken@eth0"]] == told(stage, "first")
    assert [["c1@net1", "taken@net1"]] == told(stage, "one")


def test_an_add_that_begins_during_the_sweep_is_not_swept(stage):
    """While a network's plugins sweep nobody attaches; what is attached before is on their list."""
    stage.plugins.plugin("first", GC={"sleep": 1.0})
    sweeping = threading.Thread(target=collect, args=(stage,))
    sweeping.start()
    until(lambda: stage.plugins.calls("first", "GC"))
    stage.run("ADD", "p", container="late")
    sweeping.join()
    order = [call["verb"] for call in stage.plugins.calls("first")]
    assert ["GC", "ADD"] == order
    collect(stage, "late")
    assert ["late@eth0"] == told(stage, "first")[-1]


def test_a_sweep_waits_for_an_add_and_has_it_on_its_list(stage):
    """An ADD is under way when GC comes: the runtime does not list it yet."""
    stage.plugins.plugin("one", ADD={"sleep": 1.0})
    adding = threading.Thread(target=stage.run, args=("ADD", "p", "early"))
    adding.start()
    until(lambda: stage.plugins.calls("one", "ADD"))
    with pytest.raises(CniError, match="being worked on"):
        collect(stage)
    adding.join()
    assert [["early@eth0"]] == told(stage, "first")
    assert [["early@net1"]] == told(stage, "one")
    assert ["first@early@eth0", "one@early@net1"] == stage.plugins.held()


def test_one_sandboxs_error_keeps_no_other(stage):
    """Whatever is raised while one is collected, the others are, and every network is swept."""
    for container in ("c1", "c2"):
        stage.run("ADD", "p", container=container)
    stage.plugins.plugin("first", DEL={"error": {"code": 100, "msg": "not now"}})
    with pytest.raises(CniError, match="not now"):
        collect(stage)
    assert ["first@c1@eth0", "first@c2@eth0"] == stage.plugins.held()
    assert 1 == len(told(stage, "first"))


def test_an_add_that_ends_before_the_collection_begins_is_not_taken_for_a_stray(stage):
    """GC waits for its place, a pod starts meanwhile: its results have a page beside them."""
    stage.run("ADD", "p")

    @contextmanager
    def late(verb):
        stage.run("ADD", "p", container="late")
        yield

    call = stage.call("GC", **{"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    gc.gc(call, replace(stage.node(), slot=late))
    assert ["first@c1@eth0", "first@late@eth0", "one@c1@net1", "one@late@net1"] == stage.plugins.held()


def test_all_pages_of_a_container_count(stage):
    """A runtime that calls us twice for one container: what either call attached is in use."""
    stage.run("ADD", "p")
    book = stage.node().journal
    entry = book.read("c1", "eth0")
    with book.lock_sandbox("c1", "eth1") as page:
        page.write(replace(entry, ifname="eth1", attachments=(replace(entry.attachments[0], ifname="eth1"),)))
    listed = [{"containerID": "c1", "ifname": ifname} for ifname in ("eth0", "eth1")]
    stage.run("GC", **{"cni.dev/valid-attachments": listed})
    assert [["c1@net1"]] == told(stage, "one")


def test_a_list_with_what_is_no_container_is_swept_with(stage):
    """Whatever a runtime lists is valid for the default network, and nothing in it keeps others from being swept."""
    stage.run("ADD", "p")
    collect(stage, "c1", "", "a\0b", "\ud800", "../../etc/passwd")
    assert 5 == len(told(stage, "first")[0])


def test_a_damaged_page_of_another_networks_living_sandbox_is_kept(stage):
    """Two of our confs share a folder, and only one's sandboxes are on the list: nobody knows whose the page is."""
    stage.run("ADD", "p")
    (stage.folder / "cni/attachments/c1@eth0").write_text("nonsense")
    stage.run("GC", name="another", **{"cni.dev/valid-attachments": []})
    assert ["first@c1@eth0", "one@c1@net1"] == stage.plugins.held()
    for path in (stage.folder / "cni/results").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "netns": "/run/netns/gone"}))
    stage.run("GC", name="another", **{"cni.dev/valid-attachments": []})
    assert [] == stage.plugins.held()
