# SPDX-License-Identifier: Apache-2.0
"""ADD: attach all networks of a sandbox, or none of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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

_READINESS_PAUSE = 0.25  # seconds between two checks of the readiness file


def add(call: Call, node: Node) -> dict[str, Any]:
    """Attach all networks of a sandbox; return the default network's result in the caller's version.

    Either all networks are attached, published and recorded, or an error rolls all of them back.
    """
    _refuse_own_namespace(call)
    _wait_until_ready(node)
    pod = _pod(call, node)
    try:
        with node.journal.lock_sandbox(call.container_id, call.ifname) as file, node.slot(call.verb):
            if file.entry or file.damaged:  # an earlier ADD of this sandbox did not complete
                teardown.detach_sandbox(file, call, node)
            attachments = _plan(call, node, pod)
            with node.journal.lock_for_attach():
                file.write(_planned_entry(attachments, file, call, node))
                with _rollback_on_error(file, call, node):
                    found = attach.attach_networks(file, attachments, call, node, workers=node.workers)
                    claims = default_route.claims(attachments)
                    attached = attach.apply_default_routes(zip(attachments, found, strict=True), claims, call, node)
                    answer = results.write(attached[0][1], call.version)  # an old version may not hold it: first
                    attach.publish_status(attached, call.netns, node, pod)
                    file.write_complete()
    except CniError as error:
        reason = "NoNetworkFound" if isinstance(error, NoNetwork) else "FailedAttach"
        events.publish(node, pod, "Warning", reason, str(error))
        raise error.with_context(str(pod.ref)) if pod else error from error
    for attachment, result in attached:
        events.publish(node, pod, "Normal", "AddedInterface", events.added_message(attachment, result))
    return answer


def _plan(call: Call, node: Node, pod: Pod | None) -> tuple[Attachment, ...]:
    """Return the networks of a sandbox in order; what can be refused is refused here."""
    devices = attach.device_sources(call, node, pod)
    attachments = decide.sandbox_attachments(call, node.config, pod, node.store, devices)
    for attachment in attachments:
        node.chain.refuse_unfit(attachment, call)
    attach.refuse_taken_names(call.netns, attachments)
    return attachments


def _planned_entry(attachments: tuple[Attachment, ...], file: SandboxFile, call: Call, node: Node) -> Entry:
    return Entry(
        network=node.config.name,
        container_id=call.container_id,
        ifname=call.ifname,
        netns=call.netns,
        attachments=attachments,
        pod=pod_ref(call),
        boot=boot_id(),
        failures=file.entry.failures if file.entry else (),
        since=uptime(),
        path=call.path,
    )


@contextmanager
def _rollback_on_error(file: SandboxFile, call: Call, node: Node) -> Iterator[None]:
    """Detach what was begun when the block fails; what cannot be detached now stays in *file* for DEL."""
    try:
        yield
    except BaseException as error:
        if problem := try_step(lambda: _roll_back(file, call, node)):
            error.add_note(f"and could not be rolled back yet, DEL will: {problem}")
        raise


def _roll_back(file: SandboxFile, call: Call, node: Node) -> None:
    if failures := teardown.detach_sandbox(file, call, node):
        raise CniError(Code.INTERNAL, "; ".join(failure.reason for failure in failures))


def _refuse_own_namespace(call: Call) -> None:
    """Refuse a sandbox that is our own network namespace, unless CNI_NETNS_OVERRIDE allows it (libcni, code 8)."""
    try:
        own = os.path.samestat(Path(call.netns).stat(), Path("/proc/thread-self/ns/net").stat())
    except OSError as cause:
        raise CniError(
            Code.UNKNOWN_CONTAINER,
            f"cannot open the network namespace {call.netns}: {cause.strerror}",
            "does the sandbox still exist?",
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
    """Return the pod of the call; code 11 when it does not exist yet or is another one of the same name."""
    ref = pod_ref(call)
    if ref is None or node.store is None:
        return None
    try:
        pod = node.store.pod(ref)
    except NotFound as missing:
        raise Unavailable(missing.msg, missing.details) from missing
    if ref.uid and pod.uid and ref.uid != pod.uid and not pod.is_static:
        raise Unavailable(
            f"pod {ref} has the uid {pod.uid}, the runtime asks for {ref.uid}", "the pod was created anew: try again"
        )
    return pod
