# SPDX-License-Identifier: Apache-2.0
"""The node's own client certificate: asked for, used, renewed, kept, and what becomes of everything that goes wrong."""

import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import signing
from cluster import NoCluster, kubeconfig_text
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from misbehaving import failure, playing, reply
from signing import Signing
from waiting import eventually

from multus_py.agent.node.certificate import PATIENCE, CertificateRotation, Environment
from multus_py.agent.node.default_network import Clock
from multus_py.cni.errors import CniError, Code
from multus_py.config import daemon as daemon_config
from multus_py.config.daemon import NodeCertificate
from multus_py.kube import certificate, kubeconfig
from multus_py.kube.cached_apiserver import CachedApiServer
from multus_py.kube.http import Request
from multus_py.kube.reflector import Timing
from multus_py.kube.session import Client, Unauthorized

CURRENT, PENDING = "multus-client-current.pem", "multus-client-pending.pem"
DAY = 86400.0


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signing]:
    """Start the servers for this module."""
    try:
        with signing.start(tmp_path_factory.mktemp("signing")) as found:
            yield found
    except NoCluster as reason:
        pytest.skip(str(reason))


@pytest.fixture
def node() -> str:
    """Give a node's name that no other test has."""
    return f"mpt-{secrets.token_hex(4)}.example"


@dataclass
class Life:
    """A keeper with a folder, a clock that can be put forward, and what was told."""

    node: str
    bootstrap: Path
    folder: Path
    ahead: float = 0.0  # seconds
    told: list[tuple[str, str, str]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # the Events that name a request to approve

    def __post_init__(self) -> None:
        self.wanted = NodeCertificate(self.folder, str(self.bootstrap), 3600)
        self.begin()

    def begin(self) -> None:
        """Begin anew, as a process does that is started again."""
        clock = Clock(lambda: time.monotonic() + self.ahead, lambda: time.time() + self.ahead)
        world = Environment(partial(kubeconfig.read, self.bootstrap), clock, self.hear)
        self.keeper = CertificateRotation(self.wanted, self.node, world)
        self.keeper.settle()

    def hear(self, kind: str, reason: str, words: str) -> None:
        """Note what is told."""
        if reason == "CertificateRequested":
            self.asked.append(words)
        else:
            self.told.append((kind, reason, words))

    def until(self, promise: Callable[[], bool]) -> None:
        """Look, without the pauses in between, until the promise holds."""
        eventually(lambda: bool(self.keeper.advance() >= 0 and promise()), 60)

    def issue(self, signer: Signing) -> certificate.Certificate:
        """Ask, have it approved, and take what is issued."""
        before = self.kept() if self.file(CURRENT).exists() else None
        self.until(lambda: bool(signer.undecided(self.node)))
        signer.decide(self.node, "approve")
        self.until(lambda: self.file(CURRENT).exists() and (not before or self.kept() != before))
        return self.kept()

    def kept(self) -> certificate.Certificate:
        """Return the certificate in place."""
        return certificate.read(self.file(CURRENT).read_bytes(), self.node)

    def put(self, name: str, text: bytes) -> None:
        """Put a file into the folder."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.file(name).write_bytes(text)
        self.file(name).chmod(0o600)

    def file(self, name: str) -> Path:
        """Return the path of a file."""
        return self.folder / name

    def ask(self, path: str) -> Any:
        """Send a request as whoever the kubeconfig names."""
        account = Client(str(self.wanted.kubeconfig))
        with closing(account):
            return account.send(Request("GET", path, f"read {path}", f"get {path}"), time.monotonic() + 20)


@pytest.fixture
def life(signer: Signing, node: str, tmp_path: Path) -> Life:
    """Give a keeper at the real server, without any certificate."""
    return Life(node, signer.bootstrap, tmp_path / "certs")


def played(node: str, tmp_path: Path, url: str) -> Life:
    """Return a keeper at a server with a script."""
    path = tmp_path / "bootstrap"
    path.parent.mkdir(exist_ok=True)
    path.write_text(kubeconfig_text(url, {"token": "first"}))
    return Life(node, path, tmp_path / "certs")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make an authority that no server knows: its certificate and key."""
    folder = tmp_path_factory.mktemp("authority")
    signing.make_authority(folder / "ca.crt", folder / "ca.key")
    return folder / "ca.crt", folder / "ca.key"


def signed(draft: certificate.CertificateRequest, by: tuple[Path, Path], born: float, ends: float) -> bytes:
    """Sign a request as a controller manager would, for a life between two Unix times; return certificate and key."""
    authority = x509.load_pem_x509_certificate(by[0].read_bytes())
    request = x509.load_pem_x509_csr(draft.request)
    builder = x509.CertificateBuilder(authority.subject, request.subject, request.public_key(), 7)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = builder.not_valid_before(moment(born)).not_valid_after(moment(ends)).add_extension(usage, critical=False)
    key = serialization.load_pem_private_key(by[1].read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + draft.key


def moment(seconds: float) -> datetime:
    """Return a Unix time as a certificate has it."""
    return datetime.fromtimestamp(int(seconds), UTC)


def aged(node: str, by: tuple[Path, Path], share: float, life: float = 100 * DAY) -> bytes:
    """Return certificate and key of a node; so large a *share* of a *life* (seconds) is over."""
    born = time.time() - share * life
    return signed(certificate.create_request(node), by, born, born + life)


# --- at a real API server


def test_an_approved_request_becomes_the_account(signer: Signing, life: Life) -> None:
    """Once the request is approved, the API server knows whoever uses the kubeconfig as this very node."""
    with pytest.raises(CniError, match="forbidden"):
        life.ask("/api/v1/pods")
    found = life.issue(signer)
    assert life.ask("/api/v1/pods")["kind"] == "PodList"
    assert found.not_after > time.time() + 3600
    assert life.keeper.expiry() == found.not_after
    assert ("certificate_issued", "", "") in life.told
    assert not life.file(PENDING).exists()


def test_a_right_of_this_node_alone_can_be_used(signer: Signing, life: Life) -> None:
    """The user is system:multus:<node>: what is allowed to that name alone succeeds, for another node it does not."""
    role = f"mpt-{secrets.token_hex(4)}"
    signer.cluster.kubectl("create", "role", role, "--verb=get", "--resource=configmaps")
    signer.cluster.kubectl("create", "configmap", role)
    signer.cluster.kubectl("create", "rolebinding", role, f"--role={role}", f"--user=system:multus:{life.node}")
    path = f"/api/v1/namespaces/{signer.cluster.namespace}/configmaps/{role}"
    other = Life(f"other-{life.node}", signer.bootstrap, life.folder.with_name("other"))
    life.issue(signer)
    other.issue(signer)
    assert life.ask(path)["metadata"]["name"] == role
    with pytest.raises(CniError, match=f"system:multus:{other.node}"):
        other.ask(path)


def test_the_request_is_what_approvers_look_for(signer: Signing, life: Life) -> None:
    """Signer, usages, subject and the request's name are those that an approver can decide by."""
    life.keeper.advance()
    (found,) = signer.requests(life.node)
    subject = subprocess.run(
        ["openssl", "req", "-noout", "-subject", "-nameopt", "RFC2253"],
        input=b64decode(found["spec"]["request"]), capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    assert f"CN=system:multus:{life.node},O=system:multus" in subject
    assert found["spec"]["signerName"] == "kubernetes.io/kube-apiserver-client"
    assert found["spec"]["usages"] == ["digital signature", "client auth"]
    assert found["spec"].get("expirationSeconds", 3600) == 3600  # API servers before 1.22 drop it
    assert found["spec"]["username"] == signing.BOOTSTRAP


def test_a_long_name_of_a_node_is_no_obstacle(signer: Signing, tmp_path: Path) -> None:
    """A name of more characters than X.520 has for a common name gets its certificate, too."""
    life = Life(f"mpt-{secrets.token_hex(4)}.{'a' * 63}.{'b' * 63}", signer.bootstrap, tmp_path / "certs")
    life.issue(signer)
    assert life.ask("/api/v1/pods")["kind"] == "PodList"


def test_nobody_else_can_read_the_keys(signer: Signing, life: Life) -> None:
    """Request, certificate and kubeconfig are 0600 in a folder of 0700 at every step, and after a restore, too."""

    def modes() -> set[int]:
        return {path.stat().st_mode & 0o777 for path in life.folder.iterdir()}

    life.keeper.advance()
    assert life.folder.stat().st_mode & 0o777 == 0o700
    assert modes() == {0o600}
    life.issue(signer)
    assert modes() == {0o600}
    life.file(CURRENT).chmod(0o644)
    life.keeper.advance()
    assert modes() == {0o600}


def test_a_certificate_is_renewed_by_itself(signer: Signing, life: Life) -> None:
    """After two thirds of its life, not before, a new one is asked for with the old one; all requests go on with it."""
    authority = (signer.authority, signer.authority_key)
    life.put(CURRENT, aged(life.node, authority, 0.61))
    assert 0 < life.keeper.advance() <= 300
    assert signer.requests(life.node) == []

    life.put(CURRENT, aged(life.node, authority, 0.73, 40))
    first = life.kept()
    life.begin()
    users = Client(str(life.wanted.kubeconfig))
    request = Request("GET", "/api/v1/pods", "list pods", "list pods")
    with closing(users):
        assert users.send(request, time.monotonic() + 20)["kind"] == "PodList"
        life.keeper.advance()
        (made,) = signer.requests(life.node)
        assert (made["spec"]["username"], made["spec"]["groups"][0]) == (f"system:multus:{life.node}", "system:multus")
        assert life.kept() == first  # in use until the new one is there
        signer.decide(life.node, "approve")
        life.until(lambda: life.kept() != first)
        assert life.kept().not_after > time.time() + 1800
        eventually(lambda: time.time() > first.not_after + 1, 30)
        assert users.send(request, time.monotonic() + 20)["kind"] == "PodList"


def test_a_pending_request_outlives_the_process(signer: Signing, life: Life) -> None:
    """A daemon that is started again goes on with the same key and the same request: the administrator sees one."""
    life.keeper.advance()
    life.begin()
    life.keeper.advance()
    assert len(signer.requests(life.node)) == 1
    signer.decide(life.node, "approve")
    life.begin()
    life.until(life.file(CURRENT).exists)
    assert len(signer.requests(life.node)) == 1


def test_a_good_certificate_outlives_the_process(signer: Signing, life: Life) -> None:
    """After a restart the certificate in place is used at once, and nothing is asked for."""
    first = life.issue(signer)
    life.begin()
    assert life.ask("/api/v1/pods")["kind"] == "PodList"
    life.keeper.advance()
    assert life.kept() == first
    assert len(signer.requests(life.node)) == 1


def test_a_request_that_is_denied_is_told_and_made_anew_later(signer: Signing, life: Life) -> None:
    """A denial is told with its reason, the next request comes a good while later under another name, and may pass."""
    life.keeper.advance()
    name = signer.decide(life.node, "deny")
    assert life.keeper.advance() >= 30
    ((kind, reason, words),) = life.told
    assert (kind, reason) == ("certificate_failed", "CertificateRefused")
    assert f"request {name} was denied: KubectlDeny" in words
    assert not life.file(CURRENT).exists()
    life.issue(signer)
    assert len(signer.requests(life.node)) == 2


def test_each_denial_makes_the_next_request_rarer(signer: Signing, life: Life) -> None:
    """Who always says no is asked less and less often, though each new request is taken in first."""
    pauses = []
    for _ in range(4):
        life.keeper.advance()
        signer.decide(life.node, "deny")
        pauses.append(life.keeper.advance())
    assert 240 <= pauses[-1] <= 480
    assert pauses[0] <= 60


def test_a_certificate_that_the_server_does_not_accept_is_replaced(signer: Signing, life: Life, authority) -> None:
    """When the cluster trusts another authority, the first account is used again and a new certificate is asked for."""
    life.put(CURRENT, aged(life.node, authority, 0.1))
    life.begin()
    life.issue(signer)
    assert life.ask("/api/v1/pods")["kind"] == "PodList"
    assert [each["spec"]["username"] for each in signer.requests(life.node)] == [signing.BOOTSTRAP]


def test_an_expired_certificate_falls_back_to_the_first_account(signer: Signing, life: Life) -> None:
    """A node that was away for long asks anew with the first account."""
    life.put(CURRENT, aged(life.node, (signer.authority, signer.authority_key), 1.01))
    life.begin()
    assert life.keeper.expiry() == 0
    life.issue(signer)
    assert life.keeper.expiry() > time.time()


def test_a_store_follows_from_the_first_account_to_the_certificate(signer: Signing, life: Life) -> None:
    """Watches that the first account may not have begin by themselves once the certificate is there."""
    store = CachedApiServer(str(life.wanted.kubeconfig), 10, life.node, Timing(first_pause=0.05, longest_pause=0.2))
    store.start()
    try:
        life.keeper.advance()
        eventually(lambda: bool(signer.requests(life.node)))
        assert not store.ready()
        life.issue(signer)
        eventually(store.ready, 20)
    finally:
        store.close()


@contextmanager
def daemon(folder: Path, body: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a real daemon; give its process and its log."""
    (folder / "daemon.json").write_text(json.dumps(body))
    words = [sys.executable, "-m", "multus_py.cli.main", "daemon", "--config", str(folder / "daemon.json")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        yield process, folder / "log"
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="a daemon needs root")
def test_the_daemon_is_ready_once_its_request_is_approved(signer: Signing, node: str, tmp_path: Path) -> None:
    """With a first account that may ask for certificates alone, the daemon says what to approve, and then serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = {
        "kubeconfig": str(signer.bootstrap), "socketDir": str(tmp_path / "run"), "cniDir": str(tmp_path / "state"),
        "nodeName": node, "logLevel": "info", "metricsPort": port, "delegates": [{"name": "d", "type": "passthru"}],
        "perNodeCertificate": {"enabled": True, "certDir": str(tmp_path / "certs"), "certDuration": "24h"},
    }  # fmt: skip
    with daemon(tmp_path, body) as (process, log):
        eventually(lambda: "kubectl certificate approve multus-py-" in log.read_text(), 60)
        assert probe(tmp_path, "/healthz") == 200
        assert probe(tmp_path, "/readyz") == 500
        name = signer.decide(node, "approve")
        assert f"kubectl certificate approve {name}\n" in log.read_text()
        eventually(lambda: probe(tmp_path, "/readyz") == 200, 60)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            told = re.search(r"^multus_py_certificate_expiry (\S+)$", answer.read().decode(), re.MULTILINE)
        assert told
        assert float(told[1]) > time.time()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with daemon(tmp_path, body) as (process, log):
        eventually(lambda: probe(tmp_path, "/readyz") == 200, 60)
    assert len(signer.requests(node)) == 1


@dataclass(frozen=True)
class Owned:
    """A DaemonSet and its pod in a real cluster, and the config of a daemon that keeps its conf in front."""

    signer: Signing
    folder: Path
    body: dict[str, Any]

    @property
    def conf(self) -> Path:
        """Where our conf is kept."""
        return self.folder / "net.d" / "00-multus-py.conflist"


@pytest.fixture
def owned(signer: Signing, node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Owned:
    """Make the DaemonSet, the pod and the config; the group may read the DaemonSet, as the manifests allow it."""
    kubectl, name = signer.cluster.kubectl, node.partition(".")[0]

    def put(version: str, kind: str, **body: Any) -> dict[str, Any]:
        manifest = {"apiVersion": version, "kind": kind, **body}
        found: dict[str, Any] = json.loads(kubectl("create", "-o", "json", "-f", "-", manifest=manifest))
        return found

    labels = {"app": name}
    containers = [{"name": "c", "image": "none"}]
    template = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    made = put("apps/v1", "DaemonSet", metadata={"name": name}, spec=spec)
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": made["metadata"]["uid"]}
    put("v1", "Pod", metadata={"name": name, "ownerReferences": [owner]}, spec={"containers": containers})
    kubectl("create", "role", name, "--verb=get", "--resource=daemonsets.apps")
    kubectl("create", "rolebinding", name, f"--role={name}", "--group=system:multus")
    (tmp_path / "net.d").mkdir()
    primary = {"cniVersion": "1.0.0", "name": "primary", "plugins": [{"type": "bridge", "bridge": "none"}]}
    (tmp_path / "net.d" / "10-primary.conflist").write_text(json.dumps(primary))
    monkeypatch.setenv("POD_NAMESPACE", signer.cluster.namespace)
    monkeypatch.setenv("POD_NAME", name)
    body = {
        "kubeconfig": str(signer.bootstrap), "socketDir": str(tmp_path / "run"), "cniDir": str(tmp_path / "state"),
        "nodeName": node, "logLevel": "info", "install": True, "removeOnExit": "deleted",
        "cniConfigDir": str(tmp_path / "net.d"),
        "perNodeCertificate": {"enabled": True, "certDir": str(tmp_path / "certs"), "certDuration": "24h"},
    }  # fmt: skip
    return Owned(signer, tmp_path, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="a daemon needs root")
def test_a_daemon_without_certificate_does_not_take_itself_for_deleted(owned: Owned) -> None:
    """Denied everything, it leaves conf and key where they are: it may only be replaced."""
    with daemon(owned.folder, owned.body) as (process, log):
        eventually(lambda: owned.conf.exists() and "certificate approve" in log.read_text(), 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "our conf stays: there is no client certificate" in log.read_text()
    assert owned.conf.exists()
    assert (owned.folder / "certs" / PENDING).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a daemon needs root")
@pytest.mark.parametrize("deleted", [False, True])
def test_keys_go_with_the_daemon_set(owned: Owned, node: str, deleted: bool) -> None:
    """Conf and certificate stay on the node when the daemon is replaced, and go when its DaemonSet was deleted."""
    with daemon(owned.folder, owned.body) as (process, log):
        eventually(lambda: bool(owned.signer.undecided(node)), 60)
        owned.signer.decide(node, "approve")
        eventually(lambda: probe(owned.folder, "/readyz") == 200, 60)
        if deleted:
            owned.signer.cluster.kubectl("delete", "daemonset", node.partition(".")[0], "--wait=false")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    left = {path.name for path in (owned.folder / "certs").iterdir()}
    assert (owned.conf.exists(), left) == (not deleted, set() if deleted else {CURRENT, "multus-client.kubeconfig"})


def probe(folder: Path, path: str) -> int:
    """Return the status of a path on the daemon's socket, 0 when nobody listens."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(10)
        try:
            wire.connect(str(folder / "run" / "multus.sock"))
            wire.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return int(wire.makefile("rb").readline().split()[1])
        except (OSError, IndexError):
            return 0


# --- at a server with a script


def test_the_body_of_the_request(node: str, tmp_path: Path) -> None:
    """What is posted has the life that was asked for, which an API server before 1.22 does not show."""
    absent = failure(404, "NotFound", "no", name="x")
    with playing(absent, reply(201, {"metadata": {"name": "x"}})) as script:
        pause = played(node, tmp_path, script.url).keeper.advance()
    assert pause == 1
    method, path, account, body = script.seen[-1]
    assert (method, path, account) == (
        "POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", "Bearer first",
    )  # fmt: skip
    assert body["spec"]["expirationSeconds"] == 3600
    assert script.seen[0][1] == f"{path}/{body['metadata']['name']}"


@pytest.mark.parametrize("condition", [[], [{"type": "Approved", "status": "True"}]])
def test_waiting_has_a_bound(node: str, tmp_path: Path, condition: list[Any]) -> None:
    """Two minutes without an answer are told once, with the words to type, and again an hour later."""
    with playing(reply(200, {"status": {"conditions": condition}})) as script:
        life = played(node, tmp_path, script.url)
        pauses = []
        while not life.told:
            assert life.ahead < PATIENCE + 10
            pauses.append(life.keeper.advance())
            life.ahead += pauses[-1]
        assert life.ahead >= PATIENCE - 10
        assert len(pauses) < 30
        assert life.keeper.advance() <= 60
        ((kind, reason, words),) = life.told
        assert (kind, reason) == ("certificate_failed", "NoCertificate")
        name = script.seen[-1][1].rpartition("/")[2]
        wanted = f"request {name} is approved, and nothing is issued" if condition else f"certificate approve {name}"
        assert wanted in words
        life.ahead += 3601
        life.keeper.advance()
        assert len(life.told) == 2


def test_what_to_approve_is_told_at_once(node: str, tmp_path: Path) -> None:
    """The first look that finds nothing decided tells the words to type, once; what is approved needs no words."""
    with playing(reply(200, {"status": {}})) as script:
        life = played(node, tmp_path, script.url)
        for _ in range(3):
            life.keeper.advance()
        (words,) = life.asked
        assert words.endswith(f"kubectl certificate approve {script.seen[-1][1].rpartition('/')[2]}")
    with playing(reply(200, {"status": {"conditions": [{"type": "Approved", "status": "True"}]}})) as script:
        life = played(node, tmp_path / "approved", script.url)
        life.keeper.advance()
        assert life.asked == []


def test_a_lost_answer_makes_no_second_request(node: str, tmp_path: Path) -> None:
    """When the server has the request already, the keeper waits for it."""
    absent = failure(404, "NotFound", "no", name="x")
    with playing(absent, failure(409, "AlreadyExists", "it exists"), reply(200, {"status": {}})) as script:
        life = played(node, tmp_path, script.url)
        life.keeper.advance()
        life.keeper.advance()
    assert [method for method, *_ in script.seen] == ["GET", "POST", "GET"]
    assert len({path for method, path, *_ in script.seen if method == "GET"}) == 1
    assert life.told == []


def test_a_missing_permission_is_named(node: str, tmp_path: Path) -> None:
    """The words of the error are those of the rule that is missing; the pauses grow to a minute."""
    absent = failure(404, "NotFound", "no", name="x")
    with playing(absent, failure(403, "Forbidden", "you may not")) as script:
        life = played(node, tmp_path, script.url)
        pauses = [life.keeper.advance() for _ in range(9)]
    assert "create certificatesigningrequests.certificates.k8s.io" in life.told[0][2]
    assert max(pauses) <= 60
    assert pauses[-1] >= 30


def nonsense(draft: certificate.CertificateRequest, by: tuple[Path, Path]) -> dict[str, bytes]:
    """Return what may come back in place of our certificate."""
    now = time.time()
    other = certificate.create_request(f"other-{draft.node}")
    stolen = replace(certificate.create_request(draft.node), key=b"")
    mine = replace(draft, key=b"")
    return {
        "no certificate": b"hello",
        "another node's": signed(replace(other, key=b""), by, now, now + DAY),
        "another key's": signed(stolen, by, now, now + DAY),
        "old": signed(mine, by, now - 10 * DAY, now + DAY),
        "over": signed(mine, by, now - 10 * DAY, now - DAY),
    }


@pytest.mark.parametrize("kind", ["no certificate", "another node's", "another key's", "old", "over"])
def test_what_does_not_fit_is_never_put_in_place(node: str, tmp_path: Path, authority, kind: str) -> None:
    """A certificate that is not ours, or of no use, is told of, and a new key is made for a new request."""
    with playing(reply(200, {"status": {}})) as script:
        life = played(node, tmp_path, script.url)
        life.keeper.advance()
        draft = certificate.read_request(life.file(PENDING).read_bytes(), node)
        text = b64encode(nonsense(draft, authority)[kind]).decode()
        approved = [{"type": "Approved", "status": "True"}]
        script.steps.append(reply(200, {"status": {"conditions": approved, "certificate": text}}))
        assert life.keeper.advance() > 1
        assert len(life.told) == 1
        assert not life.file(CURRENT).exists()
        life.keeper.advance()
        assert script.seen[-1][1] != script.seen[0][1]


@pytest.mark.parametrize("status", [None, [], 3, {"conditions": 3}, {"conditions": [3]}, {"certificate": 3}])
def test_an_odd_answer_is_no_decision(node: str, tmp_path: Path, status: object) -> None:
    """What has another shape than the API's is waited over."""
    with playing(reply(200, {"status": status})) as script:
        life = played(node, tmp_path, script.url)
        assert life.keeper.advance() >= 1
    assert life.told == []


def test_a_server_out_of_reach_changes_nothing(node: str, tmp_path: Path, authority) -> None:
    """With a good certificate nothing is told and nothing is asked for while the server is away or busy."""
    with playing(failure(503, "X", "busy")) as script:
        life = played(node, tmp_path, script.url)
        life.put(CURRENT, aged(node, authority, 0.1))
        life.keeper.advance()
        life.keeper.advance()
        assert {path for _, path, *_ in script.seen} == {"/version"}
    assert life.told == []


def test_a_first_account_that_is_gone_is_not_missed(node: str, tmp_path: Path, authority) -> None:
    """With a certificate the kubeconfig stays as it is; without one its absence is told."""
    with playing(reply(200, {"major": "1"})) as script:
        life = played(node, tmp_path, script.url)
        life.put(CURRENT, aged(node, authority, 0.1))
        life.keeper.advance()
        before = life.wanted.kubeconfig.read_bytes()
        life.bootstrap.unlink()
        life.keeper.advance()
        assert (life.told, life.wanted.kubeconfig.read_bytes()) == ([], before)
        life.file(CURRENT).unlink()
        life.keeper.advance()
    assert "cannot read the kubeconfig" in life.told[0][2]


def test_only_who_is_accepted_is_vouched_for(node: str, tmp_path: Path, authority) -> None:
    """Without a certificate, and with one that the server refuses, nothing may be concluded from a refusal."""
    with playing(reply(200, {"major": "1"})) as script:
        life = played(node, tmp_path, script.url)
        with pytest.raises(CniError, match="no client certificate"):
            life.keeper.verify(10)
        life.put(CURRENT, aged(node, authority, 0.1))
        life.begin()
        life.keeper.verify(10)
        script.steps.append(failure(401, "Unauthorized", "who are you"))
        script.steps[0] = script.steps[-1]
        with pytest.raises(Unauthorized):
            life.keeper.verify(10)
        life.ahead = 100 * DAY
        with pytest.raises(CniError, match="no client certificate"):
            life.keeper.verify(10)


def test_a_kubeconfig_that_is_half_written_is_not_taken_up(tmp_path: Path) -> None:
    """Requests go on with the account as it was, and with the new one as soon as its file is whole."""
    path = tmp_path / "kubeconfig"
    request = Request("GET", "/version", "ask", "get /version")
    with playing(reply(200, {"major": "1"})) as script:
        path.write_text(kubeconfig_text(script.url, {"token": "one"}))
        with closing(Client(str(path))) as account:
            for text in (None, "{", kubeconfig_text(script.url, {"token": "two"})):
                if text:
                    path.write_text(text)
                account.send(request, time.monotonic() + 10)
            path.unlink()
            account.send(request, time.monotonic() + 10)
    assert [account for _, _, account, _ in script.seen] == ["Bearer one", "Bearer one", "Bearer two", "Bearer two"]


def test_forgetting_leaves_nothing(node: str, tmp_path: Path, authority) -> None:
    """When the DaemonSet is gone for good, no key stays on the node."""
    with playing(reply(200, {"status": {}})) as script:
        life = played(node, tmp_path, script.url)
        life.keeper.advance()
        life.put(CURRENT, aged(node, authority, 0.1))
        life.keeper.remove_files()
        life.keeper.remove_files()
    assert list(life.folder.iterdir()) == []


# --- files


def test_a_file_of_the_original_is_taken_over(node: str, tmp_path: Path, authority) -> None:
    """A link to a dated file, with a key in the older form, is read as it stands and used."""
    with playing(reply(200, {"major": "1"})) as script:
        life = played(node, tmp_path, script.url)
        made = aged(node, authority, 0.1)
        key = serialization.load_pem_private_key(made, None)
        form = serialization.PrivateFormat.TraditionalOpenSSL
        old = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        life.put("multus-client-2024-01-01-00-00-00.pem", made.partition(b"-----BEGIN PRIV")[0] + old)
        life.file(CURRENT).symlink_to(life.file("multus-client-2024-01-01-00-00-00.pem"))
        life.keeper.advance()
        assert {path for _, path, *_ in script.seen} == {"/version"}
        assert life.keeper.expiry() > time.time()


@pytest.mark.parametrize("name", [CURRENT, PENDING])
@pytest.mark.parametrize("text", [b"", b"\0" * 4096, b"-----BEGIN CERTIFICATE-----\n"])
def test_a_damaged_file_is_asked_for_anew(node: str, tmp_path: Path, name: str, text: bytes) -> None:
    """After a power cut a file of nothing or of zeros is replaced; the log says so."""
    with playing(reply(200, {"status": {}})) as script:
        life = played(node, tmp_path, script.url)
        life.put(name, text)
        life.begin()
        assert life.keeper.advance() >= 1
        assert certificate.read_request(life.file(PENDING).read_bytes(), node)
    assert life.told == []


def test_another_nodes_files_are_not_used(node: str, tmp_path: Path, authority, caplog) -> None:
    """A disk that was copied brings neither its certificate nor its key to another node."""
    other = certificate.create_request(f"other-{node}")
    with playing(reply(200, {"status": {}})) as script, caplog.at_level(logging.WARNING, "multus_py"):
        life = played(node, tmp_path, script.url)
        life.put(CURRENT, aged(f"other-{node}", authority, 0.1))
        life.put(PENDING, other.pem)
        life.keeper.advance()
        draft = certificate.read_request(life.file(PENDING).read_bytes(), node)
    assert draft.key != other.key
    assert f"it names system:multus:other-{node}" in caplog.text


def test_what_is_no_name_of_a_node_is_refused(tmp_path: Path) -> None:
    """The error says where the name comes from."""
    with playing(reply(200, {})) as script:
        life = played("Not_A_Node", tmp_path, script.url)
        life.keeper.advance()
    assert "set MULTUS_NODE_NAME" in life.told[0][2]


@pytest.fixture(scope="module")
def whole(authority) -> tuple[bytes, bytes]:
    """Give a certificate and a request, each with its key, of the node "n"."""
    return aged("n", authority, 0.1), certificate.create_request("n").pem


edits = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 40), st.binary(max_size=20)), min_size=1, max_size=4)


@given(edits=edits)
def test_a_changed_file_is_read_or_refused(whole: tuple[bytes, bytes], edits: list[tuple[int, int, bytes]]) -> None:
    """Whatever is cut out of a file or put in, reading it gives a certificate of the node, or an error of ours."""
    for text, reader in zip(whole, (certificate.read, certificate.read_request), strict=True):
        for start, length, more in edits:
            text = text[:start] + more + text[start + length :]  # noqa: PLW2901
        with suppress(CniError):
            assert reader(text, "n")


@given(text=st.binary(max_size=200))
def test_any_bytes_are_refused(text: bytes) -> None:
    """No bytes that were made up are taken for a certificate."""
    for reader in (certificate.read, certificate.read_request):
        with pytest.raises(CniError) as caught:
            reader(text, "n")
        assert caught.value.code == Code.DECODE


# --- the kubeconfig


def test_paths_are_made_absolute(tmp_path: Path) -> None:
    """A kubeconfig's own relative paths lead to the same files from another folder."""
    user = {
        "tokenFile": "t/token",
        "client-certificate": "/abs.pem",
        "exec": {"command": "./bin/helper", "args": ["a"]},
    }
    path = tmp_path / "kubeconfig"
    path.write_text(kubeconfig_text("https://s:6443", user, {"certificate-authority": "ca.crt"}))
    found = kubeconfig.read(path)
    assert found.cluster == {"server": "https://s:6443", "certificate-authority": f"{tmp_path}/ca.crt"}
    assert found.user == {
        "tokenFile": f"{tmp_path}/t/token",
        "client-certificate": "/abs.pem",
        "exec": {"command": f"{tmp_path}/bin/helper", "args": ["a"]},
    }


def test_with_a_certificate_nothing_of_the_first_account_is_left(tmp_path: Path) -> None:
    """The kubeconfig with the certificate names the same server, and holds no token and no command."""
    path = tmp_path / "kubeconfig"
    path.write_text(kubeconfig_text("https://s:6443", {"token": "secret"}, {"insecure-skip-tls-verify": True}))
    written = tmp_path / "written"
    written.write_bytes(kubeconfig.read(path).with_certificate(Path("/c.pem")).text())
    assert b"secret" not in written.read_bytes()
    assert kubeconfig.read(written) == kubeconfig.Access(
        {"server": "https://s:6443", "insecure-skip-tls-verify": True},
        {"client-certificate": "/c.pem", "client-key": "/c.pem"},
    )


@pytest.mark.parametrize(
    ("host", "server"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_the_account_of_a_pod(tmp_path: Path, host: str, server: str) -> None:
    """Without a kubeconfig the first account is what kubelet mounts; outside of a pod the error says what to set."""
    found = kubeconfig.in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}, tmp_path)
    assert found.cluster == {"server": server, "certificate-authority": f"{tmp_path}/ca.crt"}
    assert found.user == {"tokenFile": f"{tmp_path}/token"}
    with pytest.raises(CniError, match="set 'kubeconfig'"):
        kubeconfig.in_cluster({})


parts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["one", "https://s"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "clusters",
                    "users",
                    "contexts",
                    "current-context",
                    "name",
                    "cluster",
                    "user",
                    "context",
                    "server",
                    "exec",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(body=parts)
def test_any_kubeconfig_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, body: object) -> None:
    """A kubeconfig of any shape gives a server and an account, or an error of ours."""
    path = tmp_path_factory.getbasetemp() / "odd-kubeconfig"
    path.write_text(json.dumps(body))
    with suppress(CniError):
        assert kubeconfig.read(path).cluster["server"]


# --- the config


def test_the_keys_of_the_config(tmp_path: Path) -> None:
    """multus-cni's keys are read; certDir has a place of its own when it is absent."""
    body = {"enabled": True, "bootstrapKubeconfig": "/k", "certDir": "/c", "certDuration": "1h30m"}
    parsed = daemon_config.parse({"perNodeCertificate": body})
    assert parsed.certificate == NodeCertificate(Path("/c"), "/k", 5400)
    parsed = daemon_config.parse({"cniDir": str(tmp_path), "perNodeCertificate": {"enabled": True}})
    assert parsed.certificate == NodeCertificate(tmp_path / "certs", "", 600)
    assert daemon_config.parse({"perNodeCertificate": {**body, "enabled": False}}).certificate is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("24h", 86400), ("1.5h", 5400), ("600.5s", 600), ("+1h1ms", 3600)]
)
def test_times_as_go_writes_them(text: str, seconds: int) -> None:
    """certDuration is read as multus-cni reads it."""
    parsed = daemon_config.parse({"perNodeCertificate": {"enabled": True, "certDuration": text}})
    assert parsed.certificate
    assert parsed.certificate.seconds == seconds


@pytest.mark.parametrize("text", ["9m59s", "1d", "24", "-24h", "h", "1.2.3h", "24h ", "9" * 400 + "h", "\u0666h", 3600])
def test_times_that_no_api_server_takes_are_refused(text: object) -> None:
    """What is no time, shorter than ten minutes, or longer than fits is refused when the daemon starts."""
    with pytest.raises(CniError, match="certDuration"):
        daemon_config.parse({"perNodeCertificate": {"enabled": True, "certDuration": text}})


def test_a_folder_of_manifests_needs_no_certificate() -> None:
    """Both together are a mistake that is told."""
    with pytest.raises(CniError, match="exclude each other"):
        daemon_config.parse({"manifests": "/m", "perNodeCertificate": {"enabled": True}})


def test_who_wants_no_certificate_does_not_pay_for_it() -> None:
    """A daemon's start imports no cryptography, which takes 20 MB, unless the config asks for a certificate."""
    modules = "multus_py.entry.daemon, multus_py.kube.cached_apiserver"
    program = f"import sys; import {modules}; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
