# SPDX-License-Identifier: Apache-2.0
"""The process that starts executables: answers as children of our own would, bounded, and replaced when it is lost."""

import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import until

from multus_py.agent.concurrency.spawner import Spawner
from multus_py.cni.errors import CniError
from multus_py.cni.executables import Children
from multus_py.state import spool


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


def test_what_leaves_its_pipes_to_others_is_ended_in_time(executables, tmp_path):
    """A process in a session of its own that holds the standard output is not waited for."""
    slow = script(tmp_path / "slow", f"setsid sleep 60 & echo $! > {tmp_path}/child; sleep 60\n")
    started = time.monotonic()
    try:
        with pytest.raises(CniError) as caught:
            executables.run(slow, {}, b"", 0.5)
        assert 11 == caught.value.code
        assert time.monotonic() - started < 10
    finally:
        os.kill(int((tmp_path / "child").read_text()), 9)


def spawners():
    """Return the processes of ours that start executables."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    children = [int(pid) for task in tasks for pid in task.read_text().split()]
    return [pid for pid in children if b"spawner_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def lines_of(pid):
    """Return the sockets that a process has, without those that it got as its standard streams."""
    more = [one.readlink() for one in Path(f"/proc/{pid}/fd").iterdir() if int(one.name) > 2]
    return [str(one) for one in more if str(one).startswith("socket:")]


def test_no_line_is_inherited_by_the_others(tmp_path):
    """Of sixty that start at once each has its own line alone: so each one's death by a signal is noticed at once."""
    together = [Spawner() for _ in range(60)]
    slow = script(tmp_path / "slow", "sleep 30\n")
    gate = threading.Barrier(61)
    codes = []

    def run(one):
        gate.wait()
        one.find("x", ("/nowhere",))
        gate.wait(40)
        try:
            one.run(slow, {}, b"", 25)
        except CniError as trouble:
            codes.append(trouble.code)

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in together]
    try:
        for thread in threads:
            thread.start()
        gate.wait()
        gate.wait(40)
        assert [1] * 60 == [len(lines_of(pid)) for pid in spawners()]
        for pid in spawners():
            os.kill(pid, 9)
        until(lambda: len(codes) == 60, seconds=10)
        assert set(codes) == {11}
    finally:
        for one in together:
            one.close()


def stop_it():
    """Stop the process that starts executables; return its id."""
    (pid,) = spawners()
    os.kill(pid, 19)
    return pid


def test_a_process_that_hangs_is_ended_and_replaced(tmp_path):
    """Whoever asks one that is stopped gets code 11 within its patience; it is ended with what it started."""
    spawner = Spawner(reply_timeout=1)
    spawner.find("x", ("/nowhere",))
    hanging = stop_it()
    started = time.monotonic()
    with pytest.raises(CniError, match="did not answer within 1 s and was ended") as caught:
        spawner.find("x", ("/nowhere",))
    assert (11, True) == (caught.value.code, time.monotonic() - started < 4)
    until(lambda: not _alive(hanging))
    assert spawner.find("sh", ("/bin",)) == Path("/bin/sh")
    spawner.close()


def test_an_executable_of_a_process_that_hangs_is_ended(tmp_path):
    """Its caller gets code 11 when its own time is over, and neither of the two is left."""
    spawner = Spawner(reply_timeout=1)
    slow = script(tmp_path / "slow", f"echo $$ > {tmp_path}/pid; exec sleep 60\n")
    troubles = []

    def run():
        try:
            spawner.run(slow, {}, b"", 2)
        except CniError as trouble:
            troubles.append(trouble.code)

    waiting = threading.Thread(target=run, daemon=True)
    waiting.start()
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    hanging = stop_it()
    until(lambda: troubles, seconds=8)
    assert [11] == troubles
    until(lambda: not _alive(hanging))
    until(lambda: not _alive(int((tmp_path / "pid").read_text())))
    spawner.close()


def test_what_the_kernel_does_not_let_end_is_left_behind():
    """An executable of whose end nobody is told keeps its caller no longer than the patience, and the process stays."""
    spawner = Spawner(reply_timeout=1)
    spawner.find("x", ("/nowhere",))
    before = spawners()
    line = spawner._line
    line.kill(12345, Future())
    spawner.find("x", ("/nowhere",))
    assert (before, line) == (spawners(), spawner._line)
    spawner.close()


def test_the_end_does_not_wait_for_one_that_hangs(tmp_path):
    """Close ends a stopped process, too."""
    spawner = Spawner()
    spawner.find("x", ("/nowhere",))
    hanging = stop_it()
    started = time.monotonic()
    spawner.close()
    assert time.monotonic() - started < 5
    until(lambda: not _alive(hanging))


def test_an_environment_that_is_too_large_leaves_nothing_behind(tmp_path):
    """The call is refused with code 4, however often it comes, and nobody waits for an answer."""
    spawner = Spawner()
    for _ in range(3):
        with pytest.raises(CniError, match="too large") as caught:
            spawner.run(tmp_path / "x", {"X": "x" * 300_000}, b"", 5)
        assert 4 == caught.value.code
    assert {} == spawner._line._waiting
    spawner.close()


def test_an_executable_that_is_busy_keeps_nobody_else_waiting(tmp_path):
    """While one is being replaced, what others ask for is answered at once."""
    spawner = Spawner()
    busy = tmp_path / "busy"
    busy.write_bytes(Path("/bin/true").read_bytes())
    busy.chmod(0o755)
    with busy.open("ab"):
        waiting = threading.Thread(target=lambda: spawner.run(busy, {}, b"", 20), daemon=True)
        spawner.find("x", ("/nowhere",))
        waiting.start()
        time.sleep(0.2)
        started = time.monotonic()
        spawner.find("x", ("/nowhere",))
        assert time.monotonic() - started < 0.3
    waiting.join(10)
    assert not waiting.is_alive()
    spawner.close()


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
    for pid in spawners():
        os.kill(pid, 9)
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
