# SPDX-License-Identifier: Apache-2.0
"""Events about a pod's networks."""

import logging
from typing import Literal

from multus_py.cni.errors import CniError
from multus_py.cni.result import Result
from multus_py.kube.store import Pod
from multus_py.plan.attachment import Attachment
from multus_py.verbs.node import Node

log = logging.getLogger("multus_py")


def publish(node: Node, pod: Pod | None, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
    """Publish an Event. One that cannot be published is logged: a pod does not fail for it."""
    if pod and node.store:
        try:
            node.store.event(pod, kind, reason, message)
        except CniError as error:
            log.warning("event %s of pod %s was not told: %s", reason, pod.ref, error)


def added(attachment: Attachment, result: Result) -> str:
    """Return what the Event of an attached network says."""
    addresses = " ".join(ip.address.with_prefixlen for ip in result.ips)
    return f"Add {attachment.ifname} [{addresses}] from {attachment.name}"
