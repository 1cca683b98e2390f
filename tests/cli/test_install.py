# SPDX-License-Identifier: Apache-2.0
"""`install` and `uninstall`: the executable that any runtime can start, and the conf that wraps the primary's."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multus_py.cli.main import main
from multus_py.cni.errors import CniError
from multus_py.install import executable, installation, primary, shim, withdrawal
from multus_py.install.cni_conf import Folders, InstallSpec

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
def folders(tmp_path: Path) -> Folders:
    """A node's two CNI folders with a primary in _place, and a folder of manifests beside them."""
    for name in ("bin", "net.d", "manifests"):
        (tmp_path / name).mkdir()
    _write(tmp_path / "net.d" / "10-flannel.conflist", PRIMARY)
    return Folders(tmp_path / "bin", tmp_path / "net.d")


@pytest.fixture
def words(folders: Folders) -> list[str]:
    """The words of a plain `install`."""
    manifests = folders.bin.parent / "manifests"
    return ["install", "--standalone", *_place(folders), "--manifests", str(manifests)]


@pytest.fixture
def shimmed(folders: Folders) -> list[str]:
    """The words of a plain `install` for a node with a daemon."""
    return ["install", *_place(folders)]


def _place(folders: Folders) -> list[str]:
    root = folders.bin.parent
    state = ["--socket-dir", str(root / "run"), "--cni-dir", str(root / "cni")]
    return ["--cni-bin-dir", str(folders.bin), "--cni-conf-dir", str(folders.conf), *state]


def _write(path: Path, body: object) -> Path:
    path.write_text(json.dumps(body))
    return path


def _written(folders: Folders, name: str = "multus-py") -> dict[str, object]:
    return json.loads((folders.conf / f"00-{name}.conflist").read_text())


def test_the_conf_wraps_the_primary_and_offers_every_version(folders: Folders, words: list[str]) -> None:
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
            "socketDir": str(folders.bin.parent / "run"),
            "cniDir": str(folders.bin.parent / "cni"),
            "capabilities": {"portMappings": True, "bandwidth": True},
        }
    ]
    assert (folders.conf / "00-multus-py.conflist").stat().st_mode & 0o777 == 0o600


def test_the_launcher_answers_version_with_an_empty_environment(folders: Folders, words: list[str]) -> None:
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
    launcher.write_text(executable.launcher_text(str(interpreter)))
    launcher.chmod(0o755)
    done = subprocess.run([launcher], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"supportedVersions" in done.stdout


@pytest.mark.parametrize(("path", "first"), [("/usr/bin/python3", "#!/usr/bin/python3 -I"), ("/x" * 80, "#!/bin/sh")])
def test_a_shebang_that_the_kernel_would_cut_is_not_written(path: str, first: str) -> None:
    """Kernels before 5.1 read 128 bytes of a script's first line."""
    assert executable.launcher_text(path).splitlines()[0] == first


def test_installing_twice_changes_nothing_and_leaves_no_other_file(folders: Folders, words: list[str]) -> None:
    """The launcher that is there stays the same file, so that a runtime never meets a missing one."""
    assert main(words) == 0
    launcher = (folders.bin / "multus-py").stat().st_ino
    first = _written(folders)
    assert main(words) == 0
    assert _written(folders) == first
    assert (folders.bin / "multus-py").stat().st_ino == launcher
    assert sorted(path.name for path in folders.bin.iterdir()) == ["multus-py"]
    assert sorted(path.name for path in folders.conf.iterdir()) == ["00-multus-py.conflist", "10-flannel.conflist"]


def test_a_running_launcher_is_replaced(folders: Folders, words: list[str]) -> None:
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


def test_json_says_what_was_written(folders: Folders, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Another program can read where launcher and conf are."""
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "executable": str(folders.bin / "multus-py"),
        "conf": str(folders.conf / "00-multus-py.conflist"),
        "primary": str(folders.conf / "10-flannel.conflist"),
        "setAside": [],
    }


def test_options_become_keys_of_the_config(folders: Folders, words: list[str]) -> None:
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


def test_a_pinned_version_is_the_only_one(folders: Folders, words: list[str]) -> None:
    """Who pins a version gets it from every runtime, whatever the runtime could speak."""
    assert main([*words, "--cni-version", "0.4.0"]) == 0
    conf = _written(folders)
    assert conf["cniVersion"] == "0.4.0"
    assert "cniVersions" not in conf


def test_the_primary_is_found_by_content(folders: Folders, words: list[str]) -> None:
    """A meta-CNI's own conf is passed over whatever its file is called, and a broken file hides no later one."""
    _write(folders.conf / "01-a.conf", {"cniVersion": "1.0.0", "name": "m", "type": "multus-shim"})
    _write(
        folders.conf / "01-b.conflist",
        {"cniVersion": "1.0.0", "name": "m", "plugins": [{"type": "x", "delegates": []}]},
    )
    _write(folders.conf / "01-c.conflist", {"cniVersion": "1.0.0", "name": "m", "plugins": [{"type": "multus-py"}]})
    (folders.conf / "01-d.conf").write_text("{ half a fi")
    assert primary.find_first(folders.conf).path == folders.conf / "10-flannel.conflist"


def _no_primary(folders: Folders) -> list[str]:
    (folders.conf / "10-flannel.conflist").unlink()
    return []


def _broken_primary(folders: Folders) -> list[str]:
    (folders.conf / "bad").write_text("{")
    return ["--primary", str(folders.conf / "bad")]


def _no_such_primary(folders: Folders) -> list[str]:
    return ["--primary", str(folders.conf / "none")]


def _meta_primary(folders: Folders) -> list[str]:
    return [
        "--primary",
        str(_write(folders.conf / "90-m.conf", {"cniVersion": "1.0.0", "name": "m", "type": "multus"})),
    ]


def _earlier_conf(folders: Folders) -> list[str]:
    _write(folders.conf / "00-aaa.conf", {"cniVersion": "1.0.0", "name": "a", "type": "ptp"})
    return []


def _no_bin(folders: Folders) -> list[str]:
    folders.bin.rmdir()
    return []


def _no_manifests(folders: Folders) -> list[str]:
    (folders.bin.parent / "manifests").rmdir()
    return []


def _another_plugin(folders: Folders) -> list[str]:
    (folders.bin / "bridge").write_text("somebody else's")
    return ["--name", "bridge"]


def _path_as_name(folders: Folders) -> list[str]:
    return ["--name", "../evil"]


def _old_version(folders: Folders) -> list[str]:
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
    folders: Folders,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Folders], list[str]],
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
        installation.install(InstallSpec(Folders(nobody, nobody), {"manifests": nobody}), executable.launcher())


def test_uninstall_removes_ours_and_only_ours(folders: Folders, words: list[str]) -> None:
    """The primary's conf and the other plugins stay; a second run finds nothing and is content."""
    (folders.bin / "bridge").write_text("somebody else's")
    assert main(words) == 0
    assert main(["uninstall", *_place(folders)]) == 0
    assert [path.name for path in folders.bin.iterdir()] == ["bridge"]
    assert [path.name for path in folders.conf.iterdir()] == ["10-flannel.conflist"]
    assert main(["uninstall", *_place(folders)]) == 0


def test_uninstall_does_not_touch_what_it_did_not_write(folders: Folders, words: list[str]) -> None:
    """A launcher that somebody replaced stays; the conf, which is ours, goes all the same, and the status says so."""
    assert main(words) == 0
    (folders.bin / "multus-py").write_text("somebody else's")
    assert main(["uninstall", *_place(folders)]) == 1
    assert (folders.bin / "multus-py").read_text() == "somebody else's"
    assert not (folders.conf / "00-multus-py.conflist").exists()


FORMER = {"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus-shim", "clusterNetwork": "/x"}


def test_the_shim_is_put_in_place_with_the_keys_that_it_reads(folders: Folders, shimmed: list[str]) -> None:
    """With a daemon the executable is the shim of the wheel, and the conf says where the daemon and its spool are."""
    assert main([*shimmed, "--readiness-file", "/run/ready"]) == 0
    assert (folders.bin / "multus-py").read_bytes() == shim.path().read_bytes()
    assert (folders.bin / "multus-py").stat().st_mode & 0o777 == 0o755
    plugin = _written(folders)["plugins"][0]
    assert plugin == {
        "type": "multus-py",
        "clusterNetwork": str(folders.conf / "10-flannel.conflist"),
        "socketDir": str(folders.bin.parent / "run"),
        "cniDir": str(folders.bin.parent / "cni"),
        "readinessindicatorfile": "/run/ready",
        "capabilities": {"portMappings": True, "bandwidth": True},
    }


def test_the_shim_alone_can_be_placed_before_there_is_a_primary(folders: Folders, shimmed: list[str]) -> None:
    """An init container puts the executable in place; the daemon writes the conf when a primary is there."""
    (folders.conf / "10-flannel.conflist").unlink()
    assert main([*shimmed, "--shim-only"]) == 0
    assert executable.is_ours(folders.bin / "multus-py")
    assert list(folders.conf.iterdir()) == []


def test_a_running_shim_is_replaced(folders: Folders, shimmed: list[str]) -> None:
    """A shim that waits for a daemon is no obstacle to an upgrade, and goes on to its own end."""
    assert main(shimmed) == 0
    target = folders.bin / "multus-py"
    target.write_bytes(shim.path().read_bytes() + b"an older release")
    call = json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "multus-py", "socketDir": "/nowhere"}).encode()
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0", "CNI_PATH": "/x"}
    running = subprocess.Popen([target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    try:
        assert main(shimmed) == 0
        assert target.read_bytes() == shim.path().read_bytes()
        assert running.poll() is None
    finally:
        running.kill()
        running.communicate(call)


def test_another_machines_shim_is_written_without_a_trial(
    folders: Folders, shimmed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A node's folder may be filled from another machine: what cannot run here is not tried; one not built is named."""
    program = executable.Program(b"\x7fELF of another machine", "", runs_here=False)
    assert installation.install(InstallSpec(folders), program).executable.read_bytes() == program.content
    assert main([*shimmed, "--machine", "riscv64", "--name", "mpt"]) == 1
    assert "has no shim for riscv64" in capsys.readouterr().err
    assert not (folders.bin / "mpt").exists()


def test_standalone_needs_a_source_and_a_daemon_has_its_own(
    folders: Folders, shimmed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both mistakes are said before anything is written."""
    assert main([*shimmed, "--standalone"]) == 1
    assert "needs --manifests or --kubeconfig" in capsys.readouterr().err
    assert main([*shimmed, "--manifests", str(folders.bin.parent / "manifests")]) == 1
    assert "need --standalone" in capsys.readouterr().err
    assert list(folders.bin.iterdir()) == []


@pytest.mark.parametrize("name", ["multus-py", "multus-shim", "multus"])
@pytest.mark.parametrize("file", ["00-multus.conf", "00-multus.conflist"])
def test_a_node_is_taken_over_from_multus_cni_and_handed_back(
    folders: Folders, shimmed: list[str], name: str, file: str
) -> None:
    """Its conf is set aside and its executable kept; uninstall puts both back, byte for byte, mode for mode."""
    former = FORMER if file.endswith(".conf") else {"cniVersion": "1.0.0", "name": "m", "plugins": [FORMER]}
    text = _write(folders.conf / file, former).read_bytes()
    for other in ("multus", "multus-shim"):
        (folders.bin / other).write_text(f"{other} of the former one")
        (folders.bin / other).chmod(0o711)
    before = {path.name for folder in (folders.bin, folders.conf) for path in folder.iterdir()}
    for _ in range(2):
        assert main([*shimmed, "--name", name]) == 0
        confs = [path.name for path in primary.conf_files(folders.conf)]
        assert confs == [f"00-{name}.conflist", "10-flannel.conflist"]
        assert executable.is_ours(folders.bin / name)
        assert _written(folders, name)["plugins"][0]["type"] == name
    assert main(["uninstall", *_place(folders), "--name", name]) == 0
    assert {path.name for folder in (folders.bin, folders.conf) for path in folder.iterdir()} == before
    assert (folders.conf / file).read_bytes() == text
    for other in ("multus", "multus-shim"):
        assert (folders.bin / other).read_text() == f"{other} of the former one"
        assert (folders.bin / other).stat().st_mode & 0o777 == 0o711


def test_a_take_over_that_cannot_be_finished_is_taken_back(folders: Folders) -> None:
    """When the executable does not start, multus-cni's conf has its name again."""
    _write(folders.conf / "00-multus.conf", FORMER)
    with pytest.raises(CniError, match="does not start"):
        installation.install(InstallSpec(folders), executable.Program(b"\x7fELF of nothing that runs", ""))
    assert sorted(path.name for path in folders.conf.iterdir()) == ["00-multus.conf", "10-flannel.conflist"]
    assert list(folders.bin.iterdir()) == []


def _sandbox(folders: Folders) -> Path:
    page = folders.bin.parent / "cni" / "attachments" / "c1@eth0"
    page.parent.mkdir(parents=True)
    page.touch()
    return page


def test_the_executable_stays_while_sandboxes_depend_on_it(
    folders: Folders, shimmed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """CRI-O calls it for their DEL; what remains is said, and the next uninstall removes it."""
    assert main(shimmed) == 0
    page = _sandbox(folders)
    capsys.readouterr()
    assert main(["uninstall", *_place(folders), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["sandboxes"], told["kept"]) == (1, str(folders.bin / "multus-py"))
    assert not (folders.conf / "00-multus-py.conflist").exists()
    assert executable.is_ours(folders.bin / "multus-py")
    page.unlink()
    assert main(["uninstall", *_place(folders)]) == 0
    assert list(folders.bin.iterdir()) == []


def test_drain_waits_until_the_last_sandbox_is_gone(folders: Folders, shimmed: list[str]) -> None:
    """With a time limit it gives up with status 1 and leaves the executable; without one it ends when all are gone."""
    assert main(shimmed) == 0
    page = _sandbox(folders)
    assert main(["uninstall", *_place(folders), "--drain", "--timeout", "0.1"]) == 1
    assert executable.is_ours(folders.bin / "multus-py")
    timer = threading.Timer(0.3, page.unlink)
    timer.start()
    assert main(["uninstall", *_place(folders), "--drain"]) == 0
    timer.join()
    assert list(folders.bin.iterdir()) == []


def test_keep_shim_keeps_it(folders: Folders, shimmed: list[str]) -> None:
    """Who wants to be sure can let it stay, also when nothing is left."""
    assert main(shimmed) == 0
    assert main(["uninstall", *_place(folders), "--keep-shim"]) == 0
    assert executable.is_ours(folders.bin / "multus-py")
    assert not (folders.conf / "00-multus-py.conflist").exists()


def test_uninstall_tells_the_daemon_and_install_tells_it_again(folders: Folders, shimmed: list[str]) -> None:
    """A daemon that runs puts nothing back after an uninstall, until somebody installs."""
    run = folders.bin.parent / "run"
    run.mkdir()
    assert main(shimmed) == 0
    assert main(["uninstall", *_place(folders)]) == 0
    assert withdrawal.is_marked(run)
    assert main([*shimmed, "--shim-only"]) == 0
    assert not withdrawal.is_marked(run)


def test_copies_that_another_cni_made_of_our_conf_go_with_it(folders: Folders, shimmed: list[str]) -> None:
    """Cilium's exclusive mode leaves our conf under another name: nothing of ours is left behind, its own stays."""
    assert main(shimmed) == 0
    ours_there = folders.conf / "00-multus-py.conflist"
    ours_there.with_name(ours_there.name + ".cilium_bak").write_bytes(ours_there.read_bytes())
    (folders.conf / "10-flannel.conflist.cilium_bak").write_text("theirs")
    assert main(["uninstall", *_place(folders)]) == 0
    assert sorted(path.name for path in folders.conf.iterdir()) == [
        "10-flannel.conflist",
        "10-flannel.conflist.cilium_bak",
    ]


_READER = """
import json, select, subprocess, sys
looks = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    assert len(json.load(open(sys.argv[1]))["plugins"]) == 1
    out = subprocess.run([sys.argv[2]], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=True)
    assert b"supportedVersions" in out.stdout
    looks += 1
print(looks)
"""


def test_a_reader_never_sees_half_a_file(folders: Folders, shimmed: list[str]) -> None:
    """While install runs again and again a runtime reads a whole conf and starts a whole shim, every time."""
    assert main(shimmed) == 0
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, folders.conf / "00-multus-py.conflist", folders.bin / "multus-py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        for turn in range(30):
            order = InstallSpec(folders, keys={"turn": "x" * (1 + 5000 * (turn % 2))})
            installation.install(order, executable.Program(shim.path().read_bytes() + bytes(turn + 1), ""))
    finally:
        seen, _ = reader.communicate(timeout=30)
    assert reader.returncode == 0
    assert int(seen) > 20
