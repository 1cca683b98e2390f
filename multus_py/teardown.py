# SPDX-License-Identifier: Apache-2.0
"""Taking down: finish whatever can be finished, gather the errors, forget only what every delegate confirmed."""

import logging
from collections.abc import Sequence
from functools import partial

from multus_py import device_info, netlink, plan, takeover
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, finish
from multus_py.journal import Page
from multus_py.node import Node
from multus_py.plan import Attachment

log = logging.getLogger("multus_py")


def sandbox(page: Page, call: Call, node: Node) -> None:
    """Detach all that is known of the sandbox on *page*, newest first, and clear the page when all is confirmed."""
    attachments(page, known(page, call, node), call, node)


def attachments(page: Page, there: Sequence[Attachment], call: Call, node: Node) -> None:
    """Detach *there*, newest first, and clear the page when all of them are confirmed."""
    if page.damaged:
        page.set_aside()
    chains(there, call, node)
    takeover.forget(node.config.cni_dir, call.container_id)
    page.clear()


def chains(there: Sequence[Attachment], call: Call, node: Node) -> None:
    """Run DEL for every attachment, newest first."""
    _remove_at_once([one.ifname for one in there if node.chain.owns_interface(one, call)], call.netns)
    steps = [partial(detach, one, call, node) for one in reversed(there)]
    finish(f"sandbox {call.container_id}: left behind, to be tried again", *steps)


def detach(attachment: Attachment, call: Call, node: Node) -> None:
    """Run DEL for one attachment, then remove what was told about its device."""
    node.chain.delete(attachment, call)
    # Last: a plugin's DEL may read what was told about its device.
    device_info.remove(attachment.capabilities, node.config.device_info_dir)


def _remove_at_once(ifnames: Sequence[str], netns: str) -> None:
    """Remove interfaces as one group: that takes no longer than one alone."""
    if len(ifnames) < 2 or not netns:
        return
    try:
        netlink.remove_links(netns, ifnames)
    except CniError as error:
        log.debug("%s: not removed at once: %s", netns, error)  # each delegate's own DEL follows and tells


def known(page: Page, call: Call, node: Node) -> tuple[Attachment, ...]:
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
