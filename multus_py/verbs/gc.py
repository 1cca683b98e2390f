# SPDX-License-Identifier: Apache-2.0
"""GC: detach the sandboxes that the runtime does not list, then run GC of every network's plugins.

The runtime's list decides: a sandbox in it is running, whatever is recorded of it.
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
_RETRY_PAUSE = 0.25  # seconds between two tries to lock the journal's folder
_RETRY_TIME = 10.0  # seconds until GC of a network fails because ADDs have it locked


def gc(call: Call, node: Node) -> None:
    """Detach every sandbox that the runtime does not list, then run GC of every network's plugins."""
    valid = _valid(call)
    recorded = node.journal.sandboxes()
    with node.slot(call.verb):
        run_all(
            "garbage collection",
            *(partial(_collect, *sandbox, call, node) for sandbox in recorded if sandbox not in valid),
            *(
                partial(_collect_unrecorded, container_id, call, node)
                for container_id in sorted(_unrecorded(node, valid))
            ),
            partial(_run_gc, call, node, valid),
        )


def _collect(container_id: str, ifname: str, call: Call, node: Node) -> None:
    """Detach one sandbox that is not in use, if it was attached by this multus-py config.

    A damaged file may belong to another config, whose sandboxes are not in the list: it stays while its results name a
    namespace that may exist.
    """
    with node.journal.lock_sandbox(container_id, ifname, wait=False) as file:
        if file.entry and file.entry.network != node.config.name:
            return
        if file.damaged and not all(map(journal_entry.is_namespace_gone, node.chain.cache.namespaces(container_id))):
            log.info(
                "GC: sandbox %s (%s) is kept: its file cannot be read, and it may be running",
                container_id,
                ifname,
            )
            return
        gone = replace(call, container_id=container_id, ifname=ifname, netns=file.entry.netns if file.entry else "")
        teardown.detach_sandbox(file, gone, node)


def _unrecorded(node: Node, valid: frozenset[Sandbox]) -> set[str]:
    """Return the containers that have cached results and no journal file.

    The files are listed after the results: an ADD that begins meanwhile has its file before its first result.
    """
    cached = node.chain.cache.sandboxes()
    return cached - {container_id for container_id, _ in (*node.journal.sandboxes(), *valid)}


def _collect_unrecorded(container_id: str, call: Call, node: Node) -> None:
    """Detach the networks of a sandbox that has only cached results."""
    gone = replace(call, container_id=container_id, netns="")
    teardown.detach_unrecorded(node.chain.cache.attachments(container_id, ""), gone, node)


def _run_gc(call: Call, node: Node, valid: frozenset[Sandbox]) -> None:
    """Run GC once for every network in use, one after the other."""
    run_all(
        "garbage collection", *(partial(_run_network_gc, network, call, node, valid) for network in _in_use(call, node))
    )


def _in_use(call: Call, node: Node) -> list[Attachment]:
    """Return one attachment of every network: the cluster's, the default network first, and those of the journal."""
    found = {item.conflist.name: item for item in decide.sandbox_attachments(call, node.config, None, node.store)}
    for sandbox in node.journal.sandboxes():
        with suppress(CniError):
            for attachment in node.journal.read(*sandbox).attachments:
                found.setdefault(attachment.conflist.name, replace(attachment, primary=False))
    return [item for item in found.values() if node.chain.supports_gc(item)]


def _run_network_gc(network: Attachment, call: Call, node: Node, valid: frozenset[Sandbox]) -> None:
    """Run GC of one network while no ADD runs; not when a running sandbox may have the network without a record."""
    end = node.monotonic() + _RETRY_TIME

    def keep_waiting() -> bool:
        node.sleep(_RETRY_PAUSE)
        return node.monotonic() < end

    with node.journal.lock_for_gc(keep_waiting):
        used, unknown = _used(network, call, node, valid)
        if network.primary:
            used |= valid
        elif unknown:
            log.info("GC: network %s is not swept: sandbox %s may have it", network.conflist.name, unknown[0])
            return
        node.chain.gc(network, call, used)


def _used(network: Attachment, call: Call, node: Node, valid: frozenset[Sandbox]) -> tuple[set[Sandbox], list[str]]:
    """Return the sandboxes that use a network, and the running ones of which that is unknown."""
    recorded = node.journal.sandboxes()
    found: dict[str, tuple[Attachment, ...]] = {}
    unknown = []
    for container_id, ifname in recorded:
        try:
            attachments = node.journal.read(container_id, ifname).attachments
        except CniError:  # a damaged file
            unknown += [container_id] if (container_id, ifname) in valid else []
        else:
            found[container_id] = (*found.get(container_id, ()), *attachments)
    for container_id, ifname in sorted(valid):
        if container_id not in found:
            cached = node.chain.cache.attachments(container_id, ifname)
            listed = takeover.read_attachments(node.config.cni_dir, replace(call, container_id=container_id), cached)
            found[container_id] = (*listed, *cached)
            if not found[container_id]:
                unknown.append(container_id)
    uses = [(owner, item) for owner, attachments in found.items() for item in attachments]
    return {(owner, item.ifname) for owner, item in uses if item.conflist.name == network.conflist.name}, unknown


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
