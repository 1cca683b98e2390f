# SPDX-License-Identifier: Apache-2.0
"""The process that starts executables: answers as children of our own would, bounded, and replaced when it is lost."""

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import until

from multus_py.agent import spool
from multus_py.agent.spawner import Spawner
from multus_py.cni.errors import CniError
from multus_py.executables import Children


@pytest.fixture(params=["children", "spawner"])
def executables(request):
    """Both ways to start executables."""
    if request.param == "children":
        yield Children({"BESIDE": "1"}, sleep=lambda seconds: time.sleep(0.05))
        return
    spawner = Spawner(environment={"BESIDE": "1"})
    yield spawner
    spawner.close()


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def script(path, text):
    """Write an executable shell script."""
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_input_output_status_and_environment(executables, tmp_path):
    """Large input and output, exit code, signal; the given environment and the one beside it, nothing else."""
    cat = script(tmp_path / "cat", "cat; echo err >&2; exit 7\n")
    big = os.urandom(700_000)
    ended = executables.run(cat, {}, big, 20)
    assert (7, big, b"err\n") == (ended.status, ended.stdout, ended.stderr)
    assert -15 == executables.run(script(tmp_path / "die", "kill $$\n"), {}, b"", 20).status
    shown = executables.run(script(tmp_path / "env", "exec /usr/bin/env\n"), {"CNI_COMMAND": "ADD"}, b"", 20).stdout
    assert {b"BESIDE=1", b"CNI_COMMAND=ADD"} == {
        line for line in shown.splitlines() if line.startswith((b"BES", b"CNI"))
    }


def test_argv0_is_the_name_it_was_found_by(executables, tmp_path):
    """A link is not resolved: Calico, Weave and k3s choose their role by it."""
    script(tmp_path / "real", 'echo "$0"\n')
    (tmp_path / "link").symlink_to("real")
    found = executables.find("link", ("/nowhere", str(tmp_path)))
    assert f"{tmp_path}/link\n".encode() == executables.run(found, {}, b"", 20).stdout


def test_only_regular_files_are_found(executables, tmp_path):
    """A folder of the name is no plugin; nothing found is None."""
    (tmp_path / "dir").mkdir()
    assert executables.find("dir", (str(tmp_path),)) is None


def test_what_takes_too_long_is_ended_with_all_it_started(executables, tmp_path):
    """Code 11, and its children are gone too."""
    slow = script(tmp_path / "slow", f"sleep 60 & echo $! > {tmp_path}/child; wait\n")
    with pytest.raises(CniError) as caught:
        executables.run(slow, {}, b"", 0.5)
    assert 11 == caught.value.code
    child = int((tmp_path / "child").read_text())
    until(lambda: not _alive(child))


def test_what_cannot_be_started_is_an_error(executables, tmp_path):
    """Not executable: code 5 with the kernel's reason."""
    plain = tmp_path / "plain"
    plain.write_text("x")
    with pytest.raises(CniError) as caught:
        executables.run(plain, {}, b"", 5)
    assert (5, True) == (caught.value.code, "Permission denied" in caught.value.msg)


def test_text_file_busy_is_tried_again(executables, tmp_path):
    """An executable that is being replaced is started when its writer is done."""
    copy = tmp_path / "true"
    copy.write_bytes(Path("/bin/true").read_bytes())
    copy.chmod(0o755)
    writer = copy.open("ab")
    threading.Timer(0.12, writer.close).start()
    assert 0 == executables.run(copy, {}, b"", 20).status


def test_a_lost_process_is_told_and_replaced(tmp_path):
    """Who waits gets code 11, the next call starts another one."""
    spawner = Spawner()
    script(tmp_path / "slow", "sleep 30\n")
    troubles = []

    def wait():
        try:
            spawner.run(tmp_path / "slow", {}, b"", 20)
        except CniError as trouble:
            troubles.append(trouble.code)

    spawner.find("x", ("/",))
    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.2)
    me = os.getpid()
    children = [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    spawners = [pid for pid in children if b"spawner_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in spawners:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    waiting.join(10)
    assert [11] == troubles
    assert 0 == spawner.run(script(tmp_path / "quick", "exit 0\n"), {}, b"", 20).status
    spawner.close()


@given(st.binary(max_size=60))
def test_only_cni_errors_come_out_of_any_request(text):
    """Fuzz: what comes over the socket or lies in the spool is read, or it is a CniError."""
    try:
        spool.request(text)
    except CniError as error:
        assert 6 == error.code
