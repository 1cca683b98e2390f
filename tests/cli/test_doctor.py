# SPDX-License-Identifier: Apache-2.0
"""`multus-py doctor`: problems of a node are found and reported with advice; a sound node is fit."""

import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from threading import Thread

import pytest

from multus_py.cli.doctor import kernel
from multus_py.cli.main import main
from multus_py.cni import conflist
from multus_py.install import shim
from multus_py.kernel import namespaces, netlink
from multus_py.kube.store import PodRef
from multus_py.plan.attachment import Attachment
from multus_py.state import journal
from multus_py.state.journal_entry import Entry, boot_id

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
pytestmark = root_only
CONF = {"cniVersion": "1.0.0", "name": "primary", "plugins": [{"type": "sound", "ipam": {"type": "host-local"}}]}
OURS = {"cniVersion": "1.0.0", "name": "multus-py", "plugins": [{"type": "multus-py", "socketDir": "/run/multus"}]}


class Node:
    """A node's root folder, sound until a test breaks it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys
        self.put("etc/containerd/config.toml", "version = 2\n")
        self.put("etc/cni/net.d/10-primary.conflist", json.dumps(CONF))
        self.put("etc/cni/net.d/00-multus-py.conflist", json.dumps(OURS))
        for name in ("sound", "host-local"):
            self.put(f"opt/cni/bin/{name}", "#!/bin/sh\n").chmod(0o755)
        shutil.copy(shim.path(), root / "opt/cni/bin/multus-py")
        (root / "run/netns").mkdir(parents=True)

    def put(self, path: str, text: str) -> Path:
        """Write a file of the node."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def doctor(self, *words: str) -> tuple[int, dict[str, list[tuple[str, str, str]]]]:
        """Return the exit status, and (area, fact, advice) by level."""
        status = main(["doctor", "--json", "--root", str(self.root), *words])
        report = json.loads(self._capsys.readouterr().out)
        assert report["fit"] == (status == 0)
        found: dict[str, list[tuple[str, str, str]]] = {}
        for each in report["findings"]:
            found.setdefault(each["level"], []).append((each["area"], each["fact"], each["advice"]))
        return status, found


@pytest.fixture
def node(tmp_path, capsys, monkeypatch):
    """A sound node whose daemon is served by a socket of ours; how this machine's own mounts are is not its affair."""
    monkeypatch.setattr("multus_py.cli.doctor.services._NAMESPACES", str(tmp_path / "netns"))
    found = Node(tmp_path / "n", capsys)
    folder = tmp_path / "n/run/multus"
    folder.mkdir(mode=0o700)
    with serving(folder / "multus.sock", {"/healthz": 200, "/readyz": 200}):
        yield found


class serving:  # noqa: N801  it reads as a verb where it is used
    """Answer GETs on a unix socket with the statuses given by path, as long as the block lasts."""

    def __init__(self, path: Path, statuses: dict[str, int]) -> None:
        self._statuses = statuses
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name has at most 107 bytes (unix(7)), a test's folder may have more
        try:
            self._socket.bind(path.name)
        finally:
            os.chdir(here)
        path.chmod(0o600)
        self._socket.listen()
        self._thread = Thread(target=self._serve)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            with line:
                wanted = line.recv(1000).split()[1].decode()
                line.sendall(f"HTTP/1.0 {self._statuses[wanted]} x\r\n\r\n".encode())


def only(found, level="failed"):
    """Return the one finding of a level."""
    (each,) = found[level]
    return each


def test_a_sound_node_is_fit(node):
    """Nothing failed: status 0; kubelet's absence on this root is the one thing to warn of."""
    status, found = node.doctor()
    assert (status, found.get("failed")) == (0, None)
    assert [area for area, _, _ in found["warning"]] == ["kubelet"]
    facts = " ".join(fact for _, fact, _ in found["ok"])
    assert "00-multus-py.conflist is the first conf" in facts
    assert "10-primary.conflist" in facts
    assert "is ready" in facts


def test_a_conf_before_ours_is_found(node):
    """A file that sorts first keeps the runtime from calling us, and nothing else would say so."""
    node.put("etc/cni/net.d/00-before.conf", json.dumps({"cniVersion": "1.0.0", "name": "x", "type": "sound"}))
    status, found = node.doctor()
    assert status == 1
    assert "00-before.conf sorts before 00-multus-py.conflist" in only(found)[1]


def test_a_missing_primary_is_found(node):
    """Without a default network no pod can be attached."""
    (node.root / "etc/cni/net.d/10-primary.conflist").unlink()
    status, found = node.doctor()
    assert status == 1
    assert "no primary network" in only(found)[1]


def test_a_missing_plugin_is_found(node):
    """The primary names an executable that is not there."""
    (node.root / "opt/cni/bin/sound").unlink()
    status, found = node.doctor()
    assert (status, only(found)[0]) == (1, "plugins")
    assert "names the plugin sound" in only(found)[1]


def test_a_missing_executable_that_we_have_inside_is_no_trouble(node):
    """host-local runs inside of multus-py: that no executable is there is worth a note."""
    (node.root / "opt/cni/bin/host-local").unlink()
    status, found = node.doctor()
    assert status == 0
    assert any("host-local" in fact for _, fact, _ in found["note"])


def test_a_shim_for_another_machine_is_found(node):
    """An executable that this kernel cannot run is detected by its ELF header."""
    text = bytearray(shim.path().read_bytes())
    text[18:20] = (8).to_bytes(2, "little")  # MIPS
    (node.root / "opt/cni/bin/multus-py").write_bytes(text)
    status, found = node.doctor()
    assert (status, only(found)[1].partition("is built")[2]) == (1, " for machine 8")


def test_a_shim_of_another_version_is_found(node):
    """A shim that is not ours byte for byte was left by another version."""
    with (node.root / "opt/cni/bin/multus-py").open("ab") as file:
        file.write(b"older")
    status, found = node.doctor()
    assert status == 0
    assert any("not the shim of this version" in fact for _, fact, _ in found["warning"])


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("[plugins.'io.containerd.grpc.v1.cri'.cni]\nmax_conf_num = 0\n", "max_conf_num is 0"),
        ("[plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '/nowhere'\n", "/nowhere is not a folder"),
        ("[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/nowhere'\n", "/nowhere is not a folder"),
    ],
)
def test_a_runtime_that_looks_elsewhere_is_found(node, text, fact):
    """The runtime's own config decides, not what we would like it to be."""
    node.put("etc/containerd/config.toml", f"version = 2\n{text}")
    status, found = node.doctor()
    assert status == 1
    assert any(fact in found_fact for _, found_fact, _ in found["failed"])


def test_cri_o_that_takes_another_network_is_found(node):
    """cni_default_network makes CRI-O pass over our conf."""
    (node.root / "etc/containerd/config.toml").unlink()
    node.put("etc/crio/crio.conf", '[crio.network]\ncni_default_network = "primary"\n')
    status, found = node.doctor()
    assert (status, "cni_default_network" in only(found)[1]) == (1, True)


def test_folders_of_the_options_win(node):
    """--cni-conf-dir and --cni-bin-dir are looked at in place of what was detected."""
    node.put("other/conf/10-x.conflist", json.dumps({**CONF, "plugins": [{"type": "elsewhere"}]}))
    node.put("other/bin/elsewhere", "").chmod(0o755)
    status, found = node.doctor("--cni-conf-dir", "/other/conf", "--cni-bin-dir", "/other/bin")
    assert status == 0
    assert any("/other/conf/10-x.conflist" in fact for _, fact, _ in found["ok"])


def test_our_conf_under_another_name_is_found(node):
    """Another CNI's exclusive mode renames what is not its own."""
    conf = node.root / "etc/cni/net.d/00-multus-py.conflist"
    conf.rename(f"{conf}.cilium_bak")
    status, found = node.doctor()
    assert status == 0
    assert any("somebody renamed our conf" in fact and "exclusive" in advice for _, fact, advice in found["warning"])


def test_another_meta_cni_is_found(node):
    """Two of them on one node call each other, or fight."""
    other = {"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus-shim"}
    node.put("etc/cni/net.d/00-multus.conf", json.dumps(other))
    _, found = node.doctor()
    assert any("another meta-CNI" in fact for _, fact, _ in found["warning"])


def test_a_daemon_that_is_away_is_found(node):
    """Our conf leads to a socket that is not there: no pod can start."""
    (node.root / "run/multus/multus.sock").unlink()
    status, found = node.doctor()
    assert (status, only(found)[0]) == (1, "daemon")


def test_before_the_installation_no_daemon_is_needed(node):
    """As a preflight it says what is still to come, and that the node is fit for it."""
    (node.root / "run/multus/multus.sock").unlink()
    (node.root / "etc/cni/net.d/00-multus-py.conflist").unlink()
    (node.root / "opt/cni/bin/multus-py").unlink()
    status, found = node.doctor()
    assert status == 0
    assert {"confs", "plugins", "daemon"} <= {area for area, _, _ in found["warning"]}


def test_a_dead_socket_is_found(node, tmp_path):
    """A socket file that nobody listens on is what a killed daemon leaves."""
    folder = tmp_path / "n/run/dead"
    folder.mkdir(mode=0o700)
    with serving(folder / "multus.sock", {}):
        pass
    status, found = node.doctor("--socket-dir", "/run/dead")
    assert (status, "no daemon answers" in only(found)[1]) == (1, True)


def test_a_daemon_that_is_not_ready_is_found(node, tmp_path):
    """It lives, and it waits for something: a warning."""
    folder = tmp_path / "n/run/waiting"
    folder.mkdir(mode=0o700)
    with serving(folder / "multus.sock", {"/healthz": 200, "/readyz": 500}):
        status, found = node.doctor("--socket-dir", "/run/waiting")
    assert status == 0
    assert any("not ready: it answers 500" in fact for _, fact, _ in found["warning"])


def test_a_socket_for_everybody_is_found(node):
    """Whoever can write to the socket is root on this node."""
    (node.root / "run/multus").chmod(0o755)
    status, found = node.doctor()
    assert (status, "mode 755" in only(found)[1]) == (1, True)


def test_a_wrong_config_is_found(node, tmp_path):
    """The daemon's file is held against its schema, with a fix for what looks like a typing error."""
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps({"socketDirr": "/run/multus"}))
    _, found = node.doctor("--config", str(path))
    findings = [each for level in found.values() for each in level if each[0] == "config"]
    assert [("socketDirr" in fact, "socketDir" in advice) for _, fact, advice in findings] == [(True, True)]


def test_a_config_that_is_no_json_is_an_error(node, tmp_path, capsys):
    """Without its config there is nothing to look at: one line, status 1."""
    path = tmp_path / "daemon.json"
    path.write_text("{")
    assert main(["doctor", "--root", str(node.root), "--config", str(path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_stale_journal_pages_are_found(node):
    """A sandbox whose namespace is gone is found, a running one is not; a damaged journal file is reported."""
    book = journal.Journal(node.root / "var/lib/cni/multus/attachments")
    body = conflist.parse({"cniVersion": "1.0.0", "name": "n", "type": "t"})
    attachment = Attachment("n", body, "eth0", primary=True, args=(), capabilities={}, default_route=None)
    (node.root / "run/netns/alive").touch()
    for name, boot in (
        ("alive", boot_id()),
        ("gone", boot_id()),
        ("rebooted", "another boot"),
    ):
        netns = "/run/netns/alive" if name == "rebooted" else f"/run/netns/{name}"
        with book.lock_sandbox(name, "eth0") as page:
            page.write(Entry("multus-py", name, "eth0", netns, (attachment,), PodRef("ns", name), boot))
    (book.folder / "broken@eth0").write_text("{}")
    status, found = node.doctor()
    facts = [fact for area, fact, _ in found["warning"] if area == "journal"]
    assert status == 0
    assert [word for word in ("broken", "gone", "rebooted") if any(word in fact for fact in facts)] == [
        "broken", "gone", "rebooted"]  # fmt: skip
    assert len(facts) == 3
    assert ("journal", "1 sandboxes are attached", "") in found["ok"]


def test_deletes_that_nobody_replays_are_found(node):
    """A fresh tombstone is the daemon's everyday work, an old one is trouble, a damaged one needs a person."""
    fresh = node.put("var/lib/cni/multus/spool/1-a-eth0.json", "{}")
    _, found = node.doctor()
    assert ("spool", "1 DELs wait to be replayed", "") in found["ok"]
    os.utime(fresh, (time.time() - 1000, time.time() - 1000))
    node.put("var/lib/cni/multus/spool/2-b-eth0.json.damaged", "")
    _, found = node.doctor()
    facts = " ".join(fact for area, fact, _ in found["warning"] if area == "spool")
    assert "1 of 1 DELs wait for longer than 5 minutes" in facts
    assert "2-b-eth0.json.damaged" in facts


def test_kinds_of_links_are_those_of_this_kernel():
    """Each reported kind can be created in a namespace of the test."""
    found = kernel.kinds()
    path = f"/run/netns/mpt{os.getpid()}doctor"
    namespaces.create(path)
    try:
        with netlink.open(path) as inside:
            inside.create_bridge("b", vlan_filtering=False)
            inside.create_veth("v", "w")
            inside.create_macvlan("m", inside.link("v").index, "bridge")
    finally:
        namespaces.remove(path)
    assert {"bridge", "veth", "macvlan"} <= found
    assert found <= {kind.name for kind in kernel.KINDS} | {"bridge VLAN filtering"}


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    """The namespace in which links are tried is gone, and so are its mount and its folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kernel.kinds()
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_for_people_it_is_a_table(node, capsys):
    """A line for each finding, the remedy below it, the verdict last."""
    assert main(["doctor", "--root", str(node.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok")
    assert lines[-1] == "this node is fit"
    assert any(line.strip().startswith("-> ") for line in lines)


def test_this_machine_can_be_looked_at(capsys):
    """Without a word it looks at the machine that it runs on, whatever is wrong with it."""
    assert main(["doctor"]) in (0, 1)
    areas = {line.split()[1] for line in capsys.readouterr().out.splitlines() if line and not line.startswith(" ")}
    assert {"versions", "privileges", "kernel", "journal", "spool"} <= areas
