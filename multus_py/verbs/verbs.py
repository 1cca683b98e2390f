# SPDX-License-Identifier: Apache-2.0
"""The story of every verb: what happens on ADD, CHECK, DEL and STATUS, top to bottom; that of GC is `collection`."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code, try_step
from multus_py.cni.result import Result
from multus_py.kube.store import NotFound, Pod, Unavailable
from multus_py.plan import decide
from multus_py.plan.decide import Attachment, NoNetwork
from multus_py.state import journal
from multus_py.state.journal import Entry, Failure, Page
from multus_py.verbs import attach, default_route, gc, teardown
from multus_py.verbs.node import Node

log = logging.getLogger("multus_py")

_READINESS_PAUSE = 0.25  # seconds between two looks at the readiness file
_TOLD_TRIES = 2  # of a DEL that fails: ADD's own, and the runtime's first


def add(call: Call, node: Node) -> dict[str, Any]:
    """Attach all networks of a sandbox; return the default network's result in the caller's version.

    Either all is attached, told and written down, or nothing is left: what an error interrupts is taken back.
    """
    _refuse_own_namespace(call)
    _wait_until_ready(node)
    pod = _pod(call, node)
    try:
        with node.journal.page(call.container_id, call.ifname) as page, node.place(call.verb):
            answer, told = _attach(page, call, node, pod)
    except CniError as error:
        reason = "NoNetworkFound" if isinstance(error, NoNetwork) else "FailedAttach"
        _event(node, pod, "Warning", reason, str(error))
        raise error.with_context(str(pod.ref)) if pod else error from error
    for attachment, result in told:
        _event(node, pod, "Normal", "AddedInterface", added(attachment, result))
    return answer


def _attach(page: Page, call: Call, node: Node, pod: Pod | None) -> tuple[dict[str, Any], list[attach.Told]]:
    """Plan, write the plan down, attach all of it; return the answer and the results."""
    if page.entry or page.damaged:  # an earlier try died half-way
        teardown.sandbox(page, call, node)
    attachments = decide.attachments(call, node.config, pod, node.store, attach.device_sources(call, node, pod))
    for attachment in attachments:
        node.chain.refuse_unfit(attachment, call)
    attach.refuse_taken_names(call.netns, attachments)
    with node.journal.attaching():
        ref, failures = decide.pod_ref(call), page.entry.failures if page.entry else ()
        planned = Entry(node.config.name, call.container_id, call.ifname, call.netns, attachments, ref, journal.boot())
        page.write(replace(planned, failures=failures, since=journal.uptime(), path=call.path))
        return _attach_planned(page, attachments, call, node, pod)


def _attach_planned(
    page: Page, attachments: Sequence[Attachment], call: Call, node: Node, pod: Pod | None
) -> tuple[dict[str, Any], list[attach.Told]]:
    """Run every chain, settle the default routes, publish the status; on an error take back what was begun."""
    try:
        done = attach.in_order(page, attachments, call, node)
        told = attach.settle(zip(attachments, done, strict=True), default_route.claims(attachments), call, node)
        answer = results.write(told[0][1], call.version)  # before anybody is told: an old version cannot say all
        attach.publish(told, call.netns, node, pod)
        page.complete()
    except BaseException as error:
        if trouble := try_step(lambda: _take_back(page, call, node)):
            error.add_note(f"and could not be taken back yet, DEL will: {trouble}")
        raise
    return answer, told


def _take_back(page: Page, call: Call, node: Node) -> None:
    """Detach what an ADD began; raise for all that stays."""
    if failures := teardown.sandbox(page, call, node):
        raise CniError(Code.INTERNAL, "; ".join(failure.reason for failure in failures))


def delete(call: Call, node: Node) -> None:
    """Detach all that is known of a sandbox; what is gone already is success.

    Everything that can be released is. What came to be and could not be released stays in the journal, and the errors
    are told together; what never came to be is told as an Event, and tried again without the runtime.
    """
    with node.journal.page(call.container_id, call.ifname) as page, node.place(call.verb):
        ref = page.entry.pod if page.entry else decide.pod_ref(call)
        failures = teardown.sandbox(page, call, node)
    if ref and node.store:
        node.store.forget(ref)
        for failure in failures:
            if failure.tries > _TOLD_TRIES:
                continue
            _event(node, Pod(ref.namespace, ref.name, ref.uid), "Warning", "FailedDetach", _failed(failure))


def check(call: Call, node: Node) -> None:
    """Raise when an interface, an address or a claimed default route of the sandbox is not as ADD left it."""
    with node.journal.page(call.container_id, call.ifname) as page, node.place(call.verb):
        if page.entry is None:
            raise CniError(
                Code.UNKNOWN_CONTAINER,
                f"sandbox {call.container_id} ({call.ifname}) is not known here",
                "its journal entry is damaged" if page.damaged else "nothing was added for it",
            )
        attachments = page.entry.attachments
        if not attachments:
            raise CniError(Code.UNKNOWN_CONTAINER, f"sandbox {call.container_id} ({call.ifname}) was deleted")
        for attachment in attachments:
            node.chain.check(attachment, call)
        default_route.check(call.netns, default_route.claims(attachments))


def status(call: Call, node: Node) -> None:
    """Raise code 50 or 51 when an ADD would not succeed now."""
    _refuse_unready(node)
    try:
        attachments = decide.attachments(call, node.config, None, node.store)
    except CniError as error:
        if error.code != Code.TRY_AGAIN:
            raise
        raise CniError(Code.NOT_AVAILABLE, error.msg, error.details) from error
    for attachment in attachments:
        if trouble := try_step(lambda: node.chain.refuse_unfit(attachment, call)):  # noqa: B023
            raise CniError(Code.NOT_AVAILABLE, trouble.msg, trouble.details) from trouble
        node.chain.status(attachment, call)


# --- the pod and its namespace ----------------------------------------------------------------------------------------


def _pod(call: Call, node: Node) -> Pod | None:
    """Return the pod that the call is for; code 11 when it is not there yet or is another one of the same name."""
    ref = decide.pod_ref(call)
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


def _failed(failure: Failure) -> str:
    words = "is not known to have come to be and could not be cleaned up, it is tried again"
    return f"{failure.attachment} {words}: {failure.reason}"


def added(attachment: Attachment, result: Result) -> str:
    """Return what the Event of an attached network says."""
    addresses = " ".join(ip.address.with_prefixlen for ip in result.ips)
    return f"Add {attachment.ifname} [{addresses}] from {attachment.name}"


STORIES: dict[str, Callable[[Call, Node], dict[str, Any] | None]] = {
    "ADD": add,
    "CHECK": check,
    "DEL": delete,
    "STATUS": status,
    "GC": gc.gc,
}
