# SPDX-License-Identifier: Apache-2.0
"""The story of GC: what the runtime lists no more is detached, then every network's plugins sweep.

The runtime's list is the truth: a sandbox that it lists is not dead, whatever we know of it.
"""

import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial

from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code, run_all
from multus_py.plan import decide
from multus_py.plan.attachment import Attachment
from multus_py.state import journal_entry, takeover
from multus_py.verbs import teardown
from multus_py.verbs.node import Node

log = logging.getLogger("multus_py")

Sandbox = tuple[str, str]  # container id and interface
_LOOK = 0.25  # seconds between two looks at whether somebody attaches
_PATIENCE = 10.0  # seconds to wait until nobody does


def gc(call: Call, node: Node) -> None:
    """Detach every sandbox that the runtime no longer lists, then let every network's plugins sweep."""
    valid = _valid(call)
    known = node.journal.sandboxes()
    with node.slot(call.verb):
        run_all(
            "garbage collection",
            *(partial(_collect, *one, call, node) for one in known if one not in valid),
            *(partial(_collect_stray, one, call, node) for one in sorted(_strays(node, valid))),
            partial(_sweep, call, node, valid),
        )


def _collect(container_id: str, ifname: str, call: Call, node: Node) -> None:
    """Take down one sandbox that is in use no more, if it belongs to this network.

    A page that cannot be read may be another network's, whose sandboxes are not on the list: while its results name a
    namespace that may live, it stays.
    """
    with node.journal.lock_sandbox(container_id, ifname, wait=False) as page:
        if page.entry and page.entry.network != node.config.name:
            return
        if page.damaged and not all(map(journal_entry.is_namespace_gone, node.chain.cache.namespaces(container_id))):
            log.info("GC: sandbox %s (%s) is kept: its page cannot be read, and it may live", container_id, ifname)
            return
        gone = replace(call, container_id=container_id, ifname=ifname, netns=page.entry.netns if page.entry else "")
        teardown.detach_sandbox(page, gone, node)


def _strays(node: Node, valid: frozenset[Sandbox]) -> set[str]:
    """Return the containers that only kept results tell of.

    The pages are looked at after the results: an ADD that begins meanwhile has its page before its first result.
    """
    kept = node.chain.cache.sandboxes()
    return kept - {container_id for container_id, _ in (*node.journal.sandboxes(), *valid)}


def _collect_stray(container_id: str, call: Call, node: Node) -> None:
    """Take down what only a kept result still tells of."""
    gone = replace(call, container_id=container_id, netns="")
    teardown.detach_unrecorded(node.chain.cache.attachments(container_id, ""), gone, node)


def _sweep(call: Call, node: Node, valid: frozenset[Sandbox]) -> None:
    """Call GC once for every network in use, one after the other."""
    run_all("garbage collection", *(partial(_sweep_network, one, call, node, valid) for one in _in_use(call, node)))


def _in_use(call: Call, node: Node) -> list[Attachment]:
    """Return one attachment of every network: the cluster's, the default network first, and those of the journal."""
    found = {one.conflist.name: one for one in decide.sandbox_attachments(call, node.config, None, node.store)}
    for sandbox in node.journal.sandboxes():
        with suppress(CniError):
            for attachment in node.journal.read(*sandbox).attachments:
                found.setdefault(attachment.conflist.name, replace(attachment, primary=False))
    return [one for one in found.values() if node.chain.supports_gc(one)]


def _sweep_network(network: Attachment, call: Call, node: Node, valid: frozenset[Sandbox]) -> None:
    """Let the plugins of one network sweep while nobody attaches, unless a living sandbox may have it unknown to us."""
    end = node.monotonic() + _PATIENCE

    def patience() -> bool:
        node.sleep(_LOOK)
        return node.monotonic() < end

    with node.journal.lock_for_gc(patience):
        used, strangers = _used(network, call, node, valid)
        if network.primary:
            used |= valid
        elif strangers:
            log.info("GC: network %s is not swept: sandbox %s may have it", network.conflist.name, strangers[0])
            return
        node.chain.gc(network, call, used)


def _used(network: Attachment, call: Call, node: Node, valid: frozenset[Sandbox]) -> tuple[set[Sandbox], list[str]]:
    """Return who uses a network, and the living sandboxes of which that is not known."""
    pages = node.journal.sandboxes()
    found: dict[str, tuple[Attachment, ...]] = {}
    strangers = []
    for container_id, ifname in pages:
        try:
            there = node.journal.read(container_id, ifname).attachments
        except CniError:  # a page that cannot be read tells of nobody
            strangers += [container_id] if (container_id, ifname) in valid else []
        else:
            found[container_id] = (*found.get(container_id, ()), *there)
    for container_id, ifname in sorted(valid):
        if container_id not in found:
            kept = node.chain.cache.attachments(container_id, ifname)
            before = takeover.read_attachments(node.config.cni_dir, replace(call, container_id=container_id), kept)
            found[container_id] = (*before, *kept)
            if not found[container_id]:
                strangers.append(container_id)
    uses = [(owner, one) for owner, there in found.items() for one in there]
    return {(owner, one.ifname) for owner, one in uses if one.conflist.name == network.conflist.name}, strangers


def _valid(call: Call) -> frozenset[Sandbox]:
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
    return frozenset((item["containerID"], item["ifname"]) for item in listed)
