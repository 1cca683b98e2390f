# SPDX-License-Identifier: Apache-2.0
"""Accounts with the manifest's permissions, or others, on a real API server."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rendered
from cluster import Cluster, kubeconfig_text
from rendered import DEPLOY


@dataclass(frozen=True)
class Rules:
    """What an account may do: in the whole cluster, and in its own namespace."""

    cluster: list[dict[str, Any]]
    own: list[dict[str, Any]]


def rules() -> Rules:
    """Return the rules of the manifest."""
    found = rendered.objects(DEPLOY / "base")
    return Rules(found["ClusterRole"]["rules"], found["Role"]["rules"])


def asking() -> Rules:
    """Return the rules by which an account asks for a client certificate."""
    found = rendered.objects(DEPLOY / "overlays" / "per-node-certificate")
    return Rules(*(found[f"{kind}/multus-py-certificate"]["rules"] for kind in ("ClusterRole", "Role")))


@contextmanager
def account(cluster: Cluster, found: Rules, folder: Path) -> Iterator[Path]:
    """Make a ServiceAccount with these rules, as the manifests bind them; yield its kubeconfig."""
    name = f"mpt-{secrets.token_hex(4)}"
    cluster.kubectl("create", "serviceaccount", name)
    for kind, listed in (("ClusterRole", found.cluster), ("Role", found.own)):
        about = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
        cluster.kubectl("create", "-f", "-", manifest={**about, "kind": kind, "rules": listed})
        subject = {"kind": "ServiceAccount", "name": name, "namespace": cluster.namespace}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        binding = {**about, "kind": f"{kind}Binding", "roleRef": reference, "subjects": [subject]}
        cluster.kubectl("create", "-f", "-", manifest=binding)
    token = cluster.kubectl("create", "token", name).strip()
    admin = json.loads(cluster.admin.read_text())["clusters"][0]["cluster"]
    authority = {"certificate-authority": admin["certificate-authority"]}
    path = folder / f"{name}.kubeconfig"
    path.write_text(kubeconfig_text(admin["server"], {"token": token}, authority))
    try:
        yield path
    finally:
        cluster.kubectl("delete", "clusterrolebinding,clusterrole", name, "--wait=false")
