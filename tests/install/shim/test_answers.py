# SPDX-License-Identifier: Apache-2.0
"""What the shim asks the daemon, and what it makes of the answer."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from listening import Reply, listening
from shimbox import Box

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
RESULT = b'{\n    "cniVersion": "1.1.0",\n    "ips": [{"address": "10.1.2.3/24"}]\n}\n'


def test_without_a_verb_it_says_what_it_is(box: Box) -> None:
    """A person who starts the shim gets a line on standard error, and exit code 0."""
    done = box.feed("", b"")
    assert (done.code, done.stdout) == (0, b"")
    assert b"CNI_COMMAND" in done.stderr


@pytest.mark.parametrize(
    ("stdin", "version"),
    [(json.dumps({"cniVersion": version}), version) for version in VERSIONS]
    + [("", "1.1.0"), ("not JSON", "1.1.0"), ('{"cniVersion": "9.9.9"}', "1.1.0"), ('{"cniVersion": 1}', "1.1.0")],
)
def test_version_needs_no_daemon(box: Box, stdin: str, version: str) -> None:
    """VERSION is answered by the shim itself, in the caller's version when it is known."""
    done = box.feed("VERSION", stdin.encode())
    assert done.code == 0
    assert json.loads(done.stdout) == {"cniVersion": version, "supportedVersions": VERSIONS}


def test_an_unknown_verb_is_refused(box: Box) -> None:
    """A verb that CNI does not have is error code 4, told in the caller's version."""
    error = box.call("UPDATE", cniVersion="0.4.0").error
    assert (error["code"], error["cniVersion"]) == (4, "0.4.0")
    assert "'UPDATE'" in error["msg"]


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_the_request_is_the_whole_call(box: Box, verb: str) -> None:
    """The daemon hears multus-cni's body, exact: the whole environment, and standard input byte for byte."""
    stdin = json.dumps(box.config(strange=["ü", 1])).encode() + b" \n"
    with listening(box.folder, Reply(body=RESULT)) as daemon:
        done = box.feed(verb, stdin)
    assert (done.code, done.stdout, done.stderr) == (0, RESULT, b"")
    (heard,) = daemon.heard
    assert heard.path == "/cni"
    assert heard.headers["X-Multus-Py-Shim"] == "1"
    assert heard.headers["Connection"] == "close"
    assert set(heard.call) == {"env", "config"}
    assert heard.call["env"] == box.env(verb)
    assert base64.b64decode(heard.call["config"], validate=True) == stdin


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 61])
def test_base64_is_right_at_every_remainder(box: Box, length: int) -> None:
    """The padding follows RFC 4648 for any length of input."""
    stdin = json.dumps(box.config()).encode() + b" " * length
    with listening(box.folder) as daemon:
        assert box.feed("ADD", stdin).code == 0
    assert daemon.heard[0].call["config"] == base64.b64encode(stdin).decode()


def test_any_environment_arrives_as_python_has_it(box: Box) -> None:
    """Control characters, quotes, and bytes that are no UTF-8 come back as os.environ would show them."""
    strange = {
        b"MPT_ALL": bytes(range(1, 256)),
        b"MPT_UTF8": "ß \u20ac \U0001f40d \ud7ff \ue000 \U0010ffff".encode(),
        b"MPT_OVERLONG": b"\xc0\xaf \xe0\x80\xaf \xf0\x80\x80\xaf",
        b"MPT_SURROGATE": b"\xed\xa0\x80 \xed\xbf\xbf",
        b"MPT_BEYOND": b"\xf4\x90\x80\x80 \xf8\x88\x80\x80\x80",
        b"MPT_CUT": b"\xe2\x82",
        b'MPT_"\\\x01\xff': b"a=b=c",
        b"MPT_EMPTY": b"",
    }
    env = {os.fsdecode(name): os.fsdecode(value) for name, value in strange.items()}
    with listening(box.folder) as daemon:
        assert box.call("ADD", env).code == 0
    daemon.heard[0].body.decode()
    assert daemon.heard[0].call["env"] == box.env("ADD", env)


def test_of_a_name_given_twice_the_daemon_hears_what_the_shim_read(box: Box, tmp_path: Path) -> None:
    """A doubled variable cannot make shim and daemon see two different calls."""
    script = tmp_path / "twice.py"
    script.write_text(
        "import ctypes, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "lines = [line.encode() for line in sys.argv[2:]]\n"
        "argv = (ctypes.c_char_p * 2)(sys.argv[1].encode(), None)\n"
        "libc.execve(argv[0], argv, (ctypes.c_char_p * (len(lines) + 1))(*lines, None))\n"
    )
    lines = ["CNI_COMMAND=STATUS", "CNI_COMMAND=ADD", "no equals sign"]
    with listening(box.folder) as daemon:
        done = subprocess.run(
            [sys.executable, script, box.executable, *lines],
            input=json.dumps(box.config()).encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0
    assert daemon.heard[0].call["env"] == {"CNI_COMMAND": "STATUS"}


def test_nothing_may_be_the_answer(box: Box) -> None:
    """An empty body with status 200 is success without output."""
    with listening(box.folder):
        done = box.call("CHECK")
    assert (done.code, done.stdout) == (0, b"")


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_the_daemons_error_passes_untouched(box: Box, verb: str) -> None:
    """Status 400 carries the CNI error: it is printed byte for byte, and a DEL that failed never looks done."""
    said = b'{"code": 107,  "msg": "no address left", "mine": [1]}'
    with listening(box.folder, Reply(400, said)):
        done = box.call(verb)
    assert (done.code, done.stdout) == (1, said)
    assert not box.spool.exists()


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, b'{"code": 7}'),
        Reply(404, b"404 page not found"),
        Reply(400, b'ContainerID:"a" ERRORED: no\xff luck'),
        Reply(400, b""),
        Reply(200, b"[]"),
        Reply(200, b'{"cut": "'),
        Reply(200, b'{"one": 1} {"two": 2}'),
        Reply(200, b'{"a": 01}'),
        Reply(200, b"{" * 100_000),
        Reply(200, b"{}", length=False),
        Reply(204, b""),
    ],
    ids=lambda reply: f"{reply}"[:40] if isinstance(reply, Reply) else reply,
)
def test_what_is_no_cni_answer_is_told_with_its_text(box: Box, verb: str, reply: Reply) -> None:
    """Another status, or a body that is no JSON object, becomes error 999 that shows what came."""
    with listening(box.folder, reply):
        error = box.call(verb).error
    assert error["code"] == 999
    assert str(box.folder / "multus.sock") in error["msg"]
    assert error["details"].encode(errors="surrogateescape") == reply.body[:2000]


@pytest.mark.parametrize(
    "said",
    [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"x" * 70_000],
    ids=["other protocol", "negative length", "endless head"],
)
def test_what_is_no_http_is_an_error(box: Box, said: bytes) -> None:
    """A server that speaks something else is error 999, not a hang and not a success."""
    with _Raw(box.folder, said):
        assert box.call("ADD").error["code"] == 999


def test_an_answer_may_come_before_the_request_was_read(box: Box) -> None:
    """A daemon that refuses a large request at once, and hangs up, is heard."""
    said = b'{"code": 7, "msg": "too large"}'
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(said)
    with _Raw(box.folder, head + said):
        done = box.call("ADD", padding="x" * 8_000_000)
    assert (done.code, done.stdout) == (1, said)


def test_an_answer_in_small_pieces_is_put_together(box: Box) -> None:
    """The answer may arrive one byte at a time."""
    with _Raw(box.folder, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(RESULT) + RESULT, piece=1):
        assert box.call("ADD").stdout == RESULT


def test_input_may_be_large_but_not_endless(box: Box) -> None:
    """16 MiB of config pass; one byte more is error code 6, before the daemon is asked."""
    stdin = json.dumps(box.config()).encode()
    stdin += b" " * (16 * 1024 * 1024 - len(stdin))
    with listening(box.folder) as daemon:
        assert box.feed("ADD", stdin).code == 0
        assert box.feed("ADD", stdin + b" ").error["code"] == 6
    assert [base64.b64decode(heard.call["config"]) for heard in daemon.heard] == [stdin]


def test_a_result_may_be_large_but_not_endless(box: Box) -> None:
    """A body up to 16 MiB is printed whole; a longer one is an error."""
    fits = b'{"a": "%s"}' % (b"x" * (16 * 1024 * 1024 - 9))
    with listening(box.folder, Reply(body=fits), Reply(body=fits + b" ")):
        assert box.call("ADD").stdout == fits
        assert box.call("ADD").error["code"] == 999


def test_shims_run_side_by_side(box: Box) -> None:
    """Two calls at once are two requests at once, each with its own answer."""
    both = threading.Barrier(2)
    replies = [Reply(body=b'{"one": 1}', after=both), Reply(body=b'{"two": 2}', after=both)]
    with listening(box.folder, *replies), ThreadPoolExecutor() as pool:
        done = list(pool.map(box.call, ["ADD", "ADD"]))
    assert sorted(one.stdout for one in done) == [b'{"one": 1}', b'{"two": 2}']


# --- what of the config the shim reads -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        '"socketDir": "%s"',
        '"socketDir": "/nowhere", "socketDir": "%s"',
        '"socketDir": "/nowhere", "daemonSocketDir": "%s"',
        '"daemonSocketDir": "", "socketDir": "%s"',
        '"daemonSocketDir": null, "socketDir": "%s"',
        '"daemonSocketDir": ["/nowhere"], "socketDir": "%s"',
        '"\\u0073ocketD\\u0069r": "%s"',
        '"socketdir": "%s"',
        '"socketdir": "/nowhere", "socketDir": "%s"',
        '"socketDir": "%s", "SOCKETDIR": "/nowhere"',
        '"a": {"socketDir": "/nowhere"}, "socketDir": "%s", "b": [{"socketDir": "/nowhere"}]',
        '"a": "\\"socketDir\\": \\"/nowhere\\"", "socketDir": "%s", "b": "{"',
        '"a": [1, -0.5e+3, true, false, null, "", {}, []], "socketDir": "%s"',
        '"socketDir": "%s", "socketDir\\u0000": "/nowhere", "daemonSocketDir": "/nowhere\\u0000"',
    ],
)
def test_only_the_top_level_names_the_socket(box: Box, keys: str) -> None:
    """The socket's folder is a string of the config's top level, however it is spelled, whatever is around it."""
    escaped = str(box.folder).replace("/", "\\/")
    for folder in (str(box.folder), escaped):
        with listening(box.folder, Reply(body=RESULT)):
            done = box.feed("ADD", ('{"readinessTimeout": 0.1, ' + keys % folder + "}").encode())
        assert done.stdout == RESULT


def test_a_path_may_hold_any_character(box: Box) -> None:
    """Escapes of JSON, surrogate pairs too, are decoded to the UTF-8 of the path."""
    folder = box.folder / 'ä€🐍"\\'
    folder.mkdir()
    with listening(folder, Reply(body=RESULT)):
        assert box.call("ADD", socketDir=str(folder)).stdout == RESULT


def test_a_socket_path_that_cannot_be_is_named(box: Box) -> None:
    """A path beyond a socket address's room is error code 7, not a cut path."""
    error = box.call("ADD", socketDir="/" + "x" * 108).error
    assert error["code"] == 7
    assert "x" * 108 in error["msg"]


def test_a_broken_config_is_the_daemons_to_judge(box: Box) -> None:
    """What cannot be read as JSON is handed on: the keys before the fault still say where the daemon is."""
    stdin = json.dumps(box.config()).encode()[:-1] + b", oops"
    with listening(box.folder, Reply(400, b'{"code": 6}')) as daemon:
        done = box.feed("ADD", stdin)
    assert (done.code, done.stdout) == (1, b'{"code": 6}')
    assert base64.b64decode(daemon.heard[0].call["config"]) == stdin


class _Raw:
    """A server that reads a little, says *said* in pieces, and hangs up: what no HTTP library would do."""

    def __init__(self, folder: Path, said: bytes, piece: int = 1 << 20) -> None:
        self._path, self._said, self._piece = folder / "multus.sock", said, piece

    def __enter__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.recv(100)
            for start in range(0, len(self._said), self._piece):
                connection.sendall(self._said[start : start + self._piece])

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        self._socket.close()
        self._path.unlink()
