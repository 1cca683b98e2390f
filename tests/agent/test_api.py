# SPDX-License-Identifier: Apache-2.0
"""The socket under peers that say nothing, say it slowly, or come all at once: others are answered meanwhile."""

import base64
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
from running import until

from multus_py.agent.serving import api


class Told:
    """A service that answers at once, except ADD, which waits for *gate*."""

    def __init__(self):
        self.gate = threading.Event()
        self.at_work = 0

    def ready(self):
        return True

    def cni(self, env, stdin):
        if env["CNI_COMMAND"] == "ADD":
            self.at_work += 1
            assert self.gate.wait(30)

    def delegate(self, env, stdin, asked):
        return None


@pytest.fixture
def served(tmp_path):
    """Serve with four places; yield the socket's path and the service."""
    service = Told()
    server = api.listen(tmp_path / "run" / "s", service, 4)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield tmp_path / "run" / "s", service
    finally:
        service.gate.set()
        server.finish(5)


def connected(path, stack):
    """Return a connection that says nothing yet."""
    line = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    line.settimeout(20)
    line.connect(str(path))
    return line


def asked(path, method, where, body=None, seconds=5.0):
    """Make one request; return the status of its answer."""
    line = http.client.HTTPConnection("unix")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line.sock:
        line.sock.settimeout(seconds)
        line.sock.connect(str(path))
        line.request(method, where, body)
        return line.getresponse().status


def call(verb):
    """Return the body of a call."""
    config = base64.b64encode(b'{"cniVersion":"1.0.0","name":"n"}').decode()
    return json.dumps({"env": {"CNI_COMMAND": verb}, "config": config}).encode()


def test_peers_that_say_nothing_hold_no_place(served):
    """As many silent ones as there are places, and health, readiness and calls are answered at once."""
    path, _ = served
    with ExitStack() as stack:
        for _ in range(4):
            connected(path, stack)
        assert (200, 200) == (asked(path, "GET", "/healthz"), asked(path, "GET", "/readyz"))
        assert 200 == asked(path, "POST", "/cni", call("DEL"))


def test_health_is_told_whatever_the_calls_do(served):
    """With a call at every place and one that waits, health, readiness and STATUS are answered; the calls follow."""
    path, service = served
    with ThreadPoolExecutor(5) as pool:
        adds = [pool.submit(asked, path, "POST", "/cni", call("ADD"), 20) for _ in range(5)]
        until(lambda: service.at_work == 4)
        assert (200, 200) == (asked(path, "GET", "/healthz"), asked(path, "POST", "/readyz"))
        assert 200 == asked(path, "POST", "/cni", call("STATUS"))
        with pytest.raises(TimeoutError):
            asked(path, "POST", "/cni", call("DEL"), 0.5)
        assert 4 == service.at_work
        service.gate.set()
        assert {200} == {add.result() for add in adds}


@pytest.mark.parametrize(
    "begin",
    [b"", b"POST /cni HTTP/1.0\r\n", b"POST /cni HTTP/1.0\r\nContent-Length: 99999\r\n\r\n"],
    ids=["the request", "the headers", "the body"],
)
def test_who_drips_is_ended(monkeypatch, tmp_path, begin):
    """A byte now and then does not keep a connection: the whole request has its time."""
    monkeypatch.setattr(api, "_READ_TIMEOUT", 1)
    server = api.listen(tmp_path / "run" / "s", Told(), 4)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    started = time.monotonic()
    with ExitStack() as stack:
        line = connected(tmp_path / "run" / "s", stack)
        line.sendall(begin)
        with suppress(OSError):
            while time.monotonic() - started < 20:
                line.sendall(b"x")
                time.sleep(0.05)
                if not server._open:
                    break
        until(lambda: not server._open, seconds=5)
    server.finish(5)


def test_silent_peers_make_room(served, monkeypatch):
    """However many there are, the threads are bounded, the oldest are ended, and who speaks is answered."""
    path, _ = served
    before = threading.active_count()
    with ExitStack() as stack:
        lines = [connected(path, stack) for _ in range(400)]
        assert 200 == asked(path, "GET", "/healthz", seconds=10)
        assert 200 == asked(path, "POST", "/cni", call("DEL"), 10)
        until(lambda: threading.active_count() - before <= api._SILENT + 2)
        assert b"" == lines[0].recv(1)
        lines[-1].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"HTTP/1.0 200" == lines[-1].recv(12)


def test_who_comes_with_many_others_is_not_cut_off(served):
    """Calls that come all at once, more than may wait unheard, are all answered."""
    path, _ = served
    gate = threading.Barrier(500)

    def one(_):
        gate.wait(60)
        return asked(path, "POST", "/cni", call("DEL"), 30)

    with ThreadPoolExecutor(500) as pool:
        assert {200} == set(pool.map(one, range(500)))
