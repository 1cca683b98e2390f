# SPDX-License-Identifier: Apache-2.0
"""CHECK: compare a sandbox with the results of its ADD."""

from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.verbs import default_route
from multus_py.verbs.node import Node


def check(call: Call, node: Node) -> None:
    """Raise when an interface, an address or a claimed default route of the sandbox is not as ADD left it."""
    with node.journal.lock_sandbox(call.container_id, call.ifname) as file, node.slot(call.verb):
        if file.entry is None:
            raise CniError(
                Code.UNKNOWN_CONTAINER,
                f"sandbox {call.container_id} ({call.ifname}) is not known here",
                "its journal entry is damaged" if file.damaged else "nothing was added for it",
            )
        attachments = file.entry.attachments
        if not attachments:
            raise CniError(Code.UNKNOWN_CONTAINER, f"sandbox {call.container_id} ({call.ifname}) was deleted")
        for attachment in attachments:
            node.chain.check(attachment, call)
        default_route.check(call.netns, default_route.claims(attachments))
