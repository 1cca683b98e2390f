# SPDX-License-Identifier: Apache-2.0
"""DEL: detach all networks of a sandbox."""

from multus_py.cni.call import Call
from multus_py.kube.store import Pod
from multus_py.plan.attachment import pod_ref
from multus_py.state.journal_entry import Failure
from multus_py.verbs import events, teardown
from multus_py.verbs.node import Node

_EVENT_TRIES = 2  # an Event for the first tries of a failure only: the one of ADD, and the runtime's first DEL


def delete(call: Call, node: Node) -> None:
    """Detach all that is recorded of a sandbox; what does not exist any more is success.

    A network whose ADD completed and whose DEL fails stays in the journal, and all errors are raised together. The
    failure of one whose ADD did not complete is published as an Event and retried without the runtime.
    """
    with node.journal.lock_sandbox(call.container_id, call.ifname) as file, node.slot(call.verb):
        ref = file.entry.pod if file.entry else pod_ref(call)
        failures = teardown.detach_sandbox(file, call, node)
    if ref and node.store:
        node.store.forget(ref)
        for failure in failures:
            if failure.tries > _EVENT_TRIES:
                continue
            events.publish(node, Pod(ref.namespace, ref.name, ref.uid), "Warning", "FailedDetach", _failed(failure))


def _failed(failure: Failure) -> str:
    words = "is not known to have come to be and could not be cleaned up, it is tried again"
    return f"{failure.attachment} {words}: {failure.reason}"
