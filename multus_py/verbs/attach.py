# SPDX-License-Identifier: Apache-2.0
"""Attach networks to a sandbox, default routes and status included: for ADD, hot plug and repair."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.cni.result import Result
from multus_py.kernel import netlink
from multus_py.kube.kubelet import Kubelet
from multus_py.kube.store import Pod
from multus_py.plan import device_info, devices
from multus_py.plan.attachment import Attachment
from multus_py.state.journal import SandboxFile
from multus_py.state.journal_entry import complete_progress, uncertain_progress
from multus_py.verbs import default_route, network_status
from multus_py.verbs.node import Node, WorkerProcesses

log = logging.getLogger("multus_py")

AttachedNetwork = tuple[Attachment, Result]  # with the result of its last plugin


def attach_networks(
    file: SandboxFile,
    attachments: Sequence[Attachment],
    call: Call,
    node: Node,
    *,
    existing: Sequence[Attachment] = (),
    workers: WorkerProcesses | None = None,
) -> list[Result]:
    """Attach networks in order to a sandbox that has those in *existing*; record the progress in *file*.

    While *workers* are needed, networks without an executable are attached there.
    """
    workers = workers if workers and workers.is_needed() else None
    attached: list[Result] = []
    for in_worker, members in groupby(attachments, lambda item: workers and node.chain.owns_interface(item, call)):
        group = tuple(members)
        if workers and in_worker and (found := _attach_in_worker(file, workers, group, call, node)) is not None:
            attached += found
            continue
        for attachment in group:
            before = (*existing, *attachments[: len(attached)])
            links = _link_names(call.netns) if _may_replace(attachment, before, call, node) else None
            _provide_device_info(attachment, node)
            started = node.monotonic()
            try:
                body = node.chain.add(attachment, call, partial(file.record_progress, attachment))
            except CniError as error:
                raise error.with_context(str(attachment)) from error
            attached.append(_attached(attachment, call, body, node.monotonic() - started))
            if links:
                _refuse_replaced(attachment, links - _link_names(call.netns))
    return attached


def _attach_in_worker(
    file: SandboxFile, workers: WorkerProcesses, group: tuple[Attachment, ...], call: Call, node: Node
) -> list[Result] | None:
    """Attach networks in a worker process; None when no worker is free, and then nothing was begun."""
    for attachment in group:
        _provide_device_info(attachment, node)
        file.set_progress(attachment, *uncertain_progress(attachment))
    file.write_progress(group[0], *uncertain_progress(group[0]))
    finished = workers.add(group, call, node.chain)
    if finished is None:
        for attachment in group:
            file.set_progress(attachment, 0, 0)
        return None
    for attachment in group:
        file.set_progress(attachment, *complete_progress(attachment))
    return [_attached(attachment, call, *timed) for attachment, timed in zip(group, finished, strict=True)]


def _attached(attachment: Attachment, call: Call, body: Mapping[str, Any], seconds: float) -> Result:
    """Log an attachment; return the result of its last plugin."""
    log.info("ADD %s %s as %s in %.1f ms", call.container_id, attachment.name, attachment.ifname, seconds * 1000)
    return results.read(body, attachment.conflist.version)


def _may_replace(attachment: Attachment, before: Sequence[Attachment], call: Call, node: Node) -> bool:
    """Tell whether the plugin may replace an interface that it created for this sandbox before.

    Some plugins serve one interface a pod and replace it at the next ADD (Calico names its veth by the pod).
    """
    plugin = attachment.conflist.types[:1]
    again = plugin in [other.conflist.types[:1] for other in before]
    return again and not node.chain.owns_interface(attachment, call)


def _refuse_replaced(attachment: Attachment, removed: set[str]) -> None:
    """Raise when ADD of a network removed interfaces."""
    if removed:
        raise CniError(
            Code.INVALID_CONFIG,
            f"{attachment}: plugin {attachment.conflist.types[0]} took {', '.join(sorted(removed))} away, "
            "which it made before",
            "it serves one interface of a pod: choose a network of another type; a pod that ran has to be started anew",
        )


def refuse_taken_names(netns: str, attachments: Sequence[Attachment]) -> None:
    """Refuse an interface name that exists in the sandbox: a rollback would remove an interface that is not ours."""
    existing = _link_names(netns)
    if taken := [attachment.ifname for attachment in attachments if attachment.ifname in existing]:
        raise CniError(
            Code.INVALID_CONFIG,
            f"interface name {', '.join(taken)} already exists in {netns}",
            "ask for another name, or remove the existing interface",
        )


def _link_names(netns: str) -> set[str]:
    with netlink.open(netns) as kernel:
        return kernel.link_names()


def cached_results(attachments: Iterable[Attachment], call: Call, node: Node) -> list[AttachedNetwork]:
    """Return attachments of a running sandbox with their cached results; those without a result are left out."""
    found = [(attachment, node.chain.cached_result(attachment, call)) for attachment in attachments]
    return [(attachment, result) for attachment, result in found if result is not None]


def apply_default_routes(
    attached: Iterable[AttachedNetwork], claims: Sequence[default_route.Claim], call: Call, node: Node
) -> list[AttachedNetwork]:
    """Apply the requested default routes in the kernel, then in the results and their cached copies."""
    before = list(attached)
    if not claims:
        return before
    default_route.apply_claims(call.netns, claims)
    after = [default_route.with_claims(attachment, result, claims) for attachment, result in before]
    return _store_changed(before, after, call, node)


def restore_default_routes(
    attached: Iterable[AttachedNetwork], claims: Sequence[default_route.Claim], call: Call, node: Node
) -> list[AttachedNetwork]:
    """Reverse `apply_default_routes` for claimers that are detached: in the kernel, then in the remaining results."""
    before = list(attached)
    restored = default_route.restore(call.netns, claims)
    after = [default_route.with_restored(attachment, result, restored) for attachment, result in before]
    return _store_changed(before, after, call, node)


def _store_changed(
    before: Sequence[AttachedNetwork], after: Sequence[Result], call: Call, node: Node
) -> list[AttachedNetwork]:
    """Cache the results that changed; return all of them."""
    for (attachment, result), changed in zip(before, after, strict=True):
        if changed != result:
            node.chain.store_routes(attachment, call, changed)
    return [(attachment, result) for (attachment, _), result in zip(before, after, strict=True)]


def publish_status(attached: Iterable[AttachedNetwork], netns: str, node: Node, pod: Pod | None) -> None:
    """Publish the network-status annotation of a pod from the results of all its attachments."""
    if pod is None or node.store is None:
        return
    statuses = [
        status
        for attachment, result in attached
        for status in network_status.statuses(attachment, result, netns, _device_info(attachment, node))
    ]
    node.store.publish_status(pod, network_status.annotation(statuses))


def device_sources(call: Call, node: Node, pod: Pod | None) -> Sequence[devices.Source] | None:
    """Return the sources of the devices allocated to the pod: kubelet, then resource claims; None without a pod."""
    if pod is None or node.store is None:
        return None
    config = node.config
    kubelet = Kubelet(config.pod_resources_socket, config.api_deadline, node.sleep, node.monotonic)
    # Of a static pod, the runtime has the uid from kubelet, the API another one.
    ref = replace(pod.ref, uid=call.arg("K8S_POD_UID") or pod.uid)
    return partial(kubelet.devices, ref), partial(node.store.claimed, pod)


def _provide_device_info(attachment: Attachment, node: Node) -> None:
    """Copy the device plugin's information to where the CNI plugin reads it; an error is logged, ADD goes on."""
    try:
        device_info.provide(attachment.capabilities, attachment.device, node.config.device_info_dir)
    except CniError as error:
        log.warning("%s: %s", attachment, error)


def _device_info(attachment: Attachment, node: Node) -> dict[str, Any] | None:
    """Return the device information of an attachment; what cannot be read is logged."""
    try:
        return device_info.read(attachment.capabilities, node.config.device_info_dir)
    except CniError as error:
        log.warning("%s: %s", attachment, error)
        return None
