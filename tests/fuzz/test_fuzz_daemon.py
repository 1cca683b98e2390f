# SPDX-License-Identifier: Apache-2.0
"""One real daemon, asked over its socket for whatever there is: it answers or hangs up, and is as well as before."""

import base64
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import TEXTS, VALUES, near, rounds, texts
from hypothesis import given
from hypothesis import strategies as st
from running import Running, until
from stage import Stage, namespace

PATIENCE = 20  # seconds: no request here takes a second


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run one daemon for all of this file."""
    folder = tmp_path_factory.mktemp("daemon")
    with namespace() as host, namespace() as pod:
        ipam = {"type": "host-local", "dataDir": str(folder / "ipam"), "subnet": "10.88.0.0/16"}
        network = {"cniVersion": "1.0.0", "name": "cluster", "type": "bridge", "bridge": "br0", "ipam": ipam}
        running = Running(Stage(folder, pod, {"delegates": [network], "execTimeout": 2, "readinessTimeout": 1}), host)
        running.stage.pod("p")
        running.start(attachProcesses=1, concurrentAdds=4, concurrentDeletes=4)
        try:
            yield running
        finally:
            running.stop(signal.SIGKILL)


def _spoken(path: Path, *pieces: bytes, half: bool = True) -> bytes:
    """Send pieces to the socket; return all that comes back. Not *half*: hang up without listening."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(PATIENCE)
        line.connect(str(path))
        answer = b""
        try:
            for piece in pieces:
                line.sendall(piece)
            if not half:
                return b""
            line.shutdown(socket.SHUT_WR)
            while piece := line.recv(65536):
                answer += piece
        except (BrokenPipeError, ConnectionResetError):
            pass  # it answered before it was told all
        return answer


def _posted(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _held(running: Running) -> tuple[int, int]:
    """Return how many threads and open files the daemon has."""
    assert running.process
    place = Path("/proc") / str(running.process.pid)
    return len([*(place / "task").iterdir()]), len([*(place / "fd").iterdir()])


@pytest.fixture(autouse=True)
def _as_well_as_before(daemon: Running) -> Iterator[None]:
    """Check after each test that the daemon lives, serves, and holds no more than before."""
    assert daemon.get("/readyz")[0] == 200
    threads, files = _held(daemon)
    yield
    assert daemon.process
    assert daemon.process.poll() is None
    assert daemon.get("/readyz")[0] == 200
    until(lambda: _held(daemon)[0] <= threads + 6 and _held(daemon)[1] <= files + 6, lambda: str(_held(daemon)))


def _answered(answer: bytes) -> Any:
    """Check an answer of the daemon; return the error that it holds, if it does."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 "), answer[:200]
    if head.startswith(b"HTTP/1.0 400 ") and body[:1] == b"{":
        error = json.loads(body, parse_constant=pytest.fail)
        assert error["code"] != 999, error
        assert isinstance(error["msg"], str)
        return error
    return None


ENV = {
    "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/mpt-none", "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nowhere", "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p",
}  # fmt: skip
CONFIG = {
    "cniVersion": "1.1.0", "name": "mp", "type": "multus-py", "cni.dev/valid-attachments": [], "readinessTimeout": 0.1,
    "capabilities": {"ips": True}, "runtimeConfig": {"ips": ["10.0.0.1/8"]}, "defaultNetworks": [], "logOptions": {},
}  # fmt: skip
OTHER = {"cniVersion": "1.0.0", "name": "o", "type": "bridge", "bridge": "br0", "capabilities": {"mac": True},
         "ipam": {"type": "static", "addresses": [{"address": "10.1.0.2/24"}]}}  # fmt: skip
VERBS = st.sampled_from(("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION", "", "add", "\0"))
# The folders of the node are the daemon's own: its file says them, whatever a request does.
KEPT = frozenset(
    ("cniDir", "confDir", "binDir", "manifests", "kubeconfig", "logFile", "podResourcesSocket", "deviceInfoDir")
)


@st.composite
def bodies(draw: st.DrawFn, netns: str = "") -> bytes:
    """Draw the body of a call near what shims write."""
    env = draw(near({**ENV, "CNI_COMMAND": draw(VERBS), "CNI_NETNS": netns or ENV["CNI_NETNS"]}, most=1))
    config = draw(texts(draw(st.sampled_from((CONFIG, OTHER))), KEPT | {"ipam"})).encode(errors="surrogatepass")
    if any(key.encode() in config for key in KEPT):
        config = b"{}"
    body = {"env": env, "config": base64.b64encode(config).decode(),
            "interfaceAttributes": draw(st.none() | near({"ips": ["10.1.0.7/24"],
            "mac": "02:00:00:00:00:09"}))}  # fmt: skip
    return json.dumps(draw(near(body, most=1)) if draw(st.integers(0, 3)) == 0 else body).encode()


PATHS = st.sampled_from(("/cni", "/delegate"))
OWN = st.sampled_from(((), ("X-Multus-Py-Shim: 1",)))


@given(
    path=PATHS, body=bodies() | st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()), own=OWN
)
@rounds(500)
def test_any_call_has_an_answer(daemon: Running, path: str, body: bytes, own: tuple[str, ...]) -> None:
    """A call of any content is answered, and never with code 999."""
    answer = _spoken(daemon.socket, _posted(path, body, *own))
    _answered(answer)


@given(data=st.data(), path=PATHS)
@rounds(150)
def test_any_call_for_a_pod_that_is_there(daemon: Running, data: st.DataObject, path: str) -> None:
    """The same for a sandbox with a namespace: what was attached is detached by a DEL in plain words."""
    body = data.draw(bodies(daemon.stage.netns))
    error = _answered(_spoken(daemon.socket, _posted(path, body, "X-Multus-Py-Shim: 1")))
    gone = {"env": {**ENV, "CNI_COMMAND": "DEL", "CNI_NETNS": daemon.stage.netns},
            "config": base64.b64encode(json.dumps({**CONFIG}).encode()).decode()}  # fmt: skip
    assert _answered(_spoken(daemon.socket, _posted("/cni", json.dumps(gone).encode()))) is None, error


METHODS = st.sampled_from(
    ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "get", "", "\0", "X" * 70000, "GET GET", "PRI")
)
TARGETS = st.sampled_from(("/cni", "/delegate", "/healthz", "/readyz", "/", "", "*", "//cni", "/cni?x", "/../cni",
    "http://x/cni",
                           "/" + "a" * 70000, "/\xff"))  # fmt: skip
PROTOCOLS = st.sampled_from(
    ("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "", "HTTP/x", "HTTP/1.1.1", "FTP/1.0")
)
HEADERS = st.lists(
    st.sampled_from((
        "Content-Length: 0", "Content-Length: 5", "Content-Length: -1", "Content-Length: 1e3", "Content-Length: \xb2",
        "Content-Length: " + "9" * 5000, "Content-Length: 999999999999", "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length",
        "Transfer-Encoding: chunked", "Expect: 100-continue", "Connection: keep-alive", "Connection: close",
        "X: " + "a" * 70000,
        ": x", "X-Multus-Py-Shim: 1", "\xff: \xff", " folded", "Host: \0",
    )) | TEXTS.map(lambda text: f"X-A: {text.encode('ascii', 'replace').decode()}"),
    max_size=4,
)  # fmt: skip
REST = st.sampled_from(
    (b"", b"{}", b"12345", b"5\r\n12345\r\n0\r\n\r\n", b"GET /healthz HTTP/1.1\r\n\r\n", b"\0" * 100)
) | st.binary(max_size=20)


@given(method=METHODS, target=TARGETS, protocol=PROTOCOLS, headers=HEADERS, rest=REST, cut=st.integers(0, 200),
    whole=st.booleans(),
       listens=st.integers(0, 9))  # fmt: skip
@rounds(700)
def test_any_http_has_an_answer_or_an_end(
    daemon: Running,
    method: str,
    target: str,
    protocol: str,
    headers: list[str],
    rest: bytes,
    cut: int,
    whole: bool,
    listens: int,
) -> None:
    """Odd methods, targets, headers and ends of requests: an answer or a closed line, and no code 999."""
    head = "\r\n".join([f"{method} {target} {protocol}", *headers, "", ""]).encode("latin-1")
    said = (head + rest) if whole else (head + rest)[:cut]
    answer = _spoken(daemon.socket, said, half=listens > 0)
    if answer.startswith(b"HTTP/1.0 "):
        _answered(answer)


@given(said=st.binary(max_size=200))
@rounds(300)
def test_any_bytes_have_an_answer_or_an_end(daemon: Running, said: bytes) -> None:
    """What is no HTTP at all is answered or hung up on."""
    _spoken(daemon.socket, said)


def test_many_at_once(daemon: Running) -> None:
    """Hundreds who hang up in the middle, at the same time, keep nobody who means it from an answer."""
    half = _posted("/cni", b"x" * 100)[:-50]

    def rude() -> None:
        for _ in range(40):
            _spoken(daemon.socket, half, half=False)

    crowd = [threading.Thread(target=rude) for _ in range(8)]
    for one in crowd:
        one.start()
    for _ in range(20):
        assert daemon.get("/healthz")[0] == 200
    for one in crowd:
        one.join()
    assert "Traceback" not in daemon.log()
