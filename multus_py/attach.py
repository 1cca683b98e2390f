# SPDX-License-Identifier: Apache-2.0
"""Attaching, in the parts that a pod's start and a network plugged in later share: one network, devices, status."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from multus_py import device_info, devices, network_status
from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError
from multus_py.cni.result import Result
from multus_py.kube.store import Pod
from multus_py.kubelet import Kubelet
from multus_py.node import Node
from multus_py.plan import Attachment

log = logging.getLogger("multus_py")


def one(attachment: Attachment, call: Call, node: Node) -> Result:
    """Run the chain of one network; the error of a delegate is told with the network and the interface."""
    started = node.monotonic()
    try:
        _offer(attachment, node)
        body = node.chain.add(attachment, call)
    except CniError as error:
        raise error.while_(f"network {attachment.name} as {attachment.ifname}") from error
    took = (node.monotonic() - started) * 1000
    log.info("ADD %s %s as %s in %.1f ms", call.container_id, attachment.name, attachment.ifname, took)
    return results.read(body, attachment.conflist.version)


def publish(told: Iterable[tuple[Attachment, Result]], netns: str, node: Node, pod: Pod | None) -> None:
    """Write network-status, whole, from the results of all attachments of a pod."""
    if pod is None or node.store is None:
        return
    statuses = [
        status
        for attachment, result in told
        for status in network_status.build(attachment, result, netns, _device(attachment, node))
    ]
    node.store.publish_status(pod, network_status.annotation(statuses))


def device_sources(call: Call, node: Node, pod: Pod | None) -> Sequence[devices.Source] | None:
    """Return who can tell which devices the pod was given: kubelet, then the claims; None when there is no pod."""
    if pod is None or node.store is None:
        return None
    config = node.config
    kubelet = Kubelet(config.pod_resources_socket, config.api_deadline, node.sleep, node.monotonic)
    # The runtime knows a static pod by kubelet's uid, the API by another.
    ref = replace(pod.ref, uid=call.arg("K8S_POD_UID") or pod.uid)
    return partial(kubelet.devices, ref), partial(node.store.claimed, pod)


def _offer(attachment: Attachment, node: Node) -> None:
    """Hand on what the device plugin tells; what cannot be told is logged, for the interface matters more."""
    try:
        device_info.offer(attachment.capabilities, attachment.device, node.config.device_info_dir)
    except CniError as error:
        log.warning("network %s as %s: %s", attachment.name, attachment.ifname, error)


def _device(attachment: Attachment, node: Node) -> dict[str, Any] | None:
    """Return what is told of an attachment's device, for the pod; what cannot be read is logged."""
    try:
        return device_info.read(attachment.capabilities, node.config.device_info_dir)
    except CniError as error:
        log.warning("network %s as %s: %s", attachment.name, attachment.ifname, error)
        return None
