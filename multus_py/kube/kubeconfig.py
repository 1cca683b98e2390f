# SPDX-License-Identifier: Apache-2.0
"""A kubeconfig as data: the server and the account of its current context, written anew with another account.

Requests are sent by `session.py`, which leaves the reading of kubeconfigs to the kubernetes package.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multus_py.cni.errors import CniError, Code
from multus_py.kube import manifests

# Where kubelet mounts a pod's account (Kubernetes documentation, "Accessing the API from within a pod").
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Keys that name files, which a kubeconfig may give relative to its own folder.
_CLUSTER_FILES = ("certificate-authority",)
_USER_FILES = ("client-certificate", "client-key", "tokenFile")


@dataclass(frozen=True)
class Access:
    """One server and one account: the tables `cluster` and `user` of a kubeconfig, all paths absolute."""

    cluster: Mapping[str, Any]
    user: Mapping[str, Any]

    def with_certificate(self, pem: Path) -> "Access":
        """Return the way to the same server for the account of a certificate; *pem* holds it and its key."""
        return replace(self, user={"client-certificate": str(pem), "client-key": str(pem)})

    def text(self) -> bytes:
        """Return a whole kubeconfig, in JSON, which is YAML."""
        body = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": dict(self.cluster)}],
            "users": [{"name": "user", "user": dict(self.user)}],
            "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
            "current-context": "context",
        }
        return json.dumps(body, indent=2, default=str).encode() + b"\n"


def in_cluster(environment: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> Access:
    """Return the access of a pod's service account, as kubelet provides it; code 7 when this is no pod."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not (host and port):
        raise CniError(
            Code.INVALID_CONFIG,
            "cannot find the API server: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set",
            "set 'kubeconfig' or 'bootstrapKubeconfig' when this is not a pod",
        )
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Access(
        {"server": server, "certificate-authority": str(folder / "ca.crt")}, {"tokenFile": str(folder / "token")}
    )


def read(path: Path) -> Access:
    """Return the current context of the kubeconfig at *path*; code 7 says what is wrong with it."""
    body = _document(path)
    name = body.get("current-context")
    context = _named(path, body, "contexts", "context", name)
    cluster = _named(path, body, "clusters", "cluster", context.get("cluster"))
    user = _named(path, body, "users", "user", context.get("user"))
    if not isinstance(cluster.get("server"), str):
        raise _wrong(path, f"cluster {context.get('cluster')!r} names no server")
    folder = path.absolute().parent
    return Access(
        _absolute(cluster, _CLUSTER_FILES, folder), _with_command(_absolute(user, _USER_FILES, folder), folder)
    )


def _document(path: Path) -> Mapping[str, Any]:
    try:
        found = list(manifests.documents(path.read_bytes(), is_json=False))
    except OSError as cause:
        raise _wrong(path, str(cause.strerror)) from cause
    if problems := [f"line {each.line}: {each.problem}" for each in found if each.problem]:
        raise _wrong(path, "; ".join(problems))
    bodies = [each.body for each in found if isinstance(each.body, Mapping)]
    if len(bodies) != 1:
        raise _wrong(path, "it does not hold one object")
    return bodies[0]


def _named(path: Path, body: Mapping[str, Any], listed: str, kind: str, name: object) -> Mapping[str, Any]:
    """Return the table *kind* of the entry that is called *name*."""
    entries = body.get(listed)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and entry.get("name") == name and isinstance(entry.get(kind), Mapping):
            table: Mapping[str, Any] = entry[kind]
            return table
    raise _wrong(path, f"it has no {kind} {name!r}")


def _absolute(table: Mapping[str, Any], keys: tuple[str, ...], folder: Path) -> dict[str, Any]:
    files = {key: str(folder / table[key]) for key in keys if isinstance(table.get(key), str) and table[key]}
    return {**table, **files}


def _with_command(user: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the account with its credential command, unless that is sought on PATH, as a path of its own."""
    helper = user.get("exec")
    command = helper.get("command") if isinstance(helper, Mapping) else None
    if not isinstance(helper, Mapping) or not isinstance(command, str) or "/" not in command:
        return user
    return {**user, "exec": {**helper, "command": str(folder / command)}}


def _wrong(path: Path, why: str) -> CniError:
    return CniError(
        Code.INVALID_CONFIG, f"cannot read the kubeconfig {path}: {why}", "name a kubeconfig that kubectl can use"
    )
