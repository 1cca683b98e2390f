# SPDX-License-Identifier: Apache-2.0
"""What the daemon sets right by itself: every DEL, page and pod is looked at, whatever the one before it met."""

import errno
import json
import os
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from running import until
from stage import Stage, namespace

from multus_py.agent.reconciling import reconciler
from multus_py.agent.reconciling.reconciler import Pauses, Reconciler
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError
from multus_py.kernel import netlink
from multus_py.kube.store import NETWORKS, Pod, PodRef
from multus_py.state import journal_entry
from multus_py.state.spool import Spool


@pytest.fixture
def stage(tmp_path):
    """A sandbox with a scripted default network and one more."""
    with namespace() as pod:
        stage = Stage(tmp_path, pod, {"delegates": [{"cniVersion": "1.0.0", "name": "cluster", "type": "first"}]})
        stage.plugins.plugin("first")
        stage.plugins.plugin("one")
        stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": "one"})
        stage.pod("p", "x")
        yield stage


def watcher(stage: Stage, replay=lambda tombstone: None, **more: object) -> Reconciler:
    """Return a reconciler over the stage's spool."""
    return Reconciler(Spool(stage.folder / "cni" / "spool"), replay, lambda kind: None, **more)


def buried(stage: Stage, *names: str, **more: object) -> Path:
    """Write tombstones as a shim does."""
    folder = stage.folder / "cni" / "spool"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        call = Call("DEL", name, "", "eth0", (), ("/",))
        body = {"env": call.environment(), "config": "", "time": time.time(), **more}
        (folder / f"{name}.json").write_text(json.dumps(body))
    return folder


def test_what_cannot_be_read_in_the_spool_is_set_aside(stage):
    """A folder, bytes, an error that is no CniError: each is put aside or tried later, and the others are replayed."""
    folder = buried(stage, "good", "raises")
    (folder / "000.json").mkdir()
    (folder / "001.json").write_bytes(b"\xff\x00")
    (folder / "002.json").write_text("[" * 100_000)
    seen = []

    def replay(tombstone):
        seen.append(tombstone.path.name)
        if "raises" in tombstone.path.name:
            raise KeyError("unforeseen")

    watcher(stage, replay).replay_all()
    assert ["good.json", "raises.json"] == seen
    assert ["000.json.damaged", "001.json.damaged", "002.json.damaged", "raises.json"] == sorted(
        path.name for path in folder.iterdir()
    )


def test_a_tombstone_that_cannot_succeed_is_tried_more_and_more_seldom(stage):
    """A look every second is not a try every second."""
    buried(stage, "never")
    tries, now = [], [0.0]

    def replay(tombstone):
        tries.append(now[0])
        raise CniError(11, "not now")

    watch = watcher(stage, replay, monotonic=lambda: now[0])
    for _ in range(100):
        watch.replay_spool()
        until(lambda: not watch._replaying)
        now[0] += 1
    assert [0, 2, 6, 14, 30, 62] == tries


def test_a_delete_that_hangs_keeps_no_other_waiting(stage):
    """Each has a thread of its own: those beside it are replayed, and the caller goes on at once."""
    buried(stage, "a-hangs", "b", "c", "d")
    leave, seen = threading.Event(), []

    def replay(tombstone):
        if "hangs" in tombstone.path.name:
            assert leave.wait(10)
        seen.append(tombstone.path.name)

    watch = watcher(stage, replay)
    watch.replay_spool()
    until(lambda: len(seen) == 3)
    leave.set()
    until(lambda: len(seen) == 4)


def test_one_look_replays_all_that_waits(stage):
    """Forty DELs are not four a second: who has done one takes the next."""
    buried(stage, *(f"c{n}" for n in range(40)))
    seen = []
    watcher(stage, lambda tombstone: seen.append(tombstone.path.name)).replay_spool()
    until(lambda: len(seen) == 40 and not list((stage.folder / "cni/spool").iterdir()), seconds=5)


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
def test_a_step_of_the_clock_drops_no_delete(stage, step):
    """Whether a sandbox was attached anew is told by the clock that nobody sets."""
    stage.run("ADD", "p")
    since = {"boot": journal_entry.boot_id(), "since": journal_entry.uptime()}
    folder = buried(stage, "c1", **{**since, "time": time.time() + step})
    (path,) = Spool(folder).files()
    tombstone = Spool(folder).read(path)
    call = stage.call("DEL", "p")
    assert not tombstone.is_older(stage.node().journal, call)
    stage.run("DEL", "p")
    stage.run("ADD", "p")
    assert tombstone.is_older(stage.node().journal, call)


def test_a_tombstone_of_an_earlier_boot_is_older_than_what_is_attached_in_this_one(stage):
    """And one of this boot is not older than a page of an earlier one."""
    stage.run("ADD", "p")
    folder = buried(stage, "c1", boot="another", since=1e9)
    (path,) = Spool(folder).files()
    tombstone = Spool(folder).read(path)
    book, call = stage.node().journal, stage.call("DEL", "p")
    assert tombstone.is_older(book, call)
    with book.lock_sandbox("c1", "eth0") as page:
        page.write(replace(page.entry, boot="another"))
    assert not tombstone.is_older(book, call)


def running(stage: Stage, name: str) -> Pod:
    """Return a pod as the cluster would tell of it."""
    return Pod("default", name, f"uid-{name}", {NETWORKS: "x"}, phase="Running")


def test_a_pod_whose_page_is_locked_is_not_told_to_restart(stage):
    """A page that is worked on is read without its lock."""
    stage.pod("p", "x", uid="uid-p")
    stage.run("ADD", "p")
    watch = watcher(stage)
    with stage.node().journal.lock_sandbox("c1", "eth0"):
        watch.report_missing(stage.node(), [running(stage, "p")])
    assert "NetworksMissing" not in [event.reason for event in stage.node().store.events(PodRef("default", "p"))]


def test_one_pods_error_does_not_end_the_round(stage):
    """A pod whose namespace cannot be looked into, then one that lost an interface: the second is told."""
    stage.pod("q", "x")
    stage.run("ADD", "p")
    stage.run("ADD", "q", container="c2")

    class Broken:
        def __init__(self, store):
            self._store = store

        def __getattr__(self, name):
            return getattr(self._store, name)

        def event(self, pod, *more):
            if pod.name == "p":
                raise OSError("disk")
            self._store.event(pod, *more)

    node = replace(stage.node(), store=Broken(stage.node().store))
    watcher(stage).report_missing(node, [running(stage, "p"), running(stage, "q")])
    told = [event.reason for event in stage.node().store.events(PodRef("default", "q"))]
    assert "InterfaceMissing" in told


def test_what_was_told_is_forgotten_with_the_pod(stage):
    """The memory of Events is as large as the node's pods."""
    watch = watcher(stage)
    for n in range(50):
        stage.pod(f"n{n}", "x")
        watch.report_missing(stage.node(), [running(stage, f"n{n}")])
    assert 1 == len(watch._reported)


def test_a_damaged_page_of_a_sandbox_that_is_gone_is_swept(stage):
    """Its results name the namespace; one that lives is left alone."""
    with namespace() as gone:
        stage.run("ADD", "p", container="dead", netns=gone)
    stage.run("ADD", "p")
    for name in ("dead@eth0", "c1@eth0"):
        (stage.folder / "cni/attachments" / name).write_text("nonsense")
    watcher(stage).release_dead(stage.node())
    assert ["c1@eth0"] == sorted(path.name for path in (stage.folder / "cni/attachments").iterdir())
    assert ["first@c1@eth0", "one@c1@net1"] == stage.plugins.held()


def test_the_namespace_of_a_process_that_ended_is_gone():
    """`/proc/<pid>/ns/net` of nobody: gone, where all processes are seen; that of a living one is not."""
    entry = journal_entry.Entry("mp", "c1", "eth0", "/proc/4194305/ns/net", (), boot=journal_entry.boot_id())
    assert entry.is_gone() == journal_entry._sees_all_processes()
    assert not replace(entry, netns="/proc/self/ns/net").is_gone()
    assert not replace(entry, netns="/nowhere/at/all").is_gone()


def test_the_log_says_released_after_it_was(stage, caplog):
    """A teardown that fails is told as that alone."""
    caplog.set_level("INFO")
    with namespace() as gone:
        stage.run("ADD", "p", container="dead", netns=gone)
    stage.plugins.plugin("one", DEL={"error": {"code": 100, "msg": "not now"}})
    now = [0.0]
    watch = watcher(stage, monotonic=lambda: now[0])
    watch.release_dead(stage.node())
    assert ("not now" in caplog.text, "released" in caplog.text) == (True, False)
    stage.plugins.plugin("one")
    now[0] += 10
    watch.release_dead(stage.node())
    assert "released" in caplog.text


def test_pauses_grow_and_are_forgotten():
    """2, 4, 8 … 600 seconds; what is not there any more costs no memory."""
    now = [0.0]
    pauses = Pauses(lambda: now[0])
    seen = []
    for _ in range(12):
        pauses.failed("x")
        begun = now[0]
        while not pauses.over("x"):
            now[0] += 1
        seen.append(now[0] - begun)
    assert [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600] == seen
    pauses.keep_only(set())
    assert pauses.over("x")
    assert not pauses._of


def test_a_daemon_starts_whatever_the_spool_holds(running, leftovers):
    """A DEL that raises, one that hangs, a folder: it is ready at once, hears SIGTERM at once, and replays the rest."""
    running.stage.plugins.plugin("slow", DEL={"sleep": 60})
    running.stage.definition("slow", {"cniVersion": "1.0.0", "name": "slownet", "type": "slow"})
    running.stage.pod("q", "slow")
    running.start()
    with namespace() as one, namespace() as two:
        assert 0 == running.call("ADD", "q", "hangs", netns=one)[0]
        assert 0 == running.call("ADD", "p", "good", netns=two)[0]
        running.stop()
        assert (0, None) == running.call("DEL", "q", "hangs", netns=one)
        assert (0, None) == running.call("DEL", "p", "good", netns=two)
        (running.folder / "cni/spool/000.json").mkdir()
        begun = time.monotonic()
        running.start(drainTimeout=1)
        assert time.monotonic() - begun < 5
        until(lambda: not any("good" in name for name in running.spooled()), running.log)
        begun = time.monotonic()
        assert 0 == running.stop()
        assert time.monotonic() - begun < 10


def test_deletes_that_wait_for_a_hung_add_keep_no_other_waiting(running):
    """They wait for their sandbox, without a place in the lane."""
    running.stage.plugins.plugin("slow", ADD={"sleep": 8})
    running.stage.definition("slow", {"cniVersion": "1.0.0", "name": "slownet", "type": "slow"})
    running.stage.pod("q", "slow")
    running.start(concurrentDeletes=2)
    with ExitStack() as stack:
        other, *pods = [stack.enter_context(namespace()) for _ in range(4)]
        assert 0 == running.call("ADD", "p", "other", netns=other)[0]
        hung = [running.shim("ADD", "q", f"h{n}", netns=netns) for n, netns in enumerate(pods)]
        until(lambda: len(running.stage.plugins.calls("slow", "ADD")) == 3)
        waiting = [running.shim("DEL", "q", f"h{n}", netns=netns) for n, netns in enumerate(pods)]
        time.sleep(0.5)
        begun = time.monotonic()
        assert (0, None) == running.call("DEL", "p", "other", netns=other)
        assert time.monotonic() - begun < 3
        for shim in [*hung, *waiting]:
            shim.communicate(timeout=60)


def test_a_delete_that_the_kernel_does_not_let_us_read_stays(stage, monkeypatch):
    """No descriptor is left for a moment: the DEL is not set aside, and replayed later."""
    buried(stage, "c1")
    seen, now, real = [], [0.0], Path.read_bytes
    watch = watcher(stage, lambda tombstone: seen.append(tombstone.path.name), monotonic=lambda: now[0])

    def none_left(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_bytes", none_left)
    watch.replay_spool()
    monkeypatch.setattr(Path, "read_bytes", real)
    now[0] += 3
    watch.replay_spool()
    until(lambda: seen == ["c1.json"])


def test_a_tombstone_of_an_earlier_boot_names_no_namespace(stage):
    """Its path may lead to another's today, as every /proc/<pid>/ns/net does."""
    folder = buried(stage, "c1")
    for boot, netns in (("another", ""), (journal_entry.boot_id(), "/proc/1/ns/net")):
        body = json.loads((folder / "c1.json").read_text())
        body |= {"boot": boot, "since": 1.0, "env": {**body["env"], "CNI_NETNS": "/proc/1/ns/net"}}
        (folder / "c1.json").write_text(json.dumps(body))
        assert netns == Spool(folder).read(folder / "c1.json").env["CNI_NETNS"]


def test_a_damaged_page_is_not_released_for_a_namespace_that_cannot_be_seen(stage):
    """Its results name a namespace in a folder that is not there: that proves nothing, the pod may live."""
    stage.run("ADD", "p")
    (stage.folder / "cni/attachments/c1@eth0").write_text("nonsense")
    for path in (stage.folder / "cni/results").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "netns": "/run/of-the-node/netns/c1"}))
    watcher(stage).release_dead(stage.node())
    assert ["first@c1@eth0", "one@c1@net1"] == stage.plugins.held()


def test_healing_takes_no_other_interface_with_the_same_address(stage):
    """Two interfaces share a hardware address, as of ipvlan: the one that is there keeps its name."""
    mac = "02:00:00:00:00:07"
    stage.plugins.plugin("two")
    stage.definition("y", {"cniVersion": "1.0.0", "name": "ynet", "type": "two"})
    stage.pod("p", "x,y")
    for plugin, ifname in (("one", "net1"), ("two", "net2")):
        mine = {"name": ifname, "mac": mac, "sandbox": stage.netns}
        stage.plugins.plugin(plugin, ADD={"result": {"cniVersion": "1.0.0", "interfaces": [mine]}})
    stage.run("ADD", "p")
    with netlink.open(stage.netns) as kernel:
        kernel.create_veth("eth0", "net1")
        kernel.set_link(kernel.link("net1").index, mac=mac)
    entry = stage.node().journal.read("c1", "eth0")
    reconciler.heal(entry, stage.node(), stage.node().store.pod(entry.pod))
    with netlink.open(stage.netns) as kernel:
        assert {"lo", "eth0", "net1"} == kernel.link_names()


def test_an_interface_that_was_renamed_is_named_back_beside_the_others(stage):
    """The one interface with the address of the result, which no other network of the sandbox has."""
    mac = "02:00:00:00:00:07"
    mine = {"name": "net1", "mac": mac, "sandbox": stage.netns}
    stage.plugins.plugin("one", ADD={"result": {"cniVersion": "1.0.0", "interfaces": [mine]}})
    stage.run("ADD", "p")
    with netlink.open(stage.netns) as kernel:
        kernel.create_veth("eth0", "renamed")
        kernel.set_link(kernel.link("renamed").index, mac=mac)
    stage.run("DEL", "p")
    with netlink.open(stage.netns) as kernel:
        assert {"lo", "eth0", "net1"} == kernel.link_names()
