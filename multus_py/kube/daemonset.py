# SPDX-License-Identifier: Apache-2.0
"""Whether the DaemonSet that a pod belongs to is being taken away, which is not the same as a pod that is replaced."""

import time
from collections.abc import Mapping
from typing import Any

from multus_py.cni.errors import CniError, Code
from multus_py.kube.http import Request
from multus_py.kube.session import Client
from multus_py.kube.store import NotFound, PodRef


def is_deleted(client: Client, pod: PodRef, seconds: float) -> bool:
    """Tell whether the DaemonSet of *pod* is deleted or being deleted; an error when the server does not answer.

    An account that the server refuses was deleted, too: no next daemon could use it.
    """
    until = time.monotonic() + seconds
    try:
        owner = _owner(client.send(_request(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}", "pods"), until))
    except NotFound:
        raise
    except CniError as refused:
        if refused.code == Code.INVALID_CONFIG:
            return True
        raise
    if owner is None:
        return False
    path = f"/apis/apps/v1/namespaces/{pod.namespace}/daemonsets/{owner['name']}"
    try:
        found = client.send(_request(path, "daemonsets.apps"), until)
    except NotFound:
        return True
    about = found.get("metadata") or {}
    return bool(about.get("deletionTimestamp")) or about.get("uid") != owner.get("uid")


def _request(path: str, resource: str) -> Request:
    return Request("GET", path, "read whose pod we are", f"get {resource}")


def _owner(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    owners = (pod.get("metadata") or {}).get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("kind") == "DaemonSet" and owner.get("name")), None)
