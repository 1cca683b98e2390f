# SPDX-License-Identifier: Apache-2.0
"""The node set right from what is written down: DELs replayed, dead sandboxes released, missing interfaces told of."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from multus_py import attach, gateway, netlink, teardown
from multus_py.agent.spool import Spool, Tombstone
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError
from multus_py.journal import Entry, boot
from multus_py.kube.store import NETWORKS, Pod
from multus_py.node import Node

log = logging.getLogger("multus_py")


@dataclass
class Reconciler:
    """Looks over the node at start and from time to time. *count* is told of each thing done, by kind."""

    spool: Spool
    replay: Callable[[Tombstone], None]
    count: Callable[[str], None]
    heal: bool = False
    _told: set[tuple[str, str, str]] = field(default_factory=set)

    def replay_spool(self) -> None:
        """Make up for the DELs that came while nobody listened, oldest first; what fails stays for the next time."""
        for tombstone in self.spool.tombstones():
            try:
                self.replay(tombstone)
            except CniError as error:
                log.warning("spool: %s: %s; to be tried again", tombstone.path.name, error)
                continue
            tombstone.remove()
            self.count("replayed")

    def release_dead(self, node: Node) -> None:
        """Detach the sandboxes whose namespace is gone: the kernel frees no addresses, devices and rules."""
        for container_id, ifname in node.journal.sandboxes():
            try:
                with node.journal.page(container_id, ifname, wait=False) as page:
                    if page.entry is None or not is_gone(page.entry):
                        continue
                    log.info("sandbox %s (%s): its namespace is gone, released", container_id, ifname)
                    ref = page.entry.pod
                    teardown.sandbox(page, call_for(page.entry, "DEL", node), node)
                if ref and node.store:
                    node.store.forget(ref)
                self.count("released")
            except CniError as error:
                log.warning("sandbox %s (%s): %s", container_id, ifname, error)

    def tell_missing(self, node: Node, pods: list[Pod]) -> None:
        """Raise an Event for each interface that a running pod asked for and does not have; once for each."""
        if node.store is None:
            return
        entries = {}
        for container_id, ifname in node.journal.sandboxes():
            try:
                with node.journal.page(container_id, ifname, wait=False) as page:
                    if page.entry and page.entry.pod:
                        entries[(page.entry.pod.namespace, page.entry.pod.name)] = page.entry
            except CniError:
                continue  # being worked on: the next round sees it
        for pod in pods:
            if pod.phase == "Running" and not pod.deleted:
                self._tell_of(pod, entries.get((pod.namespace, pod.name)), node)

    def _tell_of(self, pod: Pod, entry: Entry | None, node: Node) -> None:
        if entry is None:
            if pod.annotations.get(NETWORKS) and not pod.host_network:
                self._event(
                    pod, node, "NetworksMissing", "the pod asks for networks and was started without them: restart it"
                )
            return
        for ifname in missing(entry):
            self._event(pod, node, "InterfaceMissing", f"interface {ifname} is no longer in the pod")
        if self.heal and missing(entry):
            heal(entry, node, pod)
            self.count("healed")

    def _event(self, pod: Pod, node: Node, reason: str, message: str) -> None:
        known = (pod.uid or pod.name, reason, message)
        if known in self._told or node.store is None:
            return
        self._told.add(known)
        self.count("told")
        try:
            node.store.event(pod, "Warning", reason, message)
        except CniError as error:
            log.warning("event %s of pod %s was not told: %s", reason, pod.ref, error)


def is_gone(entry: Entry) -> bool:
    """Tell whether a sandbox's namespace is surely gone: this is another boot, or its folder is there and it is not.

    A folder that is not there may be one that we cannot see: that proves nothing.
    """
    if entry.boot and entry.boot != boot():
        return True
    path = Path(entry.netns)
    return bool(entry.netns) and path.parent.is_dir() and not path.exists()


def missing(entry: Entry) -> list[str]:
    """Return the interfaces of the entry that are not in its namespace; none when that cannot be looked into."""
    try:
        with netlink.open(entry.netns) as kernel:
            there = {link.name for link in kernel.links()}
    except CniError:
        return []
    return [attachment.ifname for attachment in entry.attachments if attachment.ifname not in there]


def heal(entry: Entry, node: Node, pod: Pod) -> None:
    """Attach the missing interfaces again: what is left of them is taken down first. The pod is told what it has."""
    call = call_for(entry, "ADD", node)
    with node.journal.page(entry.container_id, entry.ifname) as page:
        if page.entry is None:
            return
        there, lost = page.entry.attachments, missing(page.entry)
        for attachment in there:
            if attachment.ifname in lost:
                node.chain.delete(attachment, call)
                node.chain.add(attachment, call)
                log.info("sandbox %s: %s attached again", entry.container_id, attachment.ifname)
        told = attach.settle(attach.kept(there, call, node), gateway.claims(there), call, node)
        attach.publish(told, call.netns, node, pod)


def call_for(entry: Entry, verb: str, node: Node) -> Call:
    """Return the call that a runtime would make for the sandbox of *entry*."""
    args = entry.attachments[0].args if entry.attachments else ()
    return Call(verb, entry.container_id, entry.netns, entry.ifname, args, (node.config.bin_dir,))
