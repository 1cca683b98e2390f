# SPDX-License-Identifier: Apache-2.0
"""The boundary of the plugin process: whatever environment and standard input are, a runtime can read the answer."""

import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import RAISES, TEXTS, near, rounds, texts
from hypothesis import given
from hypothesis import strategies as st
from stage import Stage, namespace

from multus_py.cni import serve
from multus_py.entry import logs, plugin
from multus_py.kernel import namespaces

VERBS = st.sampled_from(("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"))
ENVIRONMENT = {
    "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "", "CNI_IFNAME": "eth0", "CNI_PATH": "bin",
    "CNI_ARGS": "A=b",
}  # fmt: skip
STRANGE = TEXTS | st.sampled_from(("bin:bin", ":", "A=b;", "=", "K8S_POD_NAME=p", "/proc/self/ns/net", "file", "true"))


@pytest.fixture
def stage(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, faulty: Any) -> Iterator[Stage]:
    """Return a node in the working directory, of a host and a pod of its own; the log goes nowhere."""
    monkeypatch.setattr(logs, "start", lambda config: None)
    monkeypatch.setattr("multus_py.entry.plugin.time", Clock())
    with namespace() as host, namespace() as pod:
        made = Stage(elsewhere, pod, {"host": host})
        made.pod("p")
        yield made


class Clock:
    """A clock on which nobody waits in earnest."""

    def __init__(self) -> None:
        self._count = itertools.count(step=5)

    def sleep(self, seconds: float) -> None:
        """Wait not at all."""

    def monotonic(self) -> float:
        """Return five seconds more than before."""
        return float(next(self._count))


def _good(stage: Stage, **raises: Any) -> dict[str, Any]:
    """Return a config of ours with one network whose plugin raises what it is told to."""
    network = {"cniVersion": "1.0.0", "name": "d", "plugins": [{"type": "faulty", "raises": raises}]}
    return {**stage.config(delegates=[network], execTimeout=2), "cni.dev/valid-attachments": []}


def _readable(said: str, code: int) -> None:
    """Check that a runtime can read what was printed: a result and 0, or an error with its three keys and 1."""
    assert code in (0, 1)
    if code or said:
        body = json.loads(said, parse_constant=pytest.fail)
        assert isinstance(body, dict)
        assert not code or (isinstance(body["msg"], str) and type(body["code"]) is int and body["cniVersion"])


@given(data=st.data(), verb=VERBS, raises=RAISES)
@rounds(150)
def test_any_environment_and_input_has_an_answer(
    stage: Stage, capsys: pytest.CaptureFixture[str], data: st.DataObject, verb: str, raises: dict[str, str]
) -> None:
    """The answer is a result, or an error of a code that somebody chose; it is no trace, whatever was asked."""
    env = {**ENVIRONMENT, "CNI_COMMAND": verb, "CNI_NETNS": stage.netns}
    for name in data.draw(st.lists(st.sampled_from((*ENVIRONMENT, "CNI_NETNS_OVERRIDE", "A")), max_size=2), "changed"):
        env[name] = data.draw(STRANGE, name)
    kept = frozenset(("cniDir", "confDir", "binDir", "manifests", "kubeconfig"))
    words = data.draw(texts(_good(stage, **raises), kept), "input")
    stdin = data.draw(st.just(words.encode(errors="surrogatepass")) | st.binary(max_size=20), "bytes")
    out = io.StringIO()
    code = namespaces.run_in(
        stage.settings["host"], lambda: serve.serve(lambda call: plugin.handle(call, env), env, stdin, out, "about")
    )
    _readable(out.getvalue(), code)
    told = capsys.readouterr().err
    if not raises:
        assert "Traceback" not in told, told


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "</", "</dev/null >/dev/full"])
@pytest.mark.parametrize("verb", ["VERSION", "DEL", ""])
def test_a_process_without_its_streams(tmp_path: Path, closed: str, verb: str) -> None:
    """A runtime that left a stream away gets an exit code and no trace."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **ENVIRONMENT, "CNI_COMMAND": verb}
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m multus_py.cli.main plugin {closed}', sys.executable],
        env=env, cwd=tmp_path, capture_output=True, input=b"", timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1)
    assert b"Traceback" not in done.stdout + done.stderr, done.stderr.decode()
    assert b"Exception" not in done.stderr, done.stderr.decode()


@given(stdin=st.binary(max_size=30) | near({"cniVersion": "1.0.0",
    "name": "n"}).map(lambda body: json.dumps(body).encode()),
       env=st.dictionaries(st.sampled_from(tuple(ENVIRONMENT)),
       st.binary(max_size=9).map(lambda text: text.replace(b"\0", b""))))  # fmt: skip
@rounds(12)
def test_real_processes(tmp_path_factory: pytest.TempPathFactory, stdin: bytes, env: dict[str, bytes]) -> None:
    """The same of the program that a runtime starts, with bytes of any kind in its environment."""
    outside = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    given_env = {os.fsencode(key): os.fsencode(value) for key, value in {**outside, **ENVIRONMENT}.items()}
    done = subprocess.run(
        [sys.executable, "-m", "multus_py.cli.main", "plugin"],
        env={**given_env, **{key.encode(): value for key, value in env.items()}},
        input=stdin, cwd=tmp_path_factory.getbasetemp(), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    _readable(done.stdout.decode(), done.returncode)
