# SPDX-License-Identifier: Apache-2.0
"""How long the shim waits for a daemon that is not there, not ready, slow, or dies."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from listening import Reply, listening
from shimbox import Box

NOT_READY = Reply(503, b'{"code": 11, "msg": "the copies of the API are not full yet"}')
_DYING = """
import os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print(flush=True)
connection, _ = server.accept()
connection.recv(100)
connection.sendall(sys.argv[2].encode().decode("unicode_escape").encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def dying(folder: Path, said: str) -> Iterator[None]:
    """Run a daemon that is killed after *said*, the beginning of an answer; its socket file stays, as in life."""
    path = folder / "multus.sock"
    with subprocess.Popen([sys.executable, "-c", _DYING, path, said], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()
            path.unlink()


@contextmanager
def deserted(folder: Path) -> Iterator[socket.socket]:
    """Leave a socket file where nobody listens: the daemon is being started again."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "multus.sock"))
        yield door
    (folder / "multus.sock").unlink()


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "GC", "STATUS"])
def test_a_daemon_that_is_not_ready_is_asked_again(box: Box, verb: str) -> None:
    """Status 503 means later: the same call is made again until another answer comes."""
    with listening(box.folder, NOT_READY, NOT_READY, Reply(body=b"{}")) as daemon:
        done = box.call(verb)
    assert (done.code, done.stdout) == (0, b"{}")
    assert len(daemon.heard) == 3
    assert len({heard.body for heard in daemon.heard}) == 1


@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_a_daemon_that_is_being_started_is_waited_for(box: Box, verb: str) -> None:
    """Neither a missing socket nor one without a listener is an error before the time is over."""
    with box.start(verb) as process:
        assert process.stdin
        process.stdin.write(json.dumps(box.config()).encode())
        process.stdin.close()
        process.stdin = None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        with deserted(box.folder), pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        with listening(box.folder, Reply(body=b'{"late": true}')):
            stdout, _ = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (0, b'{"late": true}')


@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_after_readiness_timeout_the_runtime_is_told(box: Box, verb: str, code: int) -> None:
    """A daemon that stays away is code 11, for STATUS code 50, with the socket's path and the reason."""
    error = box.call(verb, readinessTimeout=0.25).error
    assert error["code"] == code
    assert f"{box.folder}/multus.sock: No such file or directory" in error["msg"]
    with deserted(box.folder):
        error = box.call(verb, readinessTimeout=0.25).error
    assert error["code"] == code
    assert "Connection refused" in error["msg"]
    with listening(box.folder, NOT_READY) as daemon:
        error = box.call(verb, readinessTimeout=0.25).error
    assert error["code"] == code
    assert "not ready" in error["msg"]
    assert "copies of the API" in error["msg"]
    assert 2 <= len(daemon.heard) <= 3


def test_status_waits_five_seconds_at_most(box: Box) -> None:
    """STATUS is asked often: it answers code 50 after 5 s even where an ADD would wait longer."""
    started = time.monotonic()
    assert box.call("STATUS", readinessTimeout=60).error["code"] == 50
    assert 4.5 < time.monotonic() - started < 20


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_a_slow_daemon_is_waited_for_only_so_long(box: Box, verb: str) -> None:
    """shimTimeout bounds the whole call: code 11, and a DEL is neither kept nor called done."""
    over = threading.Event()
    with listening(box.folder, Reply(after=over)):
        error = box.call(verb, shimTimeout=0.3).error
        over.set()
    assert error["code"] == 11
    assert "did not answer" in error["msg"]
    assert "shimTimeout" in error["details"]
    assert not box.spool.exists()


def test_shim_timeout_bounds_the_wait_for_readiness_too(box: Box) -> None:
    """The smaller of both times counts."""
    started = time.monotonic()
    assert box.call("ADD", readinessTimeout=60, shimTimeout=0.3).error["code"] == 11
    assert time.monotonic() - started < 20


def test_a_daemon_that_reads_nothing_cannot_hold_the_call(box: Box) -> None:
    """A large request to a daemon that never reads it ends at shimTimeout as well."""
    with deserted(box.folder) as door:
        door.listen()
        assert box.call("ADD", shimTimeout=0.3, padding="x" * 4_000_000).error["code"] == 11


def test_a_full_queue_is_like_an_absent_daemon(box: Box) -> None:
    """When the daemon accepts nobody any more, ADD is told to try again, and DEL is kept."""
    with deserted(box.folder) as door, socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        door.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            try:
                waiting.connect(str(box.folder / "multus.sock"))
            except BlockingIOError:
                break
        else:
            pytest.fail("the queue is not full")
        assert box.call("ADD", readinessTimeout=0.25).error["code"] == 11
        assert box.call("DEL").code == 0
    assert len(list(box.spool.iterdir())) == 1


@pytest.mark.parametrize("said", ["", "HTTP/1.1 200 O", r"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"cni"])
@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_a_daemon_killed_before_its_answer_was_whole(box: Box, verb: str, code: int, said: str) -> None:
    """Half an answer is none: the runtime is told to try again."""
    with dying(box.folder, said):
        error = box.call(verb).error
    assert error["code"] == code
    assert "went away" in error["msg"]


@pytest.mark.parametrize("said", ["", "HTTP/1.1 200 O", r"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"cni"])
def test_a_del_whose_daemon_was_killed_is_kept(box: Box, said: str) -> None:
    """A DEL that may not have been finished becomes a tombstone: doing it twice is harmless."""
    with dying(box.folder, said):
        done = box.call("DEL")
    assert (done.code, done.stdout) == (0, b"")
    assert len(list(box.spool.iterdir())) == 1
