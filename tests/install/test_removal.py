# SPDX-License-Identifier: Apache-2.0
"""What an uninstall leaves to nobody: the runtime's results of our sandboxes, the word to a daemon that is no more."""

import base64
import json
import threading

import pytest

from multus_py.cli.main import main
from multus_py.install import installation, withdrawal
from multus_py.install.cni_conf import Folders
from multus_py.install.installation import UninstallRequest


@pytest.fixture
def folders(tmp_path):
    """A node's folders, with a conf and a shim of ours in them and a sandbox in the journal."""
    found = Folders(tmp_path / "bin", tmp_path / "net.d")
    for name in ("bin", "net.d", "run", "results", "cni/attachments"):
        (tmp_path / name).mkdir(parents=True)
    (found.conf / "10-cluster.conflist").write_text(json.dumps(conf("cluster", "bridge")))
    place = ["--cni-bin-dir", str(found.bin), "--cni-conf-dir", str(found.conf)]
    words = [*place, "--socket-dir", str(tmp_path / "run"), "--cni-dir", str(tmp_path / "cni")]
    assert 0 == main(["install", *words])
    (tmp_path / "cni/attachments/c1@eth0").touch()
    return found


def conf(name, kind, **more):
    """Return a conf of one plugin."""
    return {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": kind, **more}]}


def kept(path, body, kind="cniCacheV1"):
    """Write a result as libcni keeps it."""
    config = base64.b64encode(json.dumps(body).encode()).decode()
    path.write_text(json.dumps({"kind": kind, "containerId": "c1", "ifName": "eth0", "config": config}))


def test_the_runtimes_results_go_with_the_last_sandbox(folders, tmp_path):
    """Those of our conf, and not before the journal is empty; others' stay, and what cannot be read does."""
    results = tmp_path / "results"
    ours = conf("multus-py", "multus-py", cniDir=str(tmp_path / "cni"))
    kept(results / "ours", ours)
    kept(results / "of another journal", conf("multus-py", "multus-py", cniDir=str(tmp_path / "other")))
    kept(results / "the primary's", conf("cluster", "bridge", cniDir=str(tmp_path / "cni")))
    kept(results / "of another form", ours, kind="cniCacheV9")
    (results / "damaged").write_text('{"kind": "cniCacheV1", "config": "!')
    (results / "no list").write_text("[]")
    before = {path.name for path in results.iterdir()}
    asked = UninstallRequest(folders, cni_dir=tmp_path / "cni", socket_dir=tmp_path / "run", results=results)
    assert 0 == installation.uninstall(asked).results
    assert before == {path.name for path in results.iterdir()}
    (tmp_path / "cni/attachments/c1@eth0").unlink()
    assert 1 == installation.uninstall(asked).results
    assert before - {"ours"} == {path.name for path in results.iterdir()}


def test_a_runtime_that_keeps_no_results(folders, tmp_path):
    """A folder that is not there holds nothing."""
    (tmp_path / "cni/attachments/c1@eth0").unlink()
    asked = UninstallRequest(folders, cni_dir=tmp_path / "cni", socket_dir=tmp_path / "run", results=tmp_path / "none")
    assert 0 == installation.uninstall(asked).results


def test_a_daemon_that_is_no_more_takes_the_word_along(folders, tmp_path):
    """Uninstalled by command, then its DaemonSet goes: the next one on this node installs itself again."""
    asked = UninstallRequest(folders, cni_dir=tmp_path / "cni", socket_dir=tmp_path / "run")
    installation.uninstall(asked)
    assert withdrawal.is_marked(tmp_path / "run")
    installation.uninstall(
        UninstallRequest(folders, cni_dir=tmp_path / "cni", socket_dir=tmp_path / "run", daemon_stays=False)
    )
    assert not withdrawal.is_marked(tmp_path / "run")


def test_drain_goes_on_where_our_conf_said(folders, tmp_path, capsys):
    """The conf is gone after the first round: the second knows its folders still, and all that was removed is told."""

    def end():
        withdrawal.clear(tmp_path / "run")  # who says it again found the folder without the conf
        (tmp_path / "cni/attachments/c1@eth0").unlink()

    capsys.readouterr()
    timer = threading.Timer(0.3, end)
    timer.start()
    place = ["--cni-bin-dir", str(folders.bin), "--cni-conf-dir", str(folders.conf)]
    assert 0 == main(["uninstall", *place, "--drain", "--timeout", "20", "--json"])
    timer.join()
    assert withdrawal.is_marked(tmp_path / "run")
    told = json.loads(capsys.readouterr().out)
    removed = [folders.conf / "00-multus-py.conflist", folders.bin / "multus-py"]
    assert ([str(path) for path in removed], 0) == (told["removed"], told["sandboxes"])
