# SPDX-License-Identifier: Apache-2.0
"""The story of every verb: what happens on ADD, CHECK, DEL, STATUS and GC, top to bottom."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from multus_py import attach, gateway, journal, plan, teardown
from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code, finish
from multus_py.cni.result import Result
from multus_py.journal import Entry, Page
from multus_py.kube.store import NotFound, Pod, Unavailable
from multus_py.node import Node
from multus_py.plan import Attachment, NoNetwork

log = logging.getLogger("multus_py")

_READINESS_PAUSE = 0.25  # seconds between two looks at the readiness file


def add(call: Call, node: Node) -> dict[str, Any]:
    """Attach all networks of a sandbox; return the default network's result in the caller's version.

    Either all is attached, told and written down, or nothing is left: what an error interrupts is taken back.
    """
    _refuse_own_namespace(call)
    _wait_until_ready(node)
    pod = _pod(call, node)
    try:
        with node.journal.page(call.container_id, call.ifname) as page:
            if page.entry or page.damaged:  # an earlier try died half-way
                teardown.sandbox(page, call, node)
            attachments = plan.attachments(call, node.config, pod, node.store, attach.device_sources(call, node, pod))
            attach.refuse_taken_names(call.netns, attachments)
            ref = plan.pod_ref(call)
            page.write(
                Entry(node.config.name, call.container_id, call.ifname, call.netns, attachments, ref, journal.boot())
            )
            done = _attach(page, attachments, call, node, pod)
    except CniError as error:
        reason = "NoNetworkFound" if isinstance(error, NoNetwork) else "FailedAttach"
        _event(node, pod, "Warning", reason, str(error))
        raise error.while_(str(pod.ref)) if pod else error from error
    for attachment, result in zip(attachments, done, strict=True):
        _event(node, pod, "Normal", "AddedInterface", _added(attachment, result))
    return results.write(done[0], call.version)


def _attach(page: Page, attachments: Sequence[Attachment], call: Call, node: Node, pod: Pod | None) -> list[Result]:
    """Run every chain, settle the default routes, publish the status; on an error take back what was tried."""
    tried: list[Attachment] = []
    try:
        done = attach.in_order(attachments, call, node, tried)
        told = attach.settle(zip(attachments, done, strict=True), gateway.claims(attachments), call, node)
        attach.publish(told, call.netns, node, pod)
    except BaseException as error:
        try:
            teardown.attachments(page, tried, call, node)
        except CniError as trouble:
            error.add_note(f"and could not be taken back yet, DEL will: {trouble}")
        raise
    return [result for _, result in told]


def delete(call: Call, node: Node) -> None:
    """Detach all that the journal knows of a sandbox; what is gone already is success.

    Everything that can be released is; what could not stays in the journal, and the errors are told together.
    """
    with node.journal.page(call.container_id, call.ifname) as page:
        ref = page.entry.pod if page.entry else plan.pod_ref(call)
        teardown.sandbox(page, call, node)
    if ref and node.store:
        node.store.forget(ref)


def check(call: Call, node: Node) -> None:
    """Raise when an interface, an address or a claimed default route of the sandbox is not as ADD left it."""
    with node.journal.page(call.container_id, call.ifname) as page:
        if page.entry is None:
            raise CniError(
                Code.UNKNOWN_CONTAINER,
                f"sandbox {call.container_id} ({call.ifname}) is not known here",
                "its journal entry is damaged" if page.damaged else "nothing was added for it",
            )
        attachments = page.entry.attachments
        for attachment in attachments:
            node.chain.check(attachment, call)
        gateway.check(call.netns, gateway.claims(attachments))


def status(call: Call, node: Node) -> None:
    """Raise code 50 or 51 when an ADD would not succeed now."""
    _refuse_unready(node)
    try:
        attachments = plan.attachments(call, node.config, None, node.store)
    except CniError as error:
        if error.code != Code.TRY_AGAIN:
            raise
        raise CniError(Code.NOT_AVAILABLE, error.msg, error.details) from error
    for attachment in attachments:
        node.chain.status(attachment, call)


def gc(call: Call, node: Node) -> None:
    """Detach every sandbox that the runtime no longer lists, then let every network's plugins sweep."""
    valid = _valid(call)
    known = node.journal.sandboxes()
    owners = {container_id for container_id, _ in known} | {container_id for container_id, _ in valid}
    finish(
        "garbage collection",
        *(partial(_collect, *one, call, node) for one in known if one not in valid),
        *(partial(_collect_stray, one, call, node) for one in sorted(node.chain.cache.sandboxes() - owners)),
        partial(_sweep, call, node),
    )


def _collect(container_id: str, ifname: str, call: Call, node: Node) -> None:
    """Take down one sandbox that is in use no more, if it belongs to this network."""
    with node.journal.page(container_id, ifname, wait=False) as page:
        if page.entry and page.entry.network != node.config.name:
            return
        gone = replace(call, container_id=container_id, ifname=ifname, netns=page.entry.netns if page.entry else "")
        teardown.sandbox(page, gone, node)


def _collect_stray(container_id: str, call: Call, node: Node) -> None:
    """Take down what only a kept result still tells of."""
    gone = replace(call, container_id=container_id, netns="")
    teardown.chains(node.chain.cache.attachments(container_id, ""), gone, node)


def _sweep(call: Call, node: Node) -> None:
    """Call GC once for every network in use, with the attachments of it that are left."""
    in_use: dict[str, tuple[Attachment, set[tuple[str, str]]]] = {
        attachment.conflist.name: (attachment, set())
        for attachment in plan.attachments(call, node.config, None, node.store)
    }
    for container_id, ifname in node.journal.sandboxes():
        with node.journal.page(container_id, ifname) as page:
            for attachment in page.entry.attachments if page.entry else ():
                name = attachment.conflist.name
                in_use.setdefault(name, (attachment, set()))[1].add((container_id, attachment.ifname))
    steps = [partial(node.chain.gc, one, call, left) for one, left in in_use.values()]
    finish("garbage collection", *steps)


def _valid(call: Call) -> set[tuple[str, str]]:
    """Return the (container id, interface) pairs that the runtime still uses (spec: cni.dev/valid-attachments)."""
    listed = call.config.get("cni.dev/valid-attachments", call.config.get("cni.dev/attachments"))
    if not isinstance(listed, list) or not all(
        isinstance(item, dict) and isinstance(item.get("containerID"), str) and isinstance(item.get("ifname"), str)
        for item in listed
    ):
        raise CniError(
            Code.INVALID_CONFIG,
            "GC: 'cni.dev/valid-attachments' must be a list of {containerID, ifname}",
            "without it nothing is collected",
        )
    return {(item["containerID"], item["ifname"]) for item in listed}


# --- the pod and its namespace ----------------------------------------------------------------------------------------


def _pod(call: Call, node: Node) -> Pod | None:
    """Return the pod that the call is for; code 11 when it is not there yet or is another one of the same name."""
    ref = plan.pod_ref(call)
    if ref is None or node.store is None:
        return None
    try:
        pod = node.store.pod(ref)
    except NotFound as missing:
        raise Unavailable(missing.msg, missing.details) from missing
    if ref.uid and pod.uid and ref.uid != pod.uid and not pod.is_static:
        raise Unavailable(
            f"pod {ref} has the uid {pod.uid}, the runtime asks for {ref.uid}", "the pod was made anew: try again"
        )
    return pod


def _refuse_own_namespace(call: Call) -> None:
    """Refuse a sandbox that is our own network namespace, unless CNI_NETNS_OVERRIDE allows it (libcni, code 8)."""
    try:
        own = os.path.samestat(Path(call.netns).stat(), Path("/proc/thread-self/ns/net").stat())
    except OSError as cause:
        raise CniError(
            Code.UNKNOWN_CONTAINER,
            f"cannot open the network namespace {call.netns}: {cause.strerror}",
            "is the sandbox still there?",
        ) from cause
    if own and not call.same_netns_allowed:
        raise CniError(Code.SAME_NAMESPACE, f"{call.netns} is the plugin's own network namespace")


def _refuse_unready(node: Node) -> None:
    path = node.config.readiness_file
    if path and not Path(path).exists():
        raise CniError(
            Code.NOT_AVAILABLE,
            f"the default network is not ready: {path} is not there",
            "its agent writes this file when it can serve pods",
        )


def _wait_until_ready(node: Node) -> None:
    """Wait for the readiness file of the default network, up to the configured time; then code 11."""
    end = node.monotonic() + node.config.readiness_timeout
    while True:
        try:
            return _refuse_unready(node)
        except CniError as error:
            if node.monotonic() >= end:
                raise CniError(Code.TRY_AGAIN, error.msg, error.details) from error
        node.sleep(_READINESS_PAUSE)


def _event(node: Node, pod: Pod | None, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
    """Tell an Event; one that cannot be told is logged, for the interface matters more."""
    if pod and node.store:
        try:
            node.store.event(pod, kind, reason, message)
        except CniError as error:
            log.warning("event %s of pod %s was not told: %s", reason, pod.ref, error)


def _added(attachment: Attachment, result: Result) -> str:
    addresses = " ".join(ip.address.with_prefixlen for ip in result.ips)
    return f"Add {attachment.ifname} [{addresses}] from {attachment.name}"


STORIES: dict[str, Callable[[Call, Node], dict[str, Any] | None]] = {
    "ADD": add,
    "CHECK": check,
    "DEL": delete,
    "STATUS": status,
    "GC": gc,
}
