# SPDX-License-Identifier: Apache-2.0
"""Kubernetes Events about the networks of a pod."""

import logging
from typing import Literal

from multus_py.cni.errors import CniError
from multus_py.cni.result import Result
from multus_py.kube.store import Pod
from multus_py.plan.attachment import Attachment
from multus_py.verbs.node import Node

log = logging.getLogger("multus_py")


def publish(node: Node, pod: Pod | None, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
    """Publish an Event of a pod; an error is logged, and the verb goes on."""
    if pod and node.store:
        try:
            node.store.event(pod, kind, reason, message)
        except CniError as error:
            log.warning("event %s of pod %s was not published: %s", reason, pod.ref, error)


def added_message(attachment: Attachment, result: Result) -> str:
    """Return the message of the Event AddedInterface, in multus-cni's words."""
    addresses = " ".join(ip.address.with_prefixlen for ip in result.ips)
    return f"Add {attachment.ifname} [{addresses}] from {attachment.name}"
