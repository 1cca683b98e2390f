# SPDX-License-Identifier: Apache-2.0
"""What fuzzing found, each by the example that showed it."""

import json
import os
import signal
import socket
from binascii import crc32
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import Faulty
from running import Running
from stage import Stage, namespace

from multus_py.agent.reconciling.reconciler import Reconciler
from multus_py.cni import conflist
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code, try_step
from multus_py.plan.attachment import Attachment, pod_ref
from multus_py.state import journal, journal_entry, takeover
from multus_py.state.journal_entry import Entry, Failure, Progress
from multus_py.state.spool import Spool
from multus_py.verbs import plugins, teardown

NETWORK = {"cniVersion": "1.0.0", "name": "n", "type": "scripted"}


@pytest.fixture
def stage(tmp_path: Path):
    """Return a node with one scripted plugin, and a pod's namespace."""
    with namespace() as netns:
        made = Stage(tmp_path, netns, {"delegates": [NETWORK]})
        made.plugins.plugin("scripted")
        yield made


@pytest.fixture
def running_daemon(stage: Stage):
    """Return the socket of a daemon."""
    running = Running(stage, stage.netns)
    running.start()
    try:
        yield running.socket
    finally:
        running.stop(signal.SIGKILL)


def test_a_signal_without_a_name(stage: Stage) -> None:
    """A plugin that a real-time signal ended is told as any other that was, and does not hold DEL up."""
    stage.plugins.plugin("scripted", ADD={"signal": signal.SIGRTMIN + 6}, DEL={"signal": signal.SIGRTMIN + 6})
    with pytest.raises(CniError, match=f"ended by signal {signal.SIGRTMIN + 6}"):
        stage.run("ADD")
    stage.run("DEL")


@pytest.mark.parametrize("error", ["SystemExit", "Unspeakable"])
def test_a_delegate_that_leaves_or_has_no_words(tmp_path: Path, faulty: Faulty, error: str) -> None:
    """A delegate that calls sys.exit, or whose error fails at being told, is an error of that plugin."""
    network = {"cniVersion": "1.0.0", "name": "n", "type": "faulty", "raises": {"ADD": error, "DEL": error}}
    with namespace() as netns:
        stage = Stage(tmp_path, netns, {"delegates": [network]})
        with pytest.raises(CniError, match=r"plugin faulty: internal error: \w+"):
            stage.run("ADD")
        stage.run("DEL")


def test_a_delegate_that_cannot_be_imported(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose delegate does not load is an error that names the plugin, and keeps no DEL from its end."""
    monkeypatch.setitem(plugins.NATIVE, "broken", "mpt_no_such_module")
    network = {"cniVersion": "1.0.0", "name": "n", "type": "broken"}
    with pytest.raises(CniError, match="plugin broken: internal error: ModuleNotFoundError"):
        stage.run("ADD", delegates=[network])
    stage.run("DEL", delegates=[network])


def test_a_type_that_is_no_text(stage: Stage) -> None:
    """A type of another kind is refused with its place."""
    with pytest.raises(CniError, match="'type' is missing") as told:
        stage.run("ADD", delegates=[{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": []}]}])
    assert told.value.code == Code.INVALID_CONFIG


def test_half_a_pair_in_bytes() -> None:
    """Half a surrogate pair is no text, however it is written; Go's decoder has U+FFFD for it, too."""
    assert "\ufffd" in json_object(b'{"cniDir": "/\xed\xa0\x80"}')["cniDir"]


def test_a_file_where_the_journal_should_be(stage: Stage) -> None:
    """ADD and GC say that the journal cannot be opened."""
    (stage.folder / "cni").mkdir()
    (stage.folder / "cni" / "attachments").write_text("")
    for verb in ("ADD", "GC"):
        with pytest.raises(CniError, match="journal"):
            stage.run(verb, **({"cni.dev/valid-attachments": []} if verb == "GC" else {}))


@pytest.mark.timeout(20)
def test_a_page_that_leads_nowhere(stage: Stage) -> None:
    """A link in place of a page is an error, not a loop."""
    (stage.folder / "cni" / "attachments").mkdir(parents=True)
    (stage.folder / "cni" / "attachments" / "c1@eth0").symlink_to("nowhere")
    with pytest.raises(CniError, match="cannot open the journal"):
        stage.run("ADD")


def test_a_file_where_the_results_should_be(stage: Stage) -> None:
    """DEL goes on without the kept results."""
    stage.run("ADD")
    results = stage.folder / "cni" / "results"
    for path in results.iterdir():
        path.unlink()
    results.rmdir()
    results.write_text("")
    try_step(lambda: stage.run("DEL"))
    assert stage.plugins.held() == []


@pytest.mark.timeout(20)
def test_pipes_are_not_waited_for(stage: Stage) -> None:
    """A pipe in place of a delegates file, a kept result or a tombstone holds nobody up."""
    stage.run("ADD")
    (stage.folder / "spool").mkdir()
    for name in ("cni/c1", "cni/results/n-c1-eth9", "spool/1.json"):
        os.mkfifo(stage.folder / name)
    stage.run("DEL")
    Reconciler(Spool(stage.folder / "spool"), lambda tombstone: None, lambda what: None).replay_all()
    assert stage.plugins.held() == []


def test_a_delegates_file_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told with its name."""
    (tmp_path / "c1").write_text("[]")

    def refuse(*_args: object, **_more: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CniError, match="cannot remove the delegates file"):
        takeover.remove(tmp_path, "c1")


def test_a_pod_whose_name_is_no_text(stage: Stage) -> None:
    """A pod name of any bytes is one that the store does not know."""
    stage.pod("p")
    call = replace(stage.call("ADD"), args=(("K8S_POD_NAME", os.fsdecode(b"\xff")),))
    ref = pod_ref(call)
    assert ref
    with pytest.raises(CniError):
        stage.node().store.pod(ref)


@pytest.mark.parametrize("key", ["since", "netns", "network"])
def test_a_page_of_another_shape(tmp_path: Path, key: str) -> None:
    """A page whose seal is right and whose words are not counts as damaged."""
    body = {"format": 2, "network": "mp", "containerId": "c", "ifName": "eth0", "netns": "", "boot": "", "pod": None,
            "attachments": [], "progress": {}, "since": 0.0, key: 10**400}  # fmt: skip
    text = json.dumps(body).encode()
    (tmp_path / "c@eth0").write_bytes(b"3 %08x %s\n" % (crc32(text), text))
    with pytest.raises(journal_entry.DamagedEntry):
        journal.Journal(tmp_path).read("c", "eth0")


def test_the_words_of_a_failure_are_of_any_signs(stage: Stage) -> None:
    """What a plugin says, zero bytes and half pairs too, does not make the page damaged that keeps it."""
    attachment = Attachment("default/n", conflist.parse(NETWORK), "eth0", primary=True)
    failure = Failure(attachment, 1, "said \0 and \ud800")
    entry = Entry("mp", "c1", "eth0", "", (), None, journal_entry.boot_id(), {"eth0": Progress(1, 0)}, (failure,))
    with stage.node().journal.lock_sandbox("c1", "eth0") as page:
        page.write(entry)
    assert stage.node().journal.read("c1", "eth0").failures == (failure,)


def test_a_plugin_that_says_zero_bytes(stage: Stage) -> None:
    """Its failure stays readable in the journal, and is tried again."""
    said = {"cniVersion": "1.0.0", "code": 5, "msg": "zero \0 byte"}
    stage.plugins.plugin("scripted", ADD={"error": said}, DEL={"error": said})
    with pytest.raises(CniError):
        stage.run("ADD")
    assert "\0" in stage.node().journal.read("c1", "eth0").failures[0].reason
    stage.plugins.plugin("scripted")
    with stage.node().journal.lock_sandbox("c1", "eth0") as page:
        assert teardown.detach_sandbox(page, stage.call("DEL"), stage.node()) == ()


def test_a_length_of_thousands_of_digits(running_daemon: Path) -> None:
    """The socket answers that it is too large."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(20)
        line.connect(str(running_daemon))
        line.sendall(b"POST /cni HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.0 413 ")


def test_version_of_a_delegate_request(running_daemon: Path) -> None:
    """VERSION has no network, on either path."""
    body = json.dumps({"env": {"CNI_COMMAND": "VERSION"}, "config": ""}).encode()
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(20)
        line.connect(str(running_daemon))
        line.sendall(b"POST /delegate HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert line.recv(100).startswith(b"HTTP/1.0 200 ")
