# SPDX-License-Identifier: Apache-2.0
"""A real API server for the tests: etcd and the kube-apiserver of $REF_BIN or PATH, or the cluster of KUBECONFIG."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# What the project documents as enough for itself.
RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {
        "apiGroups": ["k8s.cni.cncf.io"],
        "resources": ["network-attachment-definitions"],
        "verbs": ["get", "list", "watch"],
    },
]


class NoCluster(Exception):
    """There is no API server to be had here; the message is the reason for the skip."""


@dataclass
class Process:
    """A server that logs into a file; it can be killed and started again."""

    words: list[str]
    log: Path
    _running: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it; the log goes on."""
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(self.words, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill it without a word, and wait until it is gone."""
        if self._running:
            self._running.kill()
            self._running.wait()

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self._running is not None and self._running.poll() is not None


@dataclass(frozen=True)
class Servers:
    """The API server that we started, and the address of its etcd."""

    api: Process
    etcd: str
    admin: Path

    def restart(self) -> None:
        """Start the API server again and wait until it answers."""
        self.api.start()
        _wait_until_ready(self.admin, self.api)

    def compact(self) -> None:
        """Have etcd forget every version but the newest (etcd's JSON gateway, v3)."""
        newest = _post(f"{self.etcd}/v3/kv/range", {"key": b64encode(b"/").decode()})["header"]["revision"]
        _post(f"{self.etcd}/v3/kv/compaction", {"revision": newest, "physical": True})


@dataclass(frozen=True)
class Cluster:
    """An API server with our custom resource installed and a namespace of our own."""

    admin: Path  # a kubeconfig that may do everything
    plugin: Path  # a kubeconfig that may do what the project asks for
    stranger: Path | None  # a kubeconfig that may do nothing; None on a cluster that we did not start
    namespace: str
    servers: Servers | None  # None on a cluster that we did not start

    def kubectl(self, *words: str, manifest: Mapping[str, Any] | None = None) -> str:
        """Run kubectl as administrator in our namespace; return what it printed."""
        return _kubectl(self.admin, "-n", self.namespace, *words, manifest=manifest)


def _kubectl(kubeconfig: Path, *words: str, manifest: Mapping[str, Any] | None = None) -> str:
    done = subprocess.run(
        ["kubectl", "--kubeconfig", str(kubeconfig), *words],
        input=json.dumps(manifest) if manifest else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise RuntimeError(f"kubectl {' '.join(words)}: {done.stderr}")
    return done.stdout


@contextmanager
def start(folder: Path, kubeconfig: str | None) -> Iterator[Cluster]:
    """Start an API server in *folder*, or use the cluster of *kubeconfig* when there is no binary."""
    if not shutil.which("kubectl"):
        raise NoCluster("no kubectl on PATH")
    binary = _binary()
    with ExitStack() as stack:
        if binary and shutil.which("etcd") and shutil.which("openssl"):
            servers, plugin, stranger = stack.enter_context(_servers(folder, binary))
            admin = servers.admin
        elif kubeconfig:
            admin, plugin, stranger, servers = Path(kubeconfig), Path(kubeconfig), None, None
        else:
            raise NoCluster("no kube-apiserver in $REF_BIN or on PATH (with etcd and openssl), and no KUBECONFIG")
        namespace = f"mpt-{secrets.token_hex(4)}"
        _kubectl(admin, "apply", "-f", str(ROOT / "crds/network-attachment-definitions.yaml"))
        _kubectl(
            admin,
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "crd/network-attachment-definitions.k8s.cni.cncf.io",
        )
        _kubectl(admin, "create", "namespace", namespace)
        stack.callback(_kubectl, admin, "delete", "namespace", namespace, "--wait=false")
        yield Cluster(admin, plugin, stranger, namespace, servers)


def _binary() -> str | None:
    given = Path(os.environ.get("REF_BIN", "/nonexistent"), "kube-apiserver")
    return str(given) if given.exists() else shutil.which("kube-apiserver")


@contextmanager
def _servers(folder: Path, binary: str) -> Iterator[tuple[Servers, Path, Path]]:
    client, peer, secure = _ports(3)
    etcd_url, api_url = f"http://127.0.0.1:{client}", f"https://127.0.0.1:{secure}"
    key, tokens = folder / "sa.key", folder / "tokens.csv"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    tokens.write_text('admin,admin,admin,"system:masters"\nplugin,plugin,plugin\nstranger,stranger,stranger\n')
    etcd = ["etcd", f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync"]
    etcd += [f"--listen-client-urls={etcd_url}", f"--advertise-client-urls={etcd_url}"]
    etcd += [f"--listen-peer-urls=http://127.0.0.1:{peer}"]
    api = [binary, f"--etcd-servers={etcd_url}", "--bind-address=127.0.0.1", f"--secure-port={secure}"]
    api += [f"--cert-dir={folder / 'certs'}", f"--token-auth-file={tokens}", "--authorization-mode=RBAC"]
    api += ["--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={key}"]
    api += [f"--service-account-signing-key-file={key}", "--service-cluster-ip-range=10.96.0.0/16"]
    # Pods are made by hand here: nobody makes service accounts.
    api += ["--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none"]
    api += ["--allow-privileged=true"]  # as on any cluster that has a network of its own
    with _process(folder, "etcd", etcd), _process(folder, "apiserver", api) as server:
        configs = [_kubeconfig(folder, api_url, user) for user in ("admin", "plugin", "stranger")]
        _wait_until_ready(configs[0], server)
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "plugin"}}
        _kubectl(configs[0], "apply", "-f", "-", manifest={**role, "rules": RULES})
        _kubectl(configs[0], "create", "clusterrolebinding", "plugin", "--clusterrole=plugin", "--user=plugin")
        yield Servers(server, etcd_url, configs[0]), configs[1], configs[2]


def _kubeconfig(folder: Path, url: str, user: str) -> Path:
    path = folder / f"{user}.kubeconfig"
    path.write_text(
        kubeconfig_text(url, {"token": user}, {"certificate-authority": str(folder / "certs/apiserver.crt")})
    )
    return path


def kubeconfig_text(url: str, user: Mapping[str, Any], cluster: Mapping[str, Any] | None = None) -> str:
    """Return a kubeconfig (JSON is YAML) for one server and one user."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "one", "cluster": {"server": url, **(cluster or {})}}],
            "users": [{"name": "one", "user": user}],
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
            "current-context": "one",
        }
    )


@contextmanager
def _process(folder: Path, name: str, words: list[str]) -> Iterator[Process]:
    process = Process(words, folder / f"{name}.log")
    process.start()
    try:
        yield process
    finally:
        process.kill()


def _wait_until_ready(kubeconfig: Path, server: Process) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and not server.ended:
        try:
            _kubectl(kubeconfig, "get", "--raw", "/readyz")
        except RuntimeError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"the API server did not become ready: {server.log.read_text(errors='replace')[-2000:]}")


def _post(url: str, body: Mapping[str, Any]) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as answer:
        return json.load(answer)


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
