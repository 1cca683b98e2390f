# SPDX-License-Identifier: Apache-2.0
"""A real API server that knows its users by certificates, too, and a real kube-controller-manager that signs them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster
from cluster import Cluster, NoCluster, Process

GROUP = "system:multus"
BOOTSTRAP = "stranger"  # a user of the cluster's tokens, who may do nothing else
RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class Signing:
    """The cluster, a kubeconfig whose user may ask for certificates alone, and the authority's files."""

    cluster: Cluster
    bootstrap: Path
    authority: Path
    authority_key: Path

    def requests(self, node: str) -> list[dict[str, Any]]:
        """Return the requests of a node."""
        items = json.loads(self.cluster.kubectl("get", "csr", "-o", "json"))["items"]
        return [each for each in items if each["metadata"]["name"].startswith(f"multus-py-{node}-")]

    def undecided(self, node: str) -> list[str]:
        """Return the names of a node's requests that nobody approved or denied yet."""
        return [each["metadata"]["name"] for each in self.requests(node) if "conditions" not in each["status"]]

    def decide(self, node: str, decision: str) -> str:
        """Approve or deny the one request of a node that nobody decided yet; return its name."""
        (name,) = self.undecided(node)
        self.cluster.kubectl("certificate", decision, name)
        return name


@contextmanager
def start(folder: Path) -> Iterator[Signing]:
    """Start etcd, API server and controller manager in *folder*; `NoCluster` says which of them is missing."""
    signer = _binary("kube-controller-manager")
    with cluster.start(folder, None) as found:
        if found.servers is None or found.stranger is None:
            raise NoCluster("certificates are signed by servers of our own alone")
        authority, key = folder / "clients.crt", folder / "clients.key"
        make_authority(authority, key)
        found.servers.api.kill()
        found.servers.api.words.append(f"--client-ca-file={authority}")
        found.servers.restart()
        words = [signer, f"--kubeconfig={found.admin}", "--controllers=csrsigning,csrcleaner", "--leader-elect=false"]
        words += ["--secure-port=0", f"--cluster-signing-cert-file={authority}", f"--cluster-signing-key-file={key}"]
        if "--port " in subprocess.run([signer, "--help"], capture_output=True, text=True, check=False).stdout:
            words += ["--port=0"]  # gone in 1.24
        process = Process(words, folder / "signer.log")
        process.start()
        try:
            _bind(found)
            yield Signing(found, found.stranger, authority, key)
        finally:
            process.kill()


def make_authority(certificate: Path, key: Path) -> None:
    """Make an authority for client certificates."""
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    words += ["-subj", "/CN=clients of the tests", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)


def _binary(name: str) -> str:
    given = Path(os.environ.get("REF_BIN", "/nonexistent"), name)
    found = str(given) if given.exists() else shutil.which(name)
    if not found:
        raise NoCluster(f"no {name} in $REF_BIN or on PATH")
    return found


def _bind(found: Cluster) -> None:
    """Let the group do what the project needs, and both the group and the first account ask for certificates."""
    rule = {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"]}
    role = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": "mpt-asks"}}
    found.kubectl("create", "-f", "-", manifest={**role, "rules": [{**rule, "verbs": ["create", "get"]}]})
    words = ["create", "clusterrolebinding"]
    found.kubectl(*words, "mpt-asks", "--clusterrole=mpt-asks", f"--user={BOOTSTRAP}", f"--group={GROUP}")
    found.kubectl(*words, "mpt-works", "--clusterrole=plugin", f"--group={GROUP}")
