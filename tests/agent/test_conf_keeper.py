# SPDX-License-Identifier: Apache-2.0
"""The daemon's look at the conf folder, second by second: real folders, a clock that the test moves."""

import json
import os
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest

from multus_py.agent.node import default_network
from multus_py.agent.node.conf_keeper import Backoff, Callbacks, ConfKeeper, Installation
from multus_py.agent.node.default_network import Clock, Found
from multus_py.install import executable, primary, shim, withdrawal
from multus_py.install.cni_conf import Folders, InstallSpec


def conflist(name, *types, **more):
    """Return a conf of plugins of these types."""
    return {"cniVersion": "0.3.1", "name": name, "plugins": [{"type": kind, **more} for kind in types]}


@dataclass
class Stand:
    """A node's folders, a keeper of our conf there, what it reported, and the time."""

    root: Path
    order: InstallSpec
    found: list[Found] = field(default_factory=list)
    happened: list[tuple[str, str]] = field(default_factory=list)
    put_back: list[float] = field(default_factory=list)
    now: float = 1000.0
    day: float = 0.0

    def __post_init__(self):
        callbacks = Callbacks(self.found.append, self._hear)
        self.keeper = ConfKeeper(
            Installation(self.order, self.root / "run"), callbacks, Clock(lambda: self.now, lambda: self.now + self.day)
        )

    def _hear(self, kind, reason, words):
        self.happened.append((kind, words))
        self.put_back += [self.now] if kind == "conf_put_back" else []

    @property
    def conf(self):
        return self.root / "net.d"

    def put(self, name, body, age=100.0):
        """Write a conf whole; *age* is how long ago, in seconds of this stand's clock."""
        path = self.conf / name
        path.write_text(body if isinstance(body, str) else json.dumps(body))
        os.utime(path, (self.now - age, self.now - age))
        return path

    def look(self, seconds=0.0, step=1.0):
        """Look now, and every *step* seconds until *seconds* are over."""
        end = self.now + seconds
        self.keeper.check()
        while self.now < end:
            self.now += step
            self.keeper.check()

    def kinds(self):
        return [kind for kind, _ in self.happened]

    def written(self):
        """Return the one plugin of our conf, None without a conf."""
        target = self.order.target
        return json.loads(target.read_text())["plugins"][0] if target.exists() else None


@pytest.fixture
def stand(tmp_path):
    """A node without any conf yet."""
    for name in ("bin", "net.d", "run"):
        (tmp_path / name).mkdir()
    return Stand(tmp_path, InstallSpec(Folders(tmp_path / "bin", tmp_path / "net.d"), keys={"socketDir": "/run/x"}))


def test_nothing_is_written_before_there_is_a_primary(stand):
    """A conf of ours alone would have the node look ready; the obstacle is told once, and gone when a conf comes."""
    stand.look(5)
    assert (stand.written(), len(stand.found)) == (None, 1)
    assert "no primary network is configured" in stand.found[-1].obstacle
    path = stand.put("10-flannel.conflist", conflist("cbr0", "flannel"))
    stand.look(1)
    assert ("", path) == (stand.found[-1].obstacle, stand.found[-1].conf.path)
    assert str(path) == stand.written()["clusterNetwork"]
    assert ["conf_written"] == stand.kinds()


def test_what_does_not_change_is_not_written_again(stand):
    """A runtime loads every conf again when one is written: ours is left alone as long as it is right."""
    stand.put("10-a.conf", {"cniVersion": "0.3.1", "name": "a", "type": "ptp"})
    stand.look()
    inode = stand.order.target.stat().st_ino
    stand.look(100)
    assert inode == stand.order.target.stat().st_ino
    assert ["conf_written"] == stand.kinds()


def test_a_conf_that_is_regenerated_brings_its_capabilities(stand):
    """The primary's owner adds a chained plugin: the runtime is told of its capabilities at the next look."""
    stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.look()
    assert "capabilities" not in stand.written()
    stand.put("10-a.conflist", conflist("a", "ptp", "portmap", capabilities={"portMappings": True}))
    stand.look(1)
    assert {"portMappings": True} == stand.written()["capabilities"]


def test_a_primary_that_vanishes_is_waited_for(stand):
    """GKE's watchdog takes the conf away: ours stays, no other network is taken meanwhile, and all is well again."""
    stand.put("10-gke-ptp.conflist", conflist("gke", "ptp"))
    stand.put("87-podman.conflist", conflist("podman", "bridge"))
    stand.look()
    (stand.conf / "10-gke-ptp.conflist").unlink()
    stand.look(20)
    assert (None, "10-gke-ptp.conflist is not there" in stand.found[-1].obstacle) == (stand.found[-1].conf, True)
    assert "10-gke-ptp" in stand.written()["clusterNetwork"]
    stand.put("10-gke-ptp.conflist", conflist("gke", "ptp"))
    stand.look(1)
    assert ("", "gke") == (stand.found[-1].obstacle, stand.found[-1].conf.body["name"])
    assert 3 == len(stand.found)


def test_a_primary_that_stays_away_is_given_up(stand):
    """When another network was installed in its place, that one is taken after a minute."""
    stand.put("10-calico.conflist", conflist("calico", "calico"))
    stand.look()
    (stand.conf / "10-calico.conflist").unlink()
    stand.put("10-flannel.conflist", conflist("flannel", "flannel"))
    stand.look(default_network.GRACE - 1)
    assert None is stand.found[-1].conf
    stand.look(2)
    assert "flannel" == stand.found[-1].conf.body["name"]
    assert "10-flannel" in stand.written()["clusterNetwork"]


def test_short_absences_do_not_add_up(stand):
    """A minute away is a minute without a break."""
    path = stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.put("20-b.conflist", conflist("b", "bridge"))
    stand.look()
    for _ in range(4):
        path.unlink()
        stand.look(default_network.GRACE / 2)
        stand.put("10-a.conflist", conflist("a", "ptp"))
        stand.look(1)
    assert {"a"} == {found.conf.body["name"] for found in stand.found if found.conf}


def test_a_network_that_comes_in_front_is_taken_at_once(stand):
    """Cilium installed over flannel writes 05-cilium.conflist: without us the runtime would call it now."""
    stand.put("10-flannel.conflist", conflist("cbr0", "flannel"))
    stand.look()
    stand.put("05-cilium.conflist", conflist("cilium", "cilium-cni"))
    stand.look(1)
    assert "cilium" == stand.found[-1].conf.body["name"]


def test_a_conf_that_is_being_written_is_waited_for(stand):
    """Calico's conf is not written in one step: half of it neither hides it nor has a later one taken instead."""
    stand.put("20-later.conflist", conflist("later", "bridge"))
    stand.put("10-calico.conflist", '{"cniVersion": "0.3.1", "na', age=0)
    stand.look(default_network.FRESH - 2)
    assert "is being written" in stand.found[-1].obstacle
    stand.put("10-calico.conflist", conflist("k8s", "calico"), age=0)
    stand.look(1)
    assert "k8s" == stand.found[-1].conf.body["name"]
    stand.put("10-calico.conflist", "{", age=0)
    stand.look(1)
    assert "10-calico.conflist" in stand.found[-1].obstacle
    stand.put("10-calico.conflist", conflist("k8s", "calico"), age=0)
    stand.look(1)
    assert "" == stand.found[-1].obstacle


def test_a_broken_file_does_not_hide_the_others_for_ever(stand):
    """Half a file that nobody finishes is passed over."""
    stand.put("05-left.conflist", "{ half", age=3600)
    stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.look()
    assert "a" == stand.found[-1].conf.body["name"]


def test_we_never_wrap_ourselves(stand):
    """Ours, multus-cni's, and a chain into which another CNI copied ours are passed over, whatever they are called."""
    stand.put("05-cilium.conflist", conflist("copied", "multus-py", "cilium-cni"))
    stand.put("06-thin.conf", {"cniVersion": "0.3.1", "name": "m", "type": "renamed", "delegates": []})
    stand.look(1)
    assert "05-cilium.conflist is a meta-CNI's own conf" in stand.found[-1].obstacle
    assert None is stand.written()
    stand.put("10-aws.conflist", conflist("aws-cni", "aws-cni"))
    stand.look(1)
    assert "aws-cni" == stand.found[-1].conf.body["name"]


def test_the_one_that_was_named_is_the_only_one(stand):
    """multusMasterCNI: no other conf is taken, now or later."""
    named = stand.conf / "30-named.conflist"
    stand.keeper.installation = replace(stand.keeper.installation, order=replace(stand.order, primary=named))
    stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.look(200)
    assert "30-named.conflist" in stand.found[-1].obstacle
    stand.put("30-named.conflist", conflist("named", "ptp"))
    stand.look(1)
    assert str(named) == stand.written()["clusterNetwork"]


def test_exclusive_renames_are_answered_without_a_fight(stand):
    """Each rename by Cilium is undone; after five in a minute with pauses that double, and the words say what to do."""
    stand.put("05-cilium.conflist", conflist("cilium", "cilium-cni"))
    stand.look()
    target = stand.order.target
    for _ in range(1200):
        if target.exists():
            target.rename(target.with_name(target.name + ".cilium_bak"))
        stand.look(1)
    gaps = [later - earlier for earlier, later in pairwise(stand.put_back)]
    assert gaps == [1, 1, 1, 1, 10, 20, 40, 80, 160, 300, 300]
    told = [words for kind, words in stand.happened if kind == "conf_put_back"]
    assert "renamed to 00-multus-py.conflist.cilium_bak by somebody and put back" in told[0]
    assert "cni.exclusive=false" not in told[0]
    assert "cni.exclusive=false" in told[-1]
    assert len(list(stand.conf.glob("*.cilium_bak"))) <= 1


def test_after_a_quiet_time_patience_is_back(stand):
    """Who is left alone for a while answers the next rename at once."""
    stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.look()
    for _ in range(8):
        stand.order.target.unlink(missing_ok=True)
        stand.look(1)
    stand.look(Backoff.LONGEST + Backoff.WINDOW + 60)
    stand.order.target.unlink()
    stand.look(1)
    assert stand.order.target.exists()


def test_a_conf_that_somebody_wrote_over_is_put_back(stand):
    """Another file under our name would have the runtime call somebody else."""
    stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.look()
    stand.order.target.write_text(json.dumps(conflist("x", "bridge")))
    stand.look(1)
    assert "multus-py" == stand.written()["type"]
    assert ["conf_written", "conf_put_back"] == stand.kinds()


def test_one_that_sorts_before_ours_is_told_of_once(stand):
    """The runtime calls the first conf by name: we cannot know of it in any other way."""
    stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.put("00-aaa.conf", {"cniVersion": "0.3.1", "name": "x", "type": "bridge"})
    stand.look(5)
    assert 1 == stand.kinds().count("conf_overtaken")
    assert "00-aaa.conf sorts before" in dict(stand.happened)["conf_overtaken"]


def test_a_withdrawal_is_respected_and_the_network_goes_on(stand):
    """After uninstall nothing is put back, while ADDs under way still know the default network; install ends it."""
    stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.look()
    withdrawal.mark(stand.root / "run")
    stand.order.target.unlink()
    stand.look(30)
    assert (None, "a") == (stand.written(), stand.found[-1].conf.body["name"])
    withdrawal.clear(stand.root / "run")
    stand.look(1)
    assert "multus-py" == stand.written()["type"]
    assert "conf_put_back" not in stand.kinds()


def test_the_shim_is_kept_in_place(stand):
    """With a folder for it the shim is placed, replaced when it is another, and placed again when it is removed."""
    program = replace(executable.shim_for(), runs_here=False)
    stand.keeper.installation = replace(stand.keeper.installation, program=program)
    stand.look()
    target = stand.root / "bin" / "multus-py"
    assert shim.path().read_bytes() == target.read_bytes()
    target.unlink()
    stand.look(1)
    target.write_bytes(shim.path().read_bytes() + b"older")
    stand.look(1)
    assert shim.path().read_bytes() == target.read_bytes()
    assert 3 == stand.kinds().count("shim_placed")


def test_multus_cnis_conf_is_set_aside_and_a_named_folder_is_looked_in(stand):
    """A node is taken over by the daemon alone; the primary may stand in a folder of its own (OpenShift)."""
    stand.put("00-multus.conf", {"cniVersion": "0.3.1", "name": "m", "type": "multus-shim", "clusterNetwork": "/x"})
    elsewhere = stand.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "10-ovn.conf").write_text(json.dumps({"cniVersion": "0.4.0", "name": "ovn", "type": "ovn-k8s"}))
    stand.keeper.installation = replace(stand.keeper.installation, order=replace(stand.order, search_folder=elsewhere))
    stand.look(1)
    assert str(elsewhere / "10-ovn.conf") == stand.written()["clusterNetwork"]
    assert ["00-multus-py.conflist"] == [path.name for path in primary.conf_files(stand.conf)]


def test_a_network_that_the_config_names_needs_no_file(stand):
    """clusterNetwork by the name of a definition, or inline delegates: our conf is written at once."""
    stand.keeper.installation = replace(stand.keeper.installation, order=replace(stand.order, wraps_primary=False))
    stand.look(1)
    assert ([], {"type": "multus-py", "socketDir": "/run/x"}) == (stand.found, stand.written())


def test_a_folder_that_is_missing_is_told_and_used_when_it_comes(stand):
    """The conf folder of a fresh node may be made by the network's own installer."""
    stand.conf.rmdir()
    stand.look(3)
    assert "cannot read the conf folder" in stand.found[-1].obstacle
    stand.conf.mkdir()
    stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.look(1)
    assert "" == stand.found[-1].obstacle
    assert None is not stand.written()


def test_a_target_that_cannot_be_written_is_told_once_and_tried_again(stand):
    """A folder under our conf's name stands for a disk that refuses: one line, one count, and all well when it goes."""
    stand.put("10-a.conflist", conflist("a", "ptp"))
    stand.order.target.mkdir()
    (stand.order.target / "x").touch()
    stand.look(10)
    assert ["install_failed"] == stand.kinds()
    (stand.order.target / "x").unlink()
    stand.order.target.rmdir()
    stand.look(1)
    assert ["install_failed", "conf_written"] == stand.kinds()
    assert [] == [path for path in stand.conf.iterdir() if path.name.startswith(".")]
