# SPDX-License-Identifier: Apache-2.0
"""A DEL that finds no daemon is kept on disk, whole and for good, or it is an error."""

import base64
import json
import os
import re
import shutil
import socket
import stat
import time
from pathlib import Path

import pytest
from listening import Reply, listening
from shimbox import Box, Done


def test_it_holds_the_whole_call(box: Box) -> None:
    """The daemon can replay the DEL from the tombstone alone: environment, config, and when it was."""
    before = time.time()
    stdin = json.dumps(box.config()).encode()
    env = {"MPT_STRANGE": os.fsdecode(b'\xff\n"')}
    done = box.feed("DEL", stdin, env)
    after = time.time()
    assert (done.code, done.stdout, done.stderr) == (0, b"", b"")
    (tombstone,) = box.spool.iterdir()
    body = json.loads(tombstone.read_bytes())
    assert set(body) == {"env", "config", "time", "boot", "since"}
    assert body["env"] == box.env("DEL", env)
    assert base64.b64decode(body["config"], validate=True) == stdin
    assert before <= body["time"] <= after
    nanoseconds, rest = tombstone.name.split("-", 1)
    assert rest == "mpt0815-eth0.json"
    assert len(nanoseconds) == 20
    assert before * 1e9 - 1000 <= int(nanoseconds) <= after * 1e9 + 1000


def test_only_root_may_read_it(box: Box) -> None:
    """File and new folders are private, whatever the runtime's umask is."""
    old = os.umask(0)
    try:
        assert box.call("DEL").code == 0
    finally:
        os.umask(old)
    (tombstone,) = box.spool.iterdir()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tombstone, box.spool, box.spool.parent)]
    assert modes == [0o600, 0o700, 0o700]


def test_it_is_on_the_disk_before_success_is_told(box: Box, tmp_path: Path) -> None:
    """The file is synced before it gets its name, and every folder that got a new name in it is synced, too."""
    told = _traced(box, tmp_path, "fsync,/^renameat2?$,exit_group")
    (tombstone,) = box.spool.iterdir()
    hidden = str(box.spool / f".{tombstone.name}")
    folder, cni, spool = (str(path) for path in (box.folder, box.spool.parent, box.spool))
    assert [(name.rstrip("2"), path) for name, path in told] == [
        ("fsync", folder),
        ("fsync", cni),
        ("fsync", hidden),
        ("renameat", spool),
        ("fsync", spool),
        ("exit_group", ""),
    ]


@pytest.mark.parametrize("reply", [Reply(503, b"{}"), Reply(503, b"")])
def test_a_daemon_that_is_not_ready_does_not_hold_a_del(box: Box, reply: Reply) -> None:
    """A DEL is asked once and kept at status 503: a node that drains is not to wait."""
    with listening(box.folder, reply) as daemon:
        assert box.call("DEL").code == 0
    assert len(daemon.heard) == 1
    assert len(list(box.spool.iterdir())) == 1


def test_a_refused_del_is_kept_soon(box: Box) -> None:
    """A socket without a listener costs a DEL one short pause, whatever readinessTimeout says."""
    started = time.monotonic()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(box.folder / "multus.sock"))
        assert box.call("DEL", readinessTimeout=60).code == 0
    assert time.monotonic() - started < 10
    assert len(list(box.spool.iterdir())) == 1


def test_a_refused_del_is_tried_once_more(box: Box, tmp_path: Path) -> None:
    """A daemon that is just being replaced gets a second chance; one without a socket file does not."""
    assert len(_traced(box, tmp_path, "connect")) == 1
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(box.folder / "multus.sock"))
        assert len(_traced(box, tmp_path, "connect")) == 2


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"spoolDir": "{0}/a/b/c/"}, "a/b/c"),
        ({"spoolDir": "{0}/own", "cniDir": "{0}/cni"}, "own"),
        ({"cniDir": "{0}/other"}, "other/spool"),
        ({"spoolDir": "", "cniDir": "{0}/other"}, "other/spool"),
        ({"spoolDir": 7, "cniDir": "{0}/other//"}, "other/spool"),
    ],
)
def test_the_config_says_where(box: Box, keys: dict[str, object], where: str) -> None:
    """spoolDir wins; else it is the folder spool in cniDir. What is missing is made."""
    told = {key: value.format(box.folder) if isinstance(value, str) else value for key, value in keys.items()}
    assert box.call("DEL", **told).code == 0
    assert len(list((box.folder / where).iterdir())) == 1


@pytest.mark.parametrize(
    "env",
    [
        {"CNI_CONTAINERID": "../../etc/passwd"},
        {"CNI_CONTAINERID": "-a"},
        {"CNI_CONTAINERID": "a b"},
        {"CNI_CONTAINERID": "a\n"},
        {"CNI_CONTAINERID": "ä"},
        {"CNI_CONTAINERID": "a" * 201},
        {"CNI_IFNAME": "../x"},
        {"CNI_IFNAME": "a:1"},
        {"CNI_IFNAME": "sixteen-letters-"},
        {"CNI_IFNAME": "a\tb"},
        {"CNI_IFNAME": "\udcff"},
        {"CNI_IFNAME": ""},
    ],
)
def test_a_name_that_cannot_be_a_file_is_left_out(box: Box, env: dict[str, str]) -> None:
    """What does not match the spec's patterns never becomes part of a path; the call is kept all the same."""
    assert box.call("DEL", env).code == 0
    (tombstone,) = box.spool.iterdir()
    assert re.fullmatch(r"\d{20}\.json", tombstone.name)
    assert json.loads(tombstone.read_bytes())["env"] == box.env("DEL", env)


def test_the_longest_names_fit(box: Box) -> None:
    """200 characters of container id and 15 of interface are a file name that the kernel takes."""
    assert box.call("DEL", {"CNI_CONTAINERID": "a" * 200, "CNI_IFNAME": "fifteen-letters"}).code == 0
    (tombstone,) = box.spool.iterdir()
    assert tombstone.name.endswith(f"-{'a' * 200}-fifteen-letters.json")


def test_without_a_container_there_is_nothing_to_keep(box: Box) -> None:
    """A DEL that names no container is error code 4."""
    assert box.call("DEL", {"CNI_CONTAINERID": ""}).error["code"] == 4
    assert not box.spool.exists()


@pytest.mark.parametrize("reply", [Reply(400, b'{"code": 11}'), Reply(500, b"no"), Reply(200, b"no")])
def test_an_answered_del_leaves_none(box: Box, reply: Reply) -> None:
    """When the daemon did answer, its word counts: no tombstone, no success."""
    with listening(box.folder, reply):
        assert box.call("DEL").code == 1
    assert not box.spool.exists()


def test_two_of_one_sandbox_are_two(box: Box) -> None:
    """A repeated DEL is a second tombstone, and their names sort by time."""
    for n in range(3):
        assert box.call("DEL", {"MPT_N": str(n)}).code == 0
    bodies = [json.loads(path.read_bytes()) for path in sorted(box.spool.iterdir())]
    assert [body["env"]["MPT_N"] for body in bodies] == ["0", "1", "2"]


@pytest.mark.parametrize("place", ["cni", "cni/spool"])
def test_a_file_where_the_folder_should_be(box: Box, place: str) -> None:
    """A spool that cannot be is code 11, so that the runtime asks again; path and reason are told."""
    path = box.folder / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    error = box.call("DEL").error
    assert error["code"] == 11
    assert f"{box.spool}/" in error["msg"]
    assert error["msg"].endswith(": Not a directory")
    assert "multus.sock" in error["details"]
    assert path.read_text() == "in the way"


def test_a_full_disk_leaves_no_half_a_tombstone(box: Box) -> None:
    """Where nothing more can be written, DEL is code 11 and the spool is as it was."""
    done, left = _on_tmpfs(box, "size=64k", f"head -c 1m /dev/zero >{box.spool}/full 2>/dev/null;")
    assert done.error["code"] == 11
    assert done.error["msg"].endswith(": No space left on device")
    assert left == ["full"]


def test_a_disk_that_fills_up_in_between(box: Box) -> None:
    """A file that can be begun but not ended is taken away again."""
    done, left = _on_tmpfs(box, "size=16k", "", padding="x" * 200_000)
    assert done.error["code"] == 11
    assert done.error["msg"].endswith(": No space left on device")
    assert left == []


def test_a_read_only_disk(box: Box) -> None:
    """On a file system that is mounted read-only DEL is code 11."""
    done, left = _on_tmpfs(box, "ro", "")
    assert done.error["code"] == 11
    assert done.error["msg"].endswith(": Read-only file system")
    assert left == []


def _traced(box: Box, folder: Path, calls: str) -> list[tuple[str, str]]:
    """Run DEL; return those of its system calls, each with the path of its first descriptor."""
    if not shutil.which("strace"):
        pytest.skip("strace is missing")
    trace = folder / "trace"
    command = ["strace", "-y", "-o", str(trace), "-e", f"trace={calls}"]
    assert Box(box.folder, box.executable, command).call("DEL", {"ASAN_OPTIONS": "detect_leaks=0"}).code == 0
    return re.findall(r"^(\w+)\((?:\d+<([^>]*)>)?", trace.read_text(), re.M)


def _on_tmpfs(box: Box, options: str, prepare: str, **keys: object) -> tuple[Done, list[str]]:
    """Run DEL with a small file system as spool, in a mount namespace of its own; return what the spool holds then."""
    box.spool.mkdir(parents=True)
    listing = box.folder / "left"
    script = (
        f"mount -t tmpfs -o {options} mpt {box.spool} || exit 77; {prepare} "
        f'"$0"; code=$?; ls -A {box.spool} >{listing}; exit $code'
    )
    own = Box(box.folder, box.executable, ["unshare", "-m", "--propagation", "private", "sh", "-c", script])
    done = own.call("DEL", {"PATH": os.environ["PATH"]}, **keys)
    if not listing.exists():
        pytest.skip(f"no mount namespace with a tmpfs here: {done.stderr.decode()}")
    return done, listing.read_text().split()
