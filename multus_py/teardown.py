# SPDX-License-Identifier: Apache-2.0
"""Taking down: finish whatever can be finished, gather the errors, forget only what every delegate confirmed."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from multus_py import plan, takeover
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, gathered
from multus_py.journal import Page
from multus_py.node import Node
from multus_py.plan import Attachment

log = logging.getLogger("multus_py")


def sandbox(page: Page, call: Call, node: Node) -> None:
    """Detach all that is known of the sandbox on *page*, newest first, and clear the page when all is confirmed."""
    attachments(page, _known(page, call, node), call, node)


def attachments(page: Page, known: Sequence[Attachment], call: Call, node: Node) -> None:
    """Detach *known*, newest first, and clear the page when all of them are confirmed."""
    if page.damaged:
        page.set_aside()
    chains(known, call, node)
    takeover.forget(node.config.cni_dir, call.container_id)
    page.clear()


def chains(known: Sequence[Attachment], call: Call, node: Node) -> None:
    """Run DEL for every attachment, newest first."""
    steps = [partial(node.chain.delete, one, call) for one in reversed(known)]
    finish(f"sandbox {call.container_id}: left behind, to be tried again", steps)


def finish(doing: str, steps: Sequence[Callable[[], None]]) -> None:
    """Run every step, whatever the others met; raise the gathered troubles at the end."""
    troubles = []
    for step in steps:
        try:
            step()
        except CniError as trouble:
            troubles.append(trouble)
    if troubles:
        raise gathered(doing, troubles)


def _known(page: Page, call: Call, node: Node) -> tuple[Attachment, ...]:
    """Return what is known of a sandbox: from the journal, else from a delegates file, results, and a new plan."""
    if page.entry:
        return page.entry.attachments
    kept = node.chain.cache.attachments(call.container_id, call.ifname)
    found = takeover.attachments(node.config.cni_dir, call, kept) or kept
    if not page.damaged:
        return found
    seen = {attachment.ifname for attachment in found}
    return found + tuple(item for item in _planned_again(call, node) if item.ifname not in seen)


def _planned_again(call: Call, node: Node) -> tuple[Attachment, ...]:
    """Return what ADD would attach now: the best guess for a sandbox whose journal entry is damaged."""
    ref = plan.pod_ref(call)
    try:
        pod = node.store.pod(ref) if ref and node.store else None
        return plan.attachments(call, node.config, pod, node.store)
    except CniError as error:
        log.warning("sandbox %s: cannot plan again: %s", call.container_id, error)
        return ()
