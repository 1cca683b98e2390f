# SPDX-License-Identifier: Apache-2.0
"""A real daemon that installs itself and follows, on a node where others have a say, too."""

import json
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack

import pytest
from running import ended, until
from stage import namespace

from multus_py.cli.main import main
from multus_py.install import executable, primary, shim
from multus_py.kube.store import PodRef


def test_it_installs_itself_and_a_pod_comes_and_goes(node):
    """Conf and shim are there, with the keys that the shim needs; ADD, STATUS, DEL as a runtime makes them."""
    node.start()
    assert shim.path().read_bytes() == node.shim.read_bytes()
    (plugin,) = node.first()["plugins"]
    assert (str(node.folder / "run"), str(node.folder / "cni")) == (plugin["socketDir"], plugin["cniDir"])
    assert str(node.conf / "10-cluster.conflist") == plugin["clusterNetwork"]
    code, result = node.call("ADD", "p")
    assert (0, "10.88.0.2/16") == (code, result["ips"][0]["address"])
    assert (0, None) == node.call("STATUS")
    assert (0, None) == node.call("DEL", "p")
    assert [] == node.left()


def test_without_the_key_nothing_is_written(node):
    """A daemon that was not asked to install leaves the folder alone."""
    node.start(install=False)
    assert ["10-cluster.conflist"] == [path.name for path in node.conf.iterdir()]
    assert [] == list((node.folder / "opt").iterdir())


def test_the_originals_key_asks_for_it_too(node):
    """A daemon-config.json of multus-cni, with its generator keys, is enough."""
    node.options = {"install": None, "multusConfigFile": "auto", "cniVersion": "0.3.1", "overrideNetworkName": True}
    node.start(multusAutoconfigDir=str(node.conf))
    assert ("cluster", "1.0.0") == (node.first()["name"], node.first()["cniVersion"])


def test_a_late_primary_is_waited_for_and_del_is_not_held_up(node):
    """No network yet: STATUS says so with code 50, ADD with 11, DEL is done; when the conf comes ADD succeeds."""
    (node.conf / "10-cluster.conflist").unlink()
    node.start(ready=False)
    assert not node.ours.exists()
    code, error = node.running.call("STATUS", readinessTimeout=0.3)
    assert (1, 50) == (code, error["code"])
    assert "no primary network is configured" in json.dumps(error)
    code, error = node.running.call("ADD", "p", readinessTimeout=0.3)
    assert (1, 11) == (code, error["code"])
    assert (0, None) == node.running.call("DEL", "p")
    add = node.running.shim("ADD", "p")
    node.primary()
    assert 0 == ended(add)[0]
    assert node.ours.exists()
    assert 0 == node.call("DEL", "p")[0]


def test_a_primary_that_vanishes_for_some_seconds(node):
    """GKE's watchdog: not ready meanwhile, our conf stays, a pod that starts waits, one that ends is cleaned up."""
    node.start()
    assert 0 == node.call("ADD", "p")[0]
    kept = (node.conf / "10-cluster.conflist").rename(node.folder / "kept")
    until(lambda: node.running.get("/readyz")[0] == 500)
    assert node.ours.exists()
    assert 50 == node.call("STATUS", readinessTimeout=0.2)[1]["code"]
    assert (0, None) == node.call("DEL", "p")
    assert [] == node.left()
    with namespace() as netns:
        add = node.begin("ADD", "p", "late", netns=netns)
        time.sleep(2.5)
        assert add.poll() is None
        kept.rename(node.conf / "10-cluster.conflist")
        code, result = ended(add)
        assert (0, "eth0") == (code, result["interfaces"][-1]["name"])
        assert (0, None) == node.call("DEL", "p", "late", netns=netns)
    assert 0 == node.call("STATUS")[0]


def test_a_regenerated_primary_counts_from_the_next_pod_on(node):
    """A chained plugin with a capability: the runtime's values reach it; the older pod is deleted as it was added."""
    node.start()
    assert 0 == node.call("ADD", "p")[0]
    node.running.stage.plugins.plugin("shaper")
    node.primary({"type": "shaper", "capabilities": {"bandwidth": True}})
    until(lambda: node.first()["plugins"][0].get("capabilities") == {"bandwidth": True})
    with namespace() as netns:
        wanted = {"bandwidth": {"ingressRate": 1000}}
        assert 0 == node.call("ADD", "p", "c2", netns=netns, runtimeConfig=wanted)[0]
        (call,) = node.running.stage.plugins.calls("shaper", "ADD")
        assert wanted == call["config"]["runtimeConfig"]
        assert (0, None) == node.call("DEL", "p", "c2", netns=netns)
    assert (0, None) == node.call("DEL", "p")
    assert ["c2"] == [call["env"]["CNI_CONTAINERID"] for call in node.running.stage.plugins.calls("shaper", "DEL")]
    assert [] == node.left()


def test_exclusive_renames_in_a_loop(node):
    """Cilium's exclusive mode: put back each time, then ever more slowly; an Event of our pod says what to do."""
    node.start()
    renames = 0
    end = time.monotonic() + 9
    while time.monotonic() < end:
        if node.ours.exists():
            node.ours.rename(node.conf / "00-multus-py.conflist.cilium_bak")
            renames += 1
        time.sleep(0.05)
    assert 5 <= renames <= 7, renames
    store = node.running.stage.node().store
    told = [event for event in store.events(PodRef("kube-system", "agent")) if event.reason == "ConfPutBack"]
    assert len(told) >= 5
    assert "cni.exclusive=false" in told[-1].message
    assert not [path for path in primary.conf_files(node.conf) if path.name.startswith("00-")]
    assert (0, None) == node.running.call("STATUS"), "the daemon goes on serving"


@pytest.mark.parametrize("trouble", ["read-only", "full"])
def test_a_conf_folder_that_takes_nothing(node, trouble):
    """Said once, counted, tried again; the daemon serves. When the disk is well again the conf is written."""
    node.options = {"clusterNetwork": str(node.conf / "10-cluster.conflist"), "metricsPort": 0}
    saved = (node.conf / "10-cluster.conflist").read_bytes()
    size = "64k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "mpt", node.conf], check=True)
    try:
        (node.conf / "10-cluster.conflist").write_bytes(saved)
        if trouble == "full":
            filler = node.conf / "filler"
            filler.write_bytes(b"")
            with filler.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))
        else:
            subprocess.run(["mount", "-o", "remount,ro", node.conf], check=True)
        node.start()
        words = "No space left on device" if trouble == "full" else "Read-only file system"
        node.logged(words)
        time.sleep(2.5)
        assert 1 == node.running.log().count(words), node.running.log()
        assert ["10-cluster.conflist"] == [path.name for path in primary.conf_files(node.conf)]
        assert 0 == node.running.call("ADD", "p")[0]
        assert 0 == node.running.call("DEL", "p")[0]
        subprocess.run(["mount", "-o", "remount,rw", node.conf], check=True)
        (node.conf / "filler").unlink(missing_ok=True)
        until(node.ours.exists, node.running.log)
        node.logged("all is well again")
        assert not [path for path in node.conf.iterdir() if path.name.startswith(".")]
    finally:
        node.running.stop(signal.SIGKILL)
        subprocess.run(["umount", node.conf], check=True)


def test_a_rolling_update_with_pods_starting_meanwhile(node):
    """A second daemon waits for the first to drain; every ADD of that time succeeds, and our conf is never away."""
    node.start()
    absent: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if not node.ours.exists():
                absent.append(time.monotonic())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ExitStack() as stack:
        pods = {f"u{n}": stack.enter_context(namespace()) for n in range(12)}
        calls, second = [], None
        for n, (container, netns) in enumerate(pods.items()):
            calls.append(node.begin("ADD", "p", container, netns=netns))
            if n == 3:
                second = node.launch()
                stack.enter_context(second)  # waits for its end
                stack.callback(second.kill)
            if n == 6:
                node.running.process.send_signal(signal.SIGTERM)
            time.sleep(0.15)
        answers = [ended(call) for call in calls]
        assert [] == [error for code, error in answers if code], node.running.log()
        assert 0 == node.running.process.wait(15)
        node.running.process = second
        until(lambda: node.running.get("/readyz")[0] == 200, node.running.log)
        for container, netns in pods.items():
            assert (0, None) == node.call("DEL", "p", container, netns=netns)
        over.set()
        watcher.join()
        assert [] == absent
        assert [] == node.left()
        node.running.stop()


def test_uninstall_under_a_running_daemon(node, capsys):
    """The primary alone from then on; pods that are there keep their interfaces and are cleaned up; nothing stays."""
    node.start(reconcileInterval=1)
    place = ["--cni-bin-dir", str(node.folder / "opt"), "--cni-conf-dir", str(node.conf)]
    with namespace() as dead:
        assert 0 == node.call("ADD", "p")[0]
        assert 0 == node.call("ADD", "p", "unheard", netns=dead)[0]
        assert 0 == main(["uninstall", *place])
        assert "2 sandboxes are left" in capsys.readouterr().out
        assert ["10-cluster.conflist"] == [path.name for path in primary.conf_files(node.conf)]
        time.sleep(2.5)
        assert not node.ours.exists(), "the daemon does not put it back"
        assert node.shim.exists()
        # CRI-O calls the shim with the config that it kept; containerd the primary alone, and the namespace goes.
        assert (0, None) == node.running.call("DEL", "p")
    node.running.configure(
        reconcileInterval=1, install=True, cniConfigDir=str(node.conf), cniBinDir=str(node.shim.parent)
    )
    assert 0 == main(["uninstall", *place, "--drain", "--timeout", "30", "--cni-dir", str(node.folder / "cni"),
                      "--socket-dir", str(node.folder / "run")])  # fmt: skip
    assert [] == node.left()
    assert not node.shim.exists()
    assert 0 == node.running.stop()
    assert not node.shim.exists()


def test_a_node_whose_daemon_was_taken_away_is_cleaned_by_hand(node, capsys):
    """`daemon --once`: waiting DELs are made up for, dead sandboxes released; one that lives is left alone."""
    node.start()
    with namespace() as dead:
        assert 0 == node.call("ADD", "p", "dead", netns=dead)[0]
    assert 0 == node.call("ADD", "p", "lives")[0]
    with namespace() as other:
        assert 0 == node.call("ADD", "p", "spooled", netns=other)[0]
        node.running.stop()
        assert (0, None) == node.call("DEL", "p", "spooled", netns=other)
    assert 1 == len(node.running.spooled())
    command = ["daemon", "--config", str(node.folder / "daemon.json"), "--once"]
    assert 0 == main(command)
    assert "1 sandboxes and 0 waiting DELs are left" in capsys.readouterr().out
    assert [name for name in node.left() if "dead" in name or "spooled" in name] == []
    assert [name for name in node.left() if "lives" in name] != []


def test_once_beside_a_daemon_is_refused(node):
    """The daemon does that work: two would both think that they own the node."""
    node.start()
    assert 1 == main(["daemon", "--config", str(node.folder / "daemon.json"), "--once"])


@pytest.mark.parametrize(("mode", "stays"), [("never", True), ("deleted", True), ("always", False)])
def test_what_stays_when_the_daemon_ends(node, mode, stays):
    """A daemon that is replaced leaves its conf, also when nobody can tell whose pod it is; 'always' takes it away."""
    node.start(removeOnExit=mode)
    assert 0 == node.running.stop()
    assert stays == node.ours.exists()
    assert ["10-cluster.conflist"] == [path.name for path in primary.conf_files(node.conf) if path != node.ours]
    node.start()
    assert node.ours.exists(), "the next daemon installs again"


def test_sandboxes_of_multus_cni_are_deleted_after_the_take_over(node):
    """The runtime kept a config of type multus-shim: our shim under that name, and the delegates file, clean up."""
    former = {"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus-shim", "clusterNetwork": "/x"}
    (node.conf / "00-multus.conf").write_text(json.dumps(former))
    (node.folder / "opt" / "multus-shim").write_bytes(b"the original")
    attached = {"cniVersion": "1.0.0", "name": "snet", "type": "scripted"}
    file = [{"Conf": attached, "ConfList": {}, "Name": "default/s", "ifnameRequest": "net1"}]
    (node.folder / "cni").mkdir()
    (node.folder / "cni" / "old").write_text(json.dumps(file))
    node.start(type="multus-shim")
    assert ["00-multus-shim.conflist", "10-cluster.conflist"] == [path.name for path in primary.conf_files(node.conf)]
    assert executable.is_ours(node.folder / "opt" / "multus-shim")
    assert (0, None) == node.call("DEL", "p", "old", **{"name": "multus-cni-network", "cniVersion": "0.3.1"})
    (call,) = node.running.stage.plugins.calls("scripted", "DEL")
    assert ("old", "net1") == (call["env"]["CNI_CONTAINERID"], call["env"]["CNI_IFNAME"])
    assert not (node.folder / "cni" / "old").exists()
    node.running.stop()
    place = ["--cni-bin-dir", str(node.folder / "opt"), "--cni-conf-dir", str(node.conf), "--name", "multus-shim"]
    assert 0 == main(["uninstall", *place])
    assert b"the original" == (node.folder / "opt" / "multus-shim").read_bytes()
    assert ["00-multus.conf", "10-cluster.conflist"] == [path.name for path in primary.conf_files(node.conf)]


def test_a_chain_that_holds_a_copy_of_us_is_not_wrapped(node):
    """Cilium chained onto whatever it found first copied our conf into its own: no loop, and the reason is said."""
    node.start()
    copied = {"cniVersion": "0.3.1", "name": "copied", "plugins": [*node.first()["plugins"], {"type": "cilium-cni"}]}
    (node.conf / "05-cilium.conflist").write_text(json.dumps(copied))
    shutil.move(node.conf / "10-cluster.conflist", node.conf / "10-cluster.conflist.cilium_bak")
    node.logged("no default network")
    code, error = node.call("ADD", "p", readinessTimeout=0.3)
    assert (1, 11) == (code, error["code"])
    assert "10-cluster.conflist" in error["msg"]
