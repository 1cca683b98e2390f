# SPDX-License-Identifier: Apache-2.0
"""The protocol's front door: environment and standard input become a call, or an error with the spec's code."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus_py.cni import call as calls
from multus_py.cni import serve, versions
from multus_py.cni.errors import CniError, PluginError

ENV = {
    "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0",
    "CNI_PATH": "/a:/b", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=p=q",
}  # fmt: skip
CONFIG = b'{"cniVersion": "1.1.0", "name": "net", "type": "multus-py"}'


def code_of(env, stdin=CONFIG):
    """Return the code that a call is refused with."""
    with pytest.raises(CniError) as caught:
        calls.parse(env, stdin)
    return caught.value.code


def test_a_call_is_parsed_whole():
    """Names, arguments (with '=' in a value) and folders arrive in order."""
    call = calls.parse(ENV, CONFIG)
    assert ("c1", "eth0", ("/a", "/b")) == (call.container_id, call.ifname, call.path)
    assert "p=q" == call.arg("K8S_POD_NAME")
    assert {key: value for key, value in ENV.items() if key != "CNI_COMMAND"} == {
        key: value for key, value in call.environment().items() if key != "CNI_COMMAND"
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"CNI_COMMAND": "BREW"}, 4), ({"CNI_COMMAND": ""}, 4), ({"CNI_NETNS": ""}, 4), ({"CNI_IFNAME": ""}, 4),
        ({"CNI_CONTAINERID": ""}, 3), ({"CNI_CONTAINERID": "a/b"}, 4), ({"CNI_CONTAINERID": "../x"}, 4),
        ({"CNI_CONTAINERID": "-x"}, 4), ({"CNI_IFNAME": "a/b"}, 4), ({"CNI_IFNAME": "a b"}, 4),
        ({"CNI_IFNAME": ".."}, 4), ({"CNI_IFNAME": "sixteencharacter"}, 4), ({"CNI_IFNAME": "a:b"}, 4),
        ({"CNI_ARGS": "novalue"}, 4), ({"CNI_PATH": ""}, 4),
    ],
)  # fmt: skip
def test_a_bad_environment_is_refused_with_its_code(change, code):
    """Spec section 2: what is missing or could become a path is refused."""
    assert code == code_of({**ENV, **change})


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        (b"", 6), (b"[]", 6), (b"{", 6), (b"\xff", 6), (b'{"name":"n","cniVersion":"9.0.0"}', 1),
        (b'{"name":"n","cniVersion":7}', 1), (b'{"cniVersion":"1.0.0"}', 7), (b'{"name":"a/b"}', 7), (b'{"a": NaN}', 6),
    ],
)  # fmt: skip
def test_a_bad_config_is_refused_with_its_code(stdin, code):
    """Not JSON is 6, a foreign version 1, a bad name 7."""
    assert code == code_of(ENV, stdin)


def test_all_missing_names_are_told_at_once():
    """A person should not have to find them one by one."""
    with pytest.raises(CniError, match="CNI_NETNS, CNI_IFNAME, CNI_PATH"):
        calls.parse({"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c"}, CONFIG)


@pytest.mark.parametrize("verb", ["STATUS", "GC"])
def test_status_and_gc_need_no_sandbox(verb):
    """They carry no container and no arguments."""
    assert verb == calls.parse({"CNI_COMMAND": verb, "CNI_PATH": "/x"}, CONFIG).verb


def test_delete_needs_no_namespace():
    """DEL comes with an empty CNI_NETNS when the sandbox is gone."""
    assert "" == calls.parse({**ENV, "CNI_COMMAND": "DEL", "CNI_NETNS": ""}, CONFIG).netns


@pytest.mark.parametrize(("verb", "version"), [("CHECK", "0.3.1"), ("STATUS", "1.0.0"), ("GC", "1.0.0")])
def test_a_verb_that_the_version_lacks_is_refused(verb, version):
    """Spec: incompatible version is code 1."""
    config = json.dumps({"cniVersion": version, "name": "n"}).encode()
    assert 1 == code_of({**ENV, "CNI_COMMAND": verb}, config)


def run(handle, env=ENV, stdin=CONFIG):
    """Answer one call; return exit code and body."""
    out = io.StringIO()
    code = serve.serve(handle, env, stdin, out, "about")
    return code, json.loads(out.getvalue()) if out.getvalue() else None


def test_version_needs_nothing_and_lists_all():
    """VERSION echoes the caller's version when it is known."""
    code, body = run(None, {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"0.4.0"}')
    assert (0, {"cniVersion": "0.4.0", "supportedVersions": list(versions.SUPPORTED)}) == (code, body)
    assert "1.1.0" == run(None, {"CNI_COMMAND": "VERSION"}, b"")[1]["cniVersion"]


def test_without_a_command_a_person_is_answered(capsys):
    """The about text goes to standard error and the exit code is 0."""
    assert (0, None) == run(None, {})
    assert "about" in capsys.readouterr().err


def test_an_error_keeps_code_message_and_notes():
    """A delegate's own code goes through, and what could not be taken back is told in details."""

    def fail(call):
        error = PluginError.from_json({"code": 111, "msg": "no VF left", "details": "d"}, "sriov")
        error.add_note("left eth1")
        raise error

    code, body = run(fail)
    assert (1, 111, "plugin sriov: no VF left", "d; left eth1") == (code, body["code"], body["msg"], body["details"])
    assert "1.1.0" == body["cniVersion"]


def test_an_unforeseen_error_is_999(capsys):
    """Whatever happens inside, the runtime reads a CNI error; the trace goes to standard error."""

    def fail(call):
        raise ZeroDivisionError("x")

    assert 999 == run(fail)[1]["code"]
    assert "Traceback" in capsys.readouterr().err


@given(st.dictionaries(st.sampled_from([*ENV, "X"]), st.text(max_size=30)), st.binary(max_size=60))
def test_only_cni_errors_come_out_of_any_environment(env, stdin):
    """Fuzz: whatever is thrown at the door, it parses or is a CniError."""
    try:
        calls.parse({"CNI_COMMAND": "ADD", **env}, stdin)
    except CniError as error:
        assert error.code in (1, 3, 4, 6, 7)
