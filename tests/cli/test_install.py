# SPDX-License-Identifier: Apache-2.0
"""`install` and `uninstall`: the launcher that any runtime can start, and the conf that wraps the primary's."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multus_py.cli.main import main
from multus_py.cni.errors import CniError
from multus_py.entry import install

PRIMARY = {
    "cniVersion": "0.3.1",
    "name": "cbr0",
    "plugins": [
        {"type": "flannel", "delegate": {"isDefaultGateway": True}},
        {"type": "portmap", "capabilities": {"portMappings": True, "bandwidth": False}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ],
}


@pytest.fixture
def folders(tmp_path: Path) -> install.Folders:
    """A node's two CNI folders with a primary in _place, and a folder of manifests beside them."""
    for name in ("bin", "net.d", "manifests"):
        (tmp_path / name).mkdir()
    _write(tmp_path / "net.d" / "10-flannel.conflist", PRIMARY)
    return install.Folders(tmp_path / "bin", tmp_path / "net.d")


@pytest.fixture
def words(folders: install.Folders) -> list[str]:
    """The words of a plain `install`."""
    manifests = folders.bin.parent / "manifests"
    return ["install", *_place(folders), "--manifests", str(manifests)]


def _place(folders: install.Folders) -> list[str]:
    return ["--standalone", "--cni-bin-dir", str(folders.bin), "--cni-conf-dir", str(folders.conf)]


def _write(path: Path, body: object) -> Path:
    path.write_text(json.dumps(body))
    return path


def _written(folders: install.Folders, name: str = "multus-py") -> dict[str, object]:
    return json.loads((folders.conf / f"00-{name}.conflist").read_text())


def test_the_conf_wraps_the_primary_and_offers_every_version(folders: install.Folders, words: list[str]) -> None:
    """A runtime of CNI 1.1 finds 1.1.0 on offer, an older one reads 1.0.0; the primary is named by its path."""
    assert main(words) == 0
    conf = _written(folders)
    assert (conf["cniVersion"], conf["cniVersions"]) == ("1.0.0", ["0.4.0", "1.0.0", "1.1.0"])
    assert conf["name"] == "multus-py"
    assert conf["plugins"] == [
        {
            "type": "multus-py",
            "clusterNetwork": str(folders.conf / "10-flannel.conflist"),
            "binDir": str(folders.bin),
            "manifests": str(folders.bin.parent / "manifests"),
            "capabilities": {"portMappings": True, "bandwidth": True},
        }
    ]
    assert (folders.conf / "00-multus-py.conflist").stat().st_mode & 0o777 == 0o600


def test_the_launcher_answers_version_with_an_empty_environment(folders: install.Folders, words: list[str]) -> None:
    """A runtime hands its plugins nothing but CNI_*: no PATH, no HOME, no virtual environment."""
    assert main(words) == 0
    done = subprocess.run(
        [folders.bin / "multus-py"], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


def test_a_launcher_for_an_interpreter_whose_path_has_blanks_starts(tmp_path: Path) -> None:
    """The kernel ends a shebang's interpreter at a blank, so a shell starts it instead."""
    folder = tmp_path / "with blanks"
    folder.mkdir()
    interpreter = folder / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    launcher = tmp_path / "launcher"
    launcher.write_text(install.launcher_text(str(interpreter)))
    launcher.chmod(0o755)
    done = subprocess.run([launcher], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"supportedVersions" in done.stdout


@pytest.mark.parametrize(("path", "first"), [("/usr/bin/python3", "#!/usr/bin/python3 -I"), ("/x" * 80, "#!/bin/sh")])
def test_a_shebang_that_the_kernel_would_cut_is_not_written(path: str, first: str) -> None:
    """Kernels before 5.1 read 128 bytes of a script's first line."""
    assert install.launcher_text(path).splitlines()[0] == first


def test_installing_twice_changes_nothing_and_leaves_no_other_file(folders: install.Folders, words: list[str]) -> None:
    """The launcher that is there stays the same file, so that a runtime never meets a missing one."""
    assert main(words) == 0
    launcher = (folders.bin / "multus-py").stat().st_ino
    first = _written(folders)
    assert main(words) == 0
    assert _written(folders) == first
    assert (folders.bin / "multus-py").stat().st_ino == launcher
    assert sorted(path.name for path in folders.bin.iterdir()) == ["multus-py"]
    assert sorted(path.name for path in folders.conf.iterdir()) == ["00-multus-py.conflist", "10-flannel.conflist"]


def test_a_running_launcher_is_replaced(folders: install.Folders, words: list[str]) -> None:
    """The kernel refuses to write to a program that runs ("text file busy"); a renamed one takes its place."""
    launcher = folders.bin / "multus-py"
    launcher.write_bytes(Path("/bin/sleep").read_bytes())
    launcher.chmod(0o755)
    running = subprocess.Popen([launcher, "60"])
    try:
        assert main(words) == 0
    finally:
        running.kill()
        running.wait()
    assert launcher.read_text().startswith("#!")


def test_json_says_what_was_written(
    folders: install.Folders, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Another program can read where launcher and conf are."""
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "launcher": str(folders.bin / "multus-py"),
        "conf": str(folders.conf / "00-multus-py.conflist"),
        "primary": str(folders.conf / "10-flannel.conflist"),
    }


def test_options_become_keys_of_the_config(folders: install.Folders, words: list[str]) -> None:
    """Each option has the name that multus-cni's config gives it, and --set reaches every other key."""
    options = ["--cni-dir", "/s", "--namespace-isolation", "--delegate-backend", "exec", "--set", "apiDeadline=5"]
    assert main([*words, *options, "--set", "multusNamespace=kube-multus"]) == 0
    plugin = _written(folders)["plugins"][0]
    wanted = {
        "cniDir": "/s",
        "namespaceIsolation": True,
        "delegateBackend": "exec",
        "apiDeadline": 5,
        "multusNamespace": "kube-multus",
    }
    assert {key: plugin[key] for key in wanted} == wanted


def test_a_pinned_version_is_the_only_one(folders: install.Folders, words: list[str]) -> None:
    """Who pins a version gets it from every runtime, whatever the runtime could speak."""
    assert main([*words, "--cni-version", "0.4.0"]) == 0
    conf = _written(folders)
    assert conf["cniVersion"] == "0.4.0"
    assert "cniVersions" not in conf


def test_the_primary_is_found_by_content(folders: install.Folders, words: list[str]) -> None:
    """A meta-CNI's own conf is passed over whatever its file is called, and a broken file hides no later one."""
    _write(folders.conf / "01-a.conf", {"cniVersion": "1.0.0", "name": "m", "type": "multus-shim"})
    _write(
        folders.conf / "01-b.conflist",
        {"cniVersion": "1.0.0", "name": "m", "plugins": [{"type": "x", "delegates": []}]},
    )
    _write(folders.conf / "01-c.conflist", {"cniVersion": "1.0.0", "name": "m", "plugins": [{"type": "multus-py"}]})
    (folders.conf / "01-d.conf").write_text("{ half a fi")
    assert install.first_primary(folders.conf) == folders.conf / "10-flannel.conflist"


def _no_primary(folders: install.Folders) -> list[str]:
    (folders.conf / "10-flannel.conflist").unlink()
    return []


def _broken_primary(folders: install.Folders) -> list[str]:
    (folders.conf / "bad").write_text("{")
    return ["--primary", str(folders.conf / "bad")]


def _no_such_primary(folders: install.Folders) -> list[str]:
    return ["--primary", str(folders.conf / "none")]


def _meta_primary(folders: install.Folders) -> list[str]:
    return [
        "--primary",
        str(_write(folders.conf / "90-m.conf", {"cniVersion": "1.0.0", "name": "m", "type": "multus"})),
    ]


def _earlier_conf(folders: install.Folders) -> list[str]:
    _write(folders.conf / "00-aaa.conf", {"cniVersion": "1.0.0", "name": "a", "type": "ptp"})
    return []


def _no_bin(folders: install.Folders) -> list[str]:
    folders.bin.rmdir()
    return []


def _no_manifests(folders: install.Folders) -> list[str]:
    (folders.bin.parent / "manifests").rmdir()
    return []


def _another_plugin(folders: install.Folders) -> list[str]:
    (folders.bin / "bridge").write_text("somebody else's")
    return ["--name", "bridge"]


def _path_as_name(folders: install.Folders) -> list[str]:
    return ["--name", "../evil"]


def _old_version(folders: install.Folders) -> list[str]:
    return ["--cni-version", "0.2.0"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_no_primary, "no primary network is configured in"),
        (_broken_primary, "is not JSON: line 1"),
        (_no_such_primary, "cannot read"),
        (_meta_primary, "meta-CNI's own conf, it cannot be the primary"),
        (_earlier_conf, "sorts before 00-multus-py.conflist"),
        (_no_bin, "is not a folder"),
        (_no_manifests, "is not an existing folder"),
        (_another_plugin, "is another plugin's executable"),
        (_path_as_name, "is not the name of a plugin"),
        (_old_version, "has no plugin lists"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    folders: install.Folders,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[install.Folders], list[str]],
    told: str,
) -> None:
    """Each refusal says what is wrong and what to do, and leaves both folders as they were."""
    more = spoil(folders)
    before = sorted(folders.bin.parent.rglob("*"))
    assert main([*words, *more]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert told in lines[0]
    assert len(lines) == 2, "one line says what is wrong, one what to do"
    assert sorted(folders.bin.parent.rglob("*")) == before


@pytest.fixture
def nobody() -> Iterator[Path]:
    """Be a user without rights, also when the tests run as root; a folder that belongs to somebody else."""
    folder = Path(tempfile.mkdtemp(prefix="mpt"))
    folder.chmod(0o555)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(was)
    folder.rmdir()


def test_a_folder_that_cannot_be_written_is_named(nobody: Path) -> None:
    """Without the right to write, nothing is begun."""
    with pytest.raises(CniError, match=f"--cni-bin-dir {nobody} cannot be written by this user; run as root"):
        install.install(install.Order(install.Folders(nobody, nobody), {"manifests": nobody}))


def test_uninstall_removes_ours_and_only_ours(folders: install.Folders, words: list[str]) -> None:
    """The primary's conf and the other plugins stay; a second run finds nothing and is content."""
    (folders.bin / "bridge").write_text("somebody else's")
    assert main(words) == 0
    assert main(["uninstall", *_place(folders)]) == 0
    assert [path.name for path in folders.bin.iterdir()] == ["bridge"]
    assert [path.name for path in folders.conf.iterdir()] == ["10-flannel.conflist"]
    assert main(["uninstall", *_place(folders)]) == 0


def test_uninstall_does_not_touch_what_it_did_not_write(folders: install.Folders, words: list[str]) -> None:
    """A launcher that somebody replaced stays; the conf, which is ours, goes all the same, and the status says so."""
    assert main(words) == 0
    (folders.bin / "multus-py").write_text("somebody else's")
    assert main(["uninstall", *_place(folders)]) == 1
    assert (folders.bin / "multus-py").read_text() == "somebody else's"
    assert not (folders.conf / "00-multus-py.conflist").exists()


def test_another_name_takes_over_an_existing_meta_cni(folders: install.Folders, words: list[str]) -> None:
    """A cluster whose pods are called through `multus` can be switched over without a new name."""
    (folders.bin / "multus").write_text("the former one")
    assert main([*words, "--name", "multus"]) == 0
    assert _written(folders, "multus")["plugins"][0]["type"] == "multus"
    assert "former" not in (folders.bin / "multus").read_text()
    assert main(["uninstall", *_place(folders), "--name", "multus"]) == 0
    assert not (folders.bin / "multus").exists()
