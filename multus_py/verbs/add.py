# SPDX-License-Identifier: Apache-2.0
"""ADD: attach all networks of a sandbox, or none of them."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code, try_step
from multus_py.kube.store import NotFound, Pod, Unavailable
from multus_py.plan import decide
from multus_py.plan.attachment import Attachment, pod_ref
from multus_py.plan.networks import NoNetwork
from multus_py.state.journal import SandboxFile
from multus_py.state.journal_entry import Entry, boot_id, uptime
from multus_py.verbs import attach, default_route, events, teardown
from multus_py.verbs.node import Node
from multus_py.verbs.status import refuse_unready

_READINESS_PAUSE = 0.25  # seconds between two looks at the readiness file


def add(call: Call, node: Node) -> dict[str, Any]:
    """Attach all networks of a sandbox; return the default network's result in the caller's version.

    Either all is attached, told and written down, or nothing is left: what an error interrupts is taken back.
    """
    _refuse_own_namespace(call)
    _wait_until_ready(node)
    pod = _pod(call, node)
    try:
        with node.journal.lock_sandbox(call.container_id, call.ifname) as page, node.slot(call.verb):
            answer, told = _attach(page, call, node, pod)
    except CniError as error:
        reason = "NoNetworkFound" if isinstance(error, NoNetwork) else "FailedAttach"
        events.publish(node, pod, "Warning", reason, str(error))
        raise error.with_context(str(pod.ref)) if pod else error from error
    for attachment, result in told:
        events.publish(node, pod, "Normal", "AddedInterface", events.added(attachment, result))
    return answer


def _attach(
    page: SandboxFile, call: Call, node: Node, pod: Pod | None
) -> tuple[dict[str, Any], list[attach.AttachedNetwork]]:
    """Plan, write the plan down, attach all of it; return the answer and the results."""
    if page.entry or page.damaged:  # an earlier try died half-way
        teardown.detach_sandbox(page, call, node)
    attachments = decide.sandbox_attachments(call, node.config, pod, node.store, attach.device_sources(call, node, pod))
    for attachment in attachments:
        node.chain.refuse_unfit(attachment, call)
    attach.refuse_taken_names(call.netns, attachments)
    with node.journal.lock_for_attach():
        ref, failures = pod_ref(call), page.entry.failures if page.entry else ()
        planned = Entry(node.config.name, call.container_id, call.ifname, call.netns, attachments, ref, boot_id())
        page.write(replace(planned, failures=failures, since=uptime(), path=call.path))
        return _attach_planned(page, attachments, call, node, pod)


def _attach_planned(
    page: SandboxFile, attachments: Sequence[Attachment], call: Call, node: Node, pod: Pod | None
) -> tuple[dict[str, Any], list[attach.AttachedNetwork]]:
    """Run every chain, settle the default routes, publish the status; on an error take back what was begun."""
    try:
        done = attach.attach_all(page, attachments, call, node)
        told = attach.settle_default_routes(
            zip(attachments, done, strict=True), default_route.claims(attachments), call, node
        )
        answer = results.write(told[0][1], call.version)  # before anybody is told: an old version cannot say all
        attach.publish_status(told, call.netns, node, pod)
        page.write_complete()
    except BaseException as error:
        if trouble := try_step(lambda: _take_back(page, call, node)):
            error.add_note(f"and could not be taken back yet, DEL will: {trouble}")
        raise
    return answer, told


def _take_back(page: SandboxFile, call: Call, node: Node) -> None:
    """Detach what an ADD began; raise for all that stays."""
    if failures := teardown.detach_sandbox(page, call, node):
        raise CniError(Code.INTERNAL, "; ".join(failure.reason for failure in failures))


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


def _wait_until_ready(node: Node) -> None:
    """Wait for the readiness file of the default network, up to the configured time; then code 11."""
    end = node.monotonic() + node.config.readiness_timeout
    while True:
        try:
            return refuse_unready(node)
        except CniError as error:
            if node.monotonic() >= end:
                raise CniError(Code.TRY_AGAIN, error.msg, error.details) from error
        node.sleep(_READINESS_PAUSE)


def _pod(call: Call, node: Node) -> Pod | None:
    """Return the pod that the call is for; code 11 when it is not there yet or is another one of the same name."""
    ref = pod_ref(call)
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
