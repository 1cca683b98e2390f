# SPDX-License-Identifier: Apache-2.0
"""The real shim against a daemon that says anything, and what it writes to the spool for whoever replays it."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from shimbox import Box

from multus_py.agent.reconciling.reconciler import Reconciler
from multus_py.cni import call as calls
from multus_py.cni.errors import try_step
from multus_py.state.spool import Spool, Tombstone

BOUNDED = settings(
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
HEAD = st.sampled_from((
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 400 x\r\n", b"HTTP/1.1 503 x\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 99999999999 x\r\n", b"HTTP/9.9 200\r\n", b"HTTP/1.1 \r\n", b"HTTP/1.1 -1 x\r\n", b"ICY 200 OK\r\n",
    b"\r\n", b"",
))  # fmt: skip
FIELD = st.sampled_from((
    b"Content-Length: 0\r\n", b"Content-Length: 2\r\n", b"Content-Length: -2\r\n",
    b"Content-Length: 99999999999999999999999\r\n",
    b"Content-Length: 2x\r\n", b"Content-Length:2\r\n", b"Transfer-Encoding: chunked\r\n",
    b"X: " + b"a" * 70000 + b"\r\n", b"\0\r\n",
    b"Content-Length: 2\r\nContent-Length: 3\r\n", b": \r\n", b"\n",
))  # fmt: skip
BODY = st.sampled_from(
    (b"{}", b'{"code":7,"msg":"m"}', b"{", b"[]", b"", b"2\r\n{}\r\n0\r\n\r\n", b"\xff" * 9, b"{}" * 9)
) | st.binary(max_size=30)


@contextmanager
def _saying(folder: Path, said: bytes) -> Iterator[None]:
    """Stand where the daemon does and answer the first caller with these very bytes."""
    path = folder / "multus.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                line.settimeout(5)
                try:
                    line.recv(65536)
                    line.sendall(said)
                    line.shutdown(socket.SHUT_WR)
                    while line.recv(65536):
                        pass
                except OSError:
                    return  # it heard enough

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@given(
    head=HEAD,
    fields=st.lists(FIELD, max_size=3),
    end=st.sampled_from((b"\r\n", b"\n", b"")),
    body=BODY,
    verb=st.sampled_from(("ADD", "DEL", "STATUS")),
)
@settings(BOUNDED, max_examples=250)
def test_any_bytes_of_a_daemon(box: Box, head: bytes, fields: list[bytes], end: bytes, body: bytes, verb: str) -> None:
    """Whatever comes over the socket, the runtime reads a result or an error; a DEL is confirmed, kept or failed."""
    with _saying(box.folder, head + b"".join(fields) + end + body):
        done = box.call(verb, readinessTimeout=0.05, shimTimeout=2)
    assert done.code in (0, 1), done
    assert done.stderr == b"", done
    if done.code:
        told = json.loads(done.stdout)
        assert isinstance(told, dict), done
    elif done.stdout:
        assert isinstance(json.loads(done.stdout), dict), done


NAMES = st.sampled_from(
    (b"CNI_CONTAINERID", b"CNI_IFNAME", b"CNI_ARGS", b"CNI_NETNS", b"CNI_PATH", b"MPT", b"\xff", b"A B")
)
VALUES = st.binary(max_size=12).map(lambda text: text.replace(b"\0", b"")) | st.sampled_from(
    (b"", b"\xed\xa0\x80", b"a" * 300, b"../../x", b'"\\\n\x01')
)
# Behind the keys that keep the shim inside the box.
MORE = st.sampled_from(
    (b"", b',"a":"\xff"', b',"a":[' * 9 + b"]" * 9, b',"name":5', b',"\\ud800":1', b',"cniVersion":[]')
)
SPOILED = st.none() | st.tuples(st.integers(0, 400), st.binary(max_size=3))


@given(env=st.dictionaries(NAMES, VALUES, max_size=4), more=MORE, spoiled=SPOILED)
@settings(BOUNDED, max_examples=200)
def test_any_tombstone_can_be_replayed(
    box: Box, env: dict[bytes, bytes], more: bytes, spoiled: tuple[int, bytes] | None
) -> None:
    """What the shim keeps for the daemon is read as the call that it was; what the disk makes of it is set aside."""
    for path in box.spool.iterdir() if box.spool.is_dir() else ():
        path.unlink()
    stdin = json.dumps(box.config(readinessTimeout=0.05)).encode()[:-1] + more + b"}"
    done = box.feed("DEL", stdin, {os.fsdecode(key): os.fsdecode(value) for key, value in env.items()})
    assert done.code in (0, 1), done
    assert done.stderr == b"", done
    files = Spool(box.spool).files()
    assert len(files) == (done.code == 0), done
    if spoiled and files:
        text = files[0].read_bytes()
        files[0].write_bytes(text[: spoiled[0]] + spoiled[1] + text[spoiled[0] + 1 :])
    replayed: list[Tombstone] = []

    def replay(tombstone: Tombstone) -> None:
        replayed.append(tombstone)
        calls.parse(tombstone.env, tombstone.stdin)

    Reconciler(Spool(box.spool), replay, lambda what: None).replay_all()
    if files and not spoiled:
        (tombstone,) = replayed
        assert (tombstone.env["CNI_COMMAND"], tombstone.stdin) == ("DEL", stdin)
        assert (trouble := try_step(lambda: calls.parse(tombstone.env, stdin))) is None or trouble.code != 999, trouble
