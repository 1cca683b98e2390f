# SPDX-License-Identifier: Apache-2.0
"""`multus-py forget`, and how `status`, `doctor`, `uninstall` and `daemon --once` report what stays."""

import json

import pytest
from stage import Stage, namespace

from multus_py.cli.main import main
from multus_py.cni.errors import CniError
from multus_py.install import installation
from multus_py.state import journal_entry

NO = {"error": {"code": 100, "msg": "scripted no"}}


@pytest.fixture
def stage(tmp_path):
    """A sandbox whose second network failed and cannot be cleaned up; the runtime's DEL has passed."""
    with namespace() as pod:
        ipam = {"type": "host-local", "subnet": "10.9.0.0/24"}
        cluster = {"cniVersion": "1.0.0", "name": "cluster", "type": "first"}
        stage = Stage(tmp_path, pod, {"delegates": [cluster]})
        stage.plugins.plugin("first")
        stage.plugins.plugin("one", ADD=NO, DEL=NO)
        stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": "one", "ipam": ipam})
        stage.pod("p", "x")
        with pytest.raises(CniError):
            stage.run("ADD", "p", container="c1234567890abcdef")
        stage.run("DEL", "p", container="c1234567890abcdef", netns="")
        yield stage


def run(stage: Stage, *words: str) -> int:
    """Run a command on the stage's cniDir."""
    return main([*words, "--cni-dir", str(stage.folder / "cni")])


def test_what_stays_is_listed_with_its_reason(stage, capsys):
    """status: exit code 1, the network, the number of tries, the plugin's error message."""
    assert 1 == run(stage, "status", "--json")
    (sandbox,) = json.loads(capsys.readouterr().out)
    (failed,) = sandbox["failed"]
    assert ("net1", "default/x", 2, False) == tuple(failed[key] for key in ("ifname", "network", "tries", "final"))
    assert "scripted no" in failed["reason"]
    assert 1 == run(stage, "status")
    assert "never came to be, DEL failed 2 times, it is tried again" in capsys.readouterr().out


def test_doctor_names_the_way_out(stage, capsys, tmp_path):
    """The reason, the next try, and the command that removes it."""
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps({"cniDir": str(stage.folder / "cni")}))
    main(["doctor", "--config", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    (finding,) = [one for one in found if "never came to be" in one["fact"]]
    assert ("warning", "journal", True, True) == (
        finding["level"], finding["area"], "scripted no" in finding["fact"],
        "multus-py forget c1234567890abcdef" in finding["advice"],
    )  # fmt: skip


def test_it_shows_what_may_leak_and_drops_it(stage, capsys):
    """A dry run changes nothing; a prefix of the container id is enough."""
    assert 0 == run(stage, "forget", "c1234", "--dry-run", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert ("c1234567890abcdef@eth0", False, ["one"], "host-local") == (
        shown["sandbox"], shown["dropped"], shown["mayLeak"][0]["plugins"], shown["mayLeak"][0]["ipam"],
    )  # fmt: skip
    assert stage.node().journal.sandboxes()
    assert 0 == run(stage, "forget", "c1234567890abcdef@eth0")
    said = capsys.readouterr().out
    assert ("network default/x as net1, plugins one" in said, "DEL: " in said) == (True, True)
    assert [] == stage.node().journal.sandboxes()


def test_it_refuses_what_lives_and_what_is_not_there(stage, capsys):
    """A running sandbox is refused, as is an id that matches none or several."""
    stage.plugins.plugin("one")
    stage.run("ADD", "p", container="living")
    for words, said in ((["living"], "lives"), (["nobody"], "is not there"), (["c", "--dry-run"], "")):
        assert (1 if said else 0) == run(stage, "forget", *words)
        assert said in capsys.readouterr().err
    stage.pod("q")
    stage.run("ADD", "q", container="c9")
    assert 1 == run(stage, "forget", "c")
    assert "means 2" in capsys.readouterr().err
    assert 0 == run(stage, "forget", "living", "--force")
    assert ["c1234567890abcdef", "c9"] == sorted(one for one, _ in stage.node().journal.sandboxes())
    assert not list((stage.folder / "cni/results").glob("*living*"))


def test_of_a_sandbox_that_lives_only_what_failed_is_dropped(stage, capsys):
    """Its attachments are not changed."""
    stage.plugins.plugin("one")
    stage.run("ADD", "p", container="c1234567890abcdef")
    with stage.node().journal.lock_sandbox("c1234567890abcdef", "eth0") as page:
        failure = journal_entry.Failure(page.entry.attachments[1], 1, "left from a try before")
        page.write(type(page.entry)(**{**page.entry.__dict__, "failures": (failure,)}))
    assert 0 == run(stage, "forget", "c1234567890abcdef")
    entry = stage.node().journal.read("c1234567890abcdef", "eth0")
    assert (2, ()) == (len(entry.attachments), entry.failures)


def test_nobody_waits_for_it(stage):
    """`uninstall --drain` does not wait for failed networks."""
    left = installation.remaining(stage.folder / "cni")
    assert (False, 0, 1) == (bool(left), left.sandboxes, left.failures)


def test_once_says_what_it_could_not_release(stage, capsys, tmp_path):
    """`daemon --once` with something left is exit status 1."""
    settings = {key: value for key, value in stage.config().items() if key not in ("cniVersion", "name", "type")}

    def once(name: str) -> int:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**settings, "socketDir": str(tmp_path / name)}))
        return main(["daemon", "--once", "--config", str(path)])

    assert 1 == once("first")
    assert "1 networks never came to be" in capsys.readouterr().out
    stage.plugins.plugin("one")
    assert 0 == once("second")
    assert [] == stage.node().journal.sandboxes()


def test_a_damaged_page_of_a_living_sandbox_stays(stage, capsys):
    """Its cached results show that it is running: nothing is removed without --force."""
    stage.plugins.plugin("one")
    stage.run("ADD", "p", container="living")
    (stage.folder / "cni/attachments/living@eth0").write_text("nonsense")
    assert 1 == run(stage, "forget", "living")
    assert "lives" in capsys.readouterr().err
    assert 2 == len([path for path in (stage.folder / "cni/results").iterdir() if "living" in path.name])
    assert 0 == run(stage, "forget", "living", "--force")
