# SPDX-License-Identifier: Apache-2.0
"""What becomes of a verb when the API server, the way to it or the credentials misbehave."""

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, kubeconfig_text
from misbehaving import drip, failure, playing, reply, reset, silence

from multus_py.cni.errors import CniError, Code
from multus_py.kube.apiserver import ApiServer
from multus_py.kube.store import NETWORK_STATUS, NETWORKS, NotFound, Pod, PodRef, Unavailable

POD = {"metadata": {"namespace": "mpt", "name": "p", "uid": "u1", "annotations": {NETWORKS: "net", "a": "b"}}}
REF = PodRef("mpt", "p", "u1")
MINE = Pod("mpt", "p", "u1")
SLACK = 1.5  # seconds: what a busy machine may add

Connect = Callable[..., ApiServer]


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    """Give a store for a URL, an account and a deadline."""

    def store(url: str, deadline: float = 10, **user: object) -> ApiServer:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(kubeconfig_text(url, user or {"token": "t"}))
        return ApiServer(str(kubeconfig), deadline, "node-7")

    return store


def elapsed(started: float) -> float:
    """Return the seconds since *started*."""
    return time.monotonic() - started


@pytest.mark.parametrize("fault", [silence, drip])
def test_a_server_that_does_not_finish_its_answer_is_left_at_the_deadline(connect: Connect, fault: object) -> None:
    """Silence and an endless drip of bytes both end as Unavailable when the time is over."""
    with playing(fault) as script:
        store = connect(script.url, 0.4)
        started = time.monotonic()
        with pytest.raises(Unavailable, match="read pod mpt/p") as caught:
            store.pod(REF)
        assert elapsed(started) < 0.4 + SLACK
        assert int(Code.TRY_AGAIN) == caught.value.code


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(connect: Connect, status: int) -> None:
    """A verb succeeds when the server recovers within the deadline."""
    with playing(reply(status), failure(status, "X", "busy"), reply(200, POD)) as script:
        assert connect(script.url).pod(REF).annotations == {NETWORKS: "net"}
        assert len(script.seen) == 3


def test_retry_after_is_honoured(connect: Connect) -> None:
    """The second try comes no earlier than the server asked."""
    with playing(reply(429, Retry_After="1"), reply(200, POD)) as script:
        started = time.monotonic()
        connect(script.url).pod(REF)
        assert elapsed(started) >= 1


def test_a_wait_beyond_the_deadline_is_not_begun(connect: Connect) -> None:
    """When the server asks for more time than there is, the verb ends at once, with the server's own words."""
    body = {"kind": "Status", "message": "slow down, please"}
    with playing(reply(429, body, Retry_After="3600")) as script:
        store = connect(script.url, 20)
        started = time.monotonic()
        with pytest.raises(Unavailable, match="slow down, please"):
            store.pod(REF)
        assert elapsed(started) < SLACK
        assert len(script.seen) == 1


def test_a_server_that_never_recovers_is_unavailable(connect: Connect) -> None:
    """All tries together stay within the deadline."""
    with playing(failure(503, "X", "etcd is down")) as script:
        store = connect(script.url, 0.7)
        started = time.monotonic()
        with pytest.raises(Unavailable, match="etcd is down"):
            store.pod(REF)
        assert elapsed(started) < 0.7 + SLACK
        assert len(script.seen) > 1


def test_a_reset_connection_is_opened_again(connect: Connect) -> None:
    """A connection that breaks is no failure as long as a later one works."""
    with playing(reset, reset, reply(200, POD)) as script:
        assert connect(script.url).pod(REF).uid == "u1"


def test_nobody_listening_is_unavailable(connect: Connect) -> None:
    """A refused connection is tried until the deadline, and the address is named."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(Unavailable, match=url):
            connect(url, 0.3).pod(REF)


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"{}", b'{"metadata": 3}', b"\xff", b"[" * 100_000])
def test_an_answer_that_is_no_object_is_unavailable(connect: Connect, body: bytes) -> None:
    """What a proxy may send with status 200 is never taken for a pod; the last try may be cut off by the deadline."""
    with playing(reply(200, body)) as script, pytest.raises(Unavailable, match=r"answered with|out of reach"):
        connect(script.url, 0.3).pod(REF)


def test_not_found_is_told_with_the_servers_words(connect: Connect) -> None:
    """404 is NotFound at once."""
    step = failure(404, "NotFound", 'pods "p" not found', name="p", kind="pods")
    with playing(step) as script, pytest.raises(NotFound, match='pods "p" not found') as caught:
        connect(script.url).pod(REF)
    assert len(script.seen) == 1
    assert caught.value.details == ""


def test_a_missing_resource_type_is_told_apart(connect: Connect) -> None:
    """404 for the whole collection points at the custom resource."""
    with playing(reply(404, b"404 page not found")) as script, pytest.raises(NotFound) as caught:
        connect(script.url).definition("mpt", "net")
    assert "crds/" in caught.value.details


def test_forbidden_names_the_missing_permission(connect: Connect) -> None:
    """403 says which verb on which resource must be allowed, and is not tried again."""
    with playing(failure(403, "Forbidden", "no way")) as script, pytest.raises(CniError, match="no way") as caught:
        connect(script.url).publish_status(MINE, "[]")
    assert "patch pods/status" in caught.value.details
    assert len(script.seen) == 1


def test_a_conflict_of_writers_is_tried_again(connect: Connect) -> None:
    """409 for a pod that is still the same one is repeated until it succeeds."""
    conflict = failure(409, "Conflict", "the object has been modified")
    with playing(conflict, reply(200, POD), conflict, reply(200, POD), reply(200, POD)) as script:
        connect(script.url).publish_status(MINE, "[1]")
        assert [seen[0] for seen in script.seen] == ["PATCH", "GET", "PATCH", "GET", "PATCH"]
        assert script.seen[-1][3] == {"metadata": {"uid": "u1", "annotations": {NETWORK_STATUS: "[1]"}}}


@pytest.mark.parametrize(
    "refusal",
    [
        failure(409, "Conflict", "the UID in the precondition does not match"),
        failure(422, "Invalid", "field is immutable", causes=[{"field": "metadata.uid"}]),
    ],
)
def test_a_conflict_with_another_pod_is_not_found(connect: Connect, refusal: Callable[..., None]) -> None:
    """Newer servers say 409, older ones 422: both mean that the pod was replaced."""
    other = {"metadata": {**POD["metadata"], "uid": "u2"}}
    with playing(refusal, reply(200, other)) as script, pytest.raises(NotFound, match="uid u1 is now u2"):
        connect(script.url).publish_status(MINE, "[]")


def test_other_refusals_are_told_and_not_repeated(connect: Connect) -> None:
    """An invalid request ends with the server's explanation."""
    with playing(failure(422, "Invalid", "annotation too long")) as script:
        with pytest.raises(CniError, match="annotation too long") as caught:
            connect(script.url).publish_status(MINE, "[]")
        assert not isinstance(caught.value, Unavailable | NotFound)
        assert len(script.seen) == 1


def test_an_event_whose_first_answer_was_lost_is_told_once(connect: Connect) -> None:
    """The repeated request has the same name, and the server's "already exists" is success."""
    with playing(reset, failure(409, "AlreadyExists", "already exists")) as script:
        connect(script.url).event(MINE, "Warning", "R", "m")
        assert script.seen[0][3]["metadata"]["name"] == script.seen[1][3]["metadata"]["name"]


def test_an_event_says_who_tells_what_about_whom(connect: Connect) -> None:
    """Component, host, pod uid and a message within the API's limit are in the request."""
    with playing(reply(201, POD)) as script:
        connect(script.url).event(MINE, "Normal", "AddedInterface", "ü" * 3000)
        body = script.seen[0][3]
    assert body["source"] == {"component": "multus-py", "host": "node-7"}
    assert body["involvedObject"]["uid"] == "u1"
    assert 1000 < len(body["message"].encode()) <= 1024


def rotated(file: Path) -> Callable[..., None]:
    """Return a step that refuses the credentials and puts new ones in place."""

    def step(handler: object) -> None:
        file.write_text("fresh\n")
        failure(401, "Unauthorized", "Unauthorized")(handler)  # type: ignore[arg-type]

    return step


def test_a_rotated_token_is_read_again(connect: Connect, tmp_path: Path) -> None:
    """After 401 the token file is read once more, and the verb goes on with the new token."""
    token = tmp_path / "token"
    token.write_text("stale\n")
    with playing() as script:
        script.steps += [rotated(token), reply(200, POD), reply(200, POD)]
        store = connect(script.url, tokenFile=str(token))
        store.pod(REF)
        store.pod(REF)
        assert [seen[2] for seen in script.seen] == ["Bearer stale", "Bearer fresh", "Bearer fresh"]


def test_refused_credentials_are_an_error_that_says_what_to_renew(connect: Connect) -> None:
    """A second 401 ends the verb and names the kubeconfig."""
    with playing(failure(401, "Unauthorized", "Unauthorized")) as script:
        with pytest.raises(CniError, match="Unauthorized") as caught:
            connect(script.url).pod(REF)
        assert len(script.seen) == 2
    assert "kubeconfig" in caught.value.details


@pytest.mark.parametrize(
    "text",
    ["", "{", "a: [", "[]", "3", '"x"', '{"clusters": 3}', kubeconfig_text("http://h", {"tokenFile": "/nonexistent"})],
)
def test_a_broken_kubeconfig_is_a_clean_error(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with the file, the error names it and has code 7."""
    kubeconfig = tmp_path / "broken.kubeconfig"
    kubeconfig.write_text(text)
    with pytest.raises(CniError, match=r"broken\.kubeconfig") as caught:
        ApiServer(str(kubeconfig), 5).pod(REF)
    assert int(Code.INVALID_CONFIG) == caught.value.code


@pytest.mark.parametrize("value", ["!!bool foo", "2020-13-45", "{]", "\x01", "9" * 5_000])
def test_a_kubeconfig_that_is_no_yaml_is_told_with_its_line(tmp_path: Path, value: str) -> None:
    """Whatever the parser makes of it, the error says at which line to look."""
    kubeconfig = tmp_path / "broken.kubeconfig"
    kubeconfig.write_text(f"apiVersion: v1\nkind: Config\nx: {value}")
    with pytest.raises(CniError, match=r"broken\.kubeconfig.*: line 3: not YAML"):
        ApiServer(str(kubeconfig), 5).pod(REF)


def test_a_missing_kubeconfig_is_a_clean_error(tmp_path: Path) -> None:
    """A path that leads nowhere is named."""
    with pytest.raises(CniError, match="absent"):
        ApiServer(str(tmp_path / "absent"), 5).pod(REF)


def test_outside_a_pod_the_service_account_is_missed_clearly() -> None:
    """Without a kubeconfig and without a cluster around us, the error says what to set."""
    with pytest.raises(CniError, match="service account") as caught:
        ApiServer(None, 5).pod(REF)
    assert "'kubeconfig'" in caught.value.details


@pytest.mark.parametrize("url", ["", "nonsense", "http://", "http://[::1", "ftp://h", "http://a b"])
def test_an_address_that_is_none_is_a_clean_error(connect: Connect, url: str) -> None:
    """A server address that cannot be one ends as a CniError within the deadline."""
    with pytest.raises(CniError):
        connect(url, 0.5).pod(REF)


def executed(*words: str) -> dict[str, object]:
    """Return the user of a kubeconfig whose credentials come from a command."""
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": words[0], "args": list(words[1:])}
    return {"exec": {**command, "interactiveMode": "Never"}}


def test_a_credential_command_is_run(connect: Connect) -> None:
    """The token that the command prints is the one that is sent."""
    status = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "made"}}
    with playing(reply(200, POD)) as script:
        connect(script.url, **executed("echo", json.dumps(status))).pod(REF)
        assert script.seen[0][2] == "Bearer made"


def test_a_credential_command_that_fails_is_told_and_not_logged(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """What the command wrote is in the error's details; the log stays ours."""
    with playing(failure(401, "Unauthorized", "who are you")) as script, pytest.raises(CniError) as caught:
        connect(script.url, **executed(sys.executable, "-c", "import sys; sys.exit('no card inserted')")).pod(REF)
    assert "no card inserted" in caught.value.details
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_credential_command_that_hangs_is_left_at_the_deadline(connect: Connect, tmp_path: Path) -> None:
    """The deadline covers the command too."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    store = connect("http://127.0.0.1:1", 0.5, **executed("cat", str(fifo)))
    started = time.monotonic()
    with pytest.raises(Unavailable):
        store.pod(REF)
    assert elapsed(started) < 0.5 + SLACK
    with fifo.open("w"):
        pass  # lets the command end


def test_an_untrusted_certificate_is_not_tried_again(apiserver: Cluster, tmp_path: Path) -> None:
    """A server whose certificate we do not trust is an error of the configuration, told at once."""
    body = json.loads(apiserver.plugin.read_text())
    body["clusters"][0]["cluster"].pop("certificate-authority", None)
    path = tmp_path / "untrusting.kubeconfig"
    path.write_text(json.dumps(body))
    started = time.monotonic()
    with pytest.raises(CniError, match="not trusted") as caught:
        ApiServer(str(path), 20).pod(REF)
    assert elapsed(started) < 5
    assert int(Code.INVALID_CONFIG) == caught.value.code


def test_a_renewed_authority_is_trusted_without_a_restart(apiserver: Cluster, tmp_path: Path) -> None:
    """After a refusal of the certificate the kubeconfig is read again: a process that lives long gets over it."""
    right = apiserver.plugin.read_text()
    body = json.loads(right)
    if not body["clusters"][0]["cluster"].pop("certificate-authority", None):
        pytest.skip("the kubeconfig of this cluster names no authority's file")
    path = tmp_path / "renewed.kubeconfig"
    path.write_text(json.dumps(body))
    store = ApiServer(str(path), 20)
    with pytest.raises(CniError, match="not trusted"):
        store.pod(REF)
    path.write_text(right)
    with pytest.raises(NotFound):
        store.pod(REF)


def test_a_stranger_is_told_which_permission_is_missing(apiserver: Cluster) -> None:
    """A real server's refusal carries our advice."""
    if apiserver.stranger is None:
        pytest.skip("no account without rights on a cluster that is not ours")
    store = ApiServer(str(apiserver.stranger), 20)
    with pytest.raises(CniError, match="stranger") as caught:
        store.definition(apiserver.namespace, "net")
    assert "get network-attachment-definitions.k8s.cni.cncf.io" in caught.value.details
