# SPDX-License-Identifier: Apache-2.0
"""Attaching, in the parts that a pod's start and a network plugged in later share."""

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

AttachedNetwork = tuple[Attachment, Result]  # a network that is attached, and what its plugins said


def attach_all(page: SandboxFile, attachments: Sequence[Attachment], call: Call, node: Node) -> list[Result]:
    """Run every chain, one after the other; the page is told how far each came.

    While this process has other calls, networks that need no executable are attached by another one.
    """
    elsewhere = node.workers if node.workers and node.workers.is_needed() else None
    found: list[Result] = []
    for native, together in groupby(attachments, lambda one: elsewhere and node.chain.owns_interface(one, call)):
        group = tuple(together)
        if elsewhere and native and (done := _elsewhere(page, elsewhere, group, call, node)) is not None:
            found += done
            continue
        for attachment in group:
            found.append(attach_one(page, attachments[: len(found)], attachment, call, node))
    return found


def _elsewhere(
    page: SandboxFile, elsewhere: WorkerProcesses, group: tuple[Attachment, ...], call: Call, node: Node
) -> list[Result] | None:
    """Have networks attached by another process; None when none has time, and then nothing was begun."""
    for attachment in group:
        _offer(attachment, node)
        page.set_progress(attachment, *uncertain_progress(attachment))
    page.write_progress(group[0], *uncertain_progress(group[0]))
    done = elsewhere.add(group, call, node.chain)
    if done is None:
        for attachment in group:
            page.set_progress(attachment, 0, 0)
        return None
    for attachment in group:
        page.set_progress(attachment, *complete_progress(attachment))
    return [_done(attachment, call, *one) for attachment, one in zip(group, done, strict=True)]


def _run_chain(page: SandboxFile, attachment: Attachment, call: Call, node: Node) -> Result:
    """Run the chain of one network; the error of a delegate is told with the network and the interface."""
    _offer(attachment, node)
    started = node.monotonic()
    try:
        body = node.chain.add(attachment, call, partial(_told, page, attachment))
    except CniError as error:
        raise error.with_context(str(attachment)) from error
    return _done(attachment, call, body, node.monotonic() - started)


def _told(page: SandboxFile, attachment: Attachment, begun: int, done: int) -> None:
    """Tell the page how far a chain came; what is begun stands there before it is."""
    (page.write_progress if begun > done else page.set_progress)(attachment, begun, done)


def _done(attachment: Attachment, call: Call, body: Mapping[str, Any], seconds: float) -> Result:
    """Log what was attached; return the result that the last plugin said."""
    log.info("ADD %s %s as %s in %.1f ms", call.container_id, attachment.name, attachment.ifname, seconds * 1000)
    return results.read(body, attachment.conflist.version)


def attach_one(
    page: SandboxFile, before: Sequence[Attachment], attachment: Attachment, call: Call, node: Node
) -> Result:
    """Attach one network; refuse it when its plugin takes away what it made for this sandbox before.

    Some systems serve one interface a pod and replace it when they are asked again (Calico names its veth by the pod).
    """
    plugin = attachment.conflist.types[:1]
    alone = plugin not in [other.conflist.types[:1] for other in before]
    if alone or node.chain.owns_interface(attachment, call):
        return _run_chain(page, attachment, call, node)
    there = _link_names(call.netns)
    result = _run_chain(page, attachment, call, node)
    if lost := sorted(there - _link_names(call.netns)):
        raise CniError(
            Code.INVALID_CONFIG,
            f"{attachment}: plugin {plugin[0]} took {', '.join(lost)} away, which it made before",
            "it serves one interface of a pod: choose a network of another type; a pod that ran has to be started anew",
        )
    return result


def refuse_taken_names(netns: str, attachments: Sequence[Attachment]) -> None:
    """Refuse a name that something else has in the sandbox: taking back would remove what is not ours."""
    there = _link_names(netns)
    if taken := [attachment.ifname for attachment in attachments if attachment.ifname in there]:
        raise CniError(
            Code.INVALID_CONFIG,
            f"interface name {', '.join(taken)} already exists in {netns}",
            "ask for another name, or remove the interface that is there",
        )


def _link_names(netns: str) -> set[str]:
    with netlink.open(netns) as kernel:
        return kernel.link_names()


def cached_results(attachments: Iterable[Attachment], call: Call, node: Node) -> list[AttachedNetwork]:
    """Return attachments of a running sandbox with their kept results, those that have one."""
    found = [(attachment, node.chain.result(attachment, call)) for attachment in attachments]
    return [(attachment, result) for attachment, result in found if result is not None]


def settle_default_routes(
    told: Iterable[AttachedNetwork], claimed: Sequence[default_route.Claim], call: Call, node: Node
) -> list[AttachedNetwork]:
    """Make the asked default routes true in the kernel, then in every result and its kept copy."""
    before = list(told)
    if not claimed:
        return before
    default_route.apply_claims(call.netns, claimed)
    return _amended(
        before, [default_route.with_claims(attachment, result, claimed) for attachment, result in before], call, node
    )


def restore_default_routes(
    told: Iterable[AttachedNetwork], claimed: Sequence[default_route.Claim], call: Call, node: Node
) -> list[AttachedNetwork]:
    """Undo `settle` for claimers that are detached: in the kernel, then in the results of those that stay."""
    before = list(told)
    returned = default_route.restore(call.netns, claimed)
    return _amended(
        before, [default_route.with_restored(attachment, result, returned) for attachment, result in before], call, node
    )


def _amended(before: Sequence[AttachedNetwork], now: Sequence[Result], call: Call, node: Node) -> list[AttachedNetwork]:
    """Keep the results that changed; return all of them."""
    for (attachment, result), changed in zip(before, now, strict=True):
        if changed != result:
            node.chain.amend(attachment, call, changed)
    return [(attachment, result) for (attachment, _), result in zip(before, now, strict=True)]


def publish_status(told: Iterable[AttachedNetwork], netns: str, node: Node, pod: Pod | None) -> None:
    """Write network-status, whole, from the results of all attachments of a pod."""
    if pod is None or node.store is None:
        return
    statuses = [
        status
        for attachment, result in told
        for status in network_status.statuses(attachment, result, netns, _device(attachment, node))
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
        log.warning("%s: %s", attachment, error)


def _device(attachment: Attachment, node: Node) -> dict[str, Any] | None:
    """Return what is told of an attachment's device, for the pod; what cannot be read is logged."""
    try:
        return device_info.read(attachment.capabilities, node.config.device_info_dir)
    except CniError as error:
        log.warning("%s: %s", attachment, error)
        return None
