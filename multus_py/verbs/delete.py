# SPDX-License-Identifier: Apache-2.0
"""DEL: release all that is recorded of a sandbox."""

from multus_py.cni.call import Call
from multus_py.kube.store import Pod
from multus_py.plan.attachment import pod_ref
from multus_py.state.journal_entry import Failure
from multus_py.verbs import events, teardown
from multus_py.verbs.node import Node

_TOLD_TRIES = 2  # of a DEL that fails: ADD's own, and the runtime's first


def delete(call: Call, node: Node) -> None:
    """Detach all that is known of a sandbox; what is gone already is success.

    Everything that can be released is. What came to be and could not be released stays in the journal, and the errors
    are told together; what never came to be is told as an Event, and tried again without the runtime.
    """
    with node.journal.lock_sandbox(call.container_id, call.ifname) as page, node.slot(call.verb):
        ref = page.entry.pod if page.entry else pod_ref(call)
        failures = teardown.detach_sandbox(page, call, node)
    if ref and node.store:
        node.store.forget(ref)
        for failure in failures:
            if failure.tries > _TOLD_TRIES:
                continue
            events.publish(node, Pod(ref.namespace, ref.name, ref.uid), "Warning", "FailedDetach", _failed(failure))


def _failed(failure: Failure) -> str:
    words = "is not known to have come to be and could not be cleaned up, it is tried again"
    return f"{failure.attachment} {words}: {failure.reason}"
