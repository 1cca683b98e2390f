# SPDX-License-Identifier: Apache-2.0
"""Reconciles the node with its records: DELs are replayed, removed sandboxes released, missing interfaces reported.

An error of one DEL, sandbox or pod does not stop the others; what fails is retried at growing intervals.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from multus_py.cni import versions
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code, try_step
from multus_py.kernel import netlink
from multus_py.kube.store import NETWORKS, Pod
from multus_py.state.journal import SandboxFile
from multus_py.state.journal_entry import Entry, complete_progress, is_namespace_gone, uncertain_progress
from multus_py.state.spool import Spool, Tombstone
from multus_py.verbs import attach, default_route, teardown
from multus_py.verbs.node import Node

log = logging.getLogger("multus_py")

REPLAYED_AT_ONCE = 4
_FINAL_KEPT = 100  # sandboxes with nothing but failures that are given up, the newest ones
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 600.0  # seconds before what failed is tried again


class Pauses:
    """When what failed may be tried again: after 2, 4, 8 … 600 seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._of: dict[Hashable, tuple[float, float]] = {}  # key -> (not before, the last pause)

    def over(self, what: Hashable) -> bool:
        """Tell whether *what* may be retried now."""
        return self._monotonic() >= self._of.get(what, (0.0, 0.0))[0]

    def failed(self, what: Hashable) -> None:
        """Begin the next, longer pause of *what*."""
        pause = min(self._of.get(what, (0.0, _FIRST_PAUSE / 2))[1] * 2, _LONGEST_PAUSE)
        self._of[what] = (self._monotonic() + pause, pause)

    def keep_only(self, existing: set[Hashable]) -> None:
        """Remove everything that does not exist any more."""
        self._of = {what: pause for what, pause in list(self._of.items()) if what in existing}


@dataclass
class Reconciler:
    """Runs at start and at intervals. *count* is called with the kind of each action.

    *left* is the number of networks that failed and could not be rolled back, as of the last round.
    """

    spool: Spool
    replay: Callable[[Tombstone], None]
    count: Callable[[str], None]
    heal: bool = False
    monotonic: Callable[[], float] = time.monotonic
    left: int = 0
    _reported: set[tuple[str, str, str]] = field(default_factory=set)
    _replaying: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._tombstones, self._sandboxes = Pauses(self.monotonic), Pauses(self.monotonic)
        self._due: deque[Path] = deque()
        self._threads, self._lock = 0, threading.Lock()  # how many replay now

    def replay_spool(self) -> None:
        """Start to replay the DELs that the shim could not deliver, a few at once, oldest first.

        Threads of their own do it: one that hangs keeps neither the others waiting nor the daemon from its end.
        """
        existing = self.spool.files()
        self._tombstones.keep_only(set(existing))
        due = [path for path in existing if path not in self._replaying and self._tombstones.over(path)]
        self._replaying.update(due)
        self._due.extend(due)
        with self._lock:
            more = min(len(self._due), REPLAYED_AT_ONCE - self._threads)
            self._threads += more
        for _ in range(more):
            threading.Thread(target=self._replay_due, name="replay", daemon=True).start()

    def _replay_due(self) -> None:
        """Make up for one DEL after the other until none is due."""
        try:
            with suppress(IndexError):
                while True:
                    path = self._due.popleft()
                    if tombstone := self._read(path):
                        self._replay(tombstone)
                    self._replaying.discard(path)
        finally:
            with self._lock:
                self._threads -= 1

    def replay_all(self) -> None:
        """Make up for every DEL that waits, once, and come back when that is done."""
        for path in self.spool.files():
            if tombstone := self._read(path):
                self._replay(tombstone)

    def _read(self, path: Path) -> Tombstone | None:
        """Return a DEL that waits; one that the disk does not give now stays for another time."""
        try:
            return self.spool.read(path)
        except OSError as error:
            log.warning("spool: %s cannot be read: %s; to be tried again", path.name, error)
            self._tombstones.failed(path)
            return None

    def _replay(self, tombstone: Tombstone) -> None:
        """Make up for one DEL; what fails stays for another time."""
        if error := try_step(lambda: self.replay(tombstone)):
            log.warning("spool: %s: %s; to be tried again", tombstone.path.name, error)
            self._tombstones.failed(tombstone.path)
        else:
            tombstone.remove()
            self.count("replayed")

    def release_dead(self, node: Node) -> None:
        """Detach the sandboxes whose namespace is gone: the kernel frees no addresses, devices and rules.

        Networks that failed and could not be rolled back are retried here, too.
        """
        existing = node.journal.sandboxes()
        self._sandboxes.keep_only(set(existing))
        given_up: list[tuple[float, tuple[str, str]]] = []
        left = 0
        for sandbox in existing:
            if self._sandboxes.over(sandbox) and (error := try_step(lambda: self._release(sandbox, node))):  # noqa: B023
                log.warning("sandbox %s (%s): %s", *sandbox, error)
                self._sandboxes.failed(sandbox)
            failures = _failures(node, sandbox)
            left += len(failures[0])
            given_up += [failures[1]] if failures[1] else []
        self.left = left
        for _, sandbox in sorted(given_up, reverse=True)[_FINAL_KEPT:]:
            try_step(lambda: self._remove_given_up(sandbox, node))  # noqa: B023

    def _release(self, sandbox: tuple[str, str], node: Node) -> None:
        """Detach one sandbox if it was removed; raise when something has to be retried."""
        with node.journal.lock_sandbox(*sandbox, wait=False) as file:
            entry = file.entry
            if entry is None:
                self._release_damaged(file, sandbox, node)
                return
            pending = [failure for failure in entry.failures if not failure.is_final]
            if not entry.attachments and not pending:
                return
            if entry.attachments and not entry.is_gone():
                if pending:
                    teardown.retry_failures(file, call_for(entry, "DEL", node), node)
                    _raise_pending(file)
                return
            teardown.detach_sandbox(file, call_for(entry, "DEL", node), node)
            _raise_pending(file)
        if entry.attachments:
            log.info("sandbox %s (%s): its namespace was gone, released", *sandbox)
            self.count("released")
        if entry.pod and node.store:
            node.store.forget(entry.pod)

    def _release_damaged(self, file: SandboxFile, sandbox: tuple[str, str], node: Node) -> None:
        """Detach a sandbox with a damaged journal file when all namespaces of its cached results are gone."""
        namespaces = node.chain.cache.namespaces(sandbox[0])
        if file.damaged and namespaces and all(map(is_namespace_gone, namespaces)):
            teardown.detach_sandbox(file, Call("DEL", *sandbox[:1], "", sandbox[1], (), (node.config.bin_dir,)), node)
            _raise_pending(file)
            log.info("sandbox %s (%s): its file was damaged and its namespace gone, released", *sandbox)
            self.count("released")

    def _remove_given_up(self, sandbox: tuple[str, str], node: Node) -> None:
        """Remove the entry of a sandbox that was given up: there may be thousands of a network that never worked."""
        with node.journal.lock_sandbox(*sandbox, wait=False) as file:
            if file.entry and not file.entry.attachments and all(one.is_final for one in file.entry.failures):
                log.warning("sandbox %s (%s): forgotten, more than %d were given up since", *sandbox, _FINAL_KEPT)
                file.clear()
                self.count("forgotten")

    def report_missing(self, node: Node, pods: list[Pod]) -> None:
        """Publish an Event for each interface that a running pod requested and does not have, once for each."""
        if node.store is None:
            return
        entries, unread = {}, False
        for sandbox in node.journal.sandboxes():
            try:
                entry = node.journal.read(*sandbox)  # without its lock: a call may hold it
            except CniError:
                unread = True  # it may be that of any pod
            else:
                if entry.pod and entry.attachments:
                    entries[(entry.pod.namespace, entry.pod.name)] = entry
        self._reported = {known for known in self._reported if known[0] in {pod.uid or pod.name for pod in pods}}
        for pod in pods:
            if pod.phase == "Running" and not pod.deleted:
                entry_of = entries.get((pod.namespace, pod.name))
                if entry_of is None and unread:
                    continue
                if error := try_step(lambda: self._report_pod(pod, entry_of, node)):  # noqa: B023
                    log.warning("pod %s: its interfaces cannot be looked at: %s", pod.ref, error)

    def _report_pod(self, pod: Pod, entry: Entry | None, node: Node) -> None:
        if entry is None:
            if pod.annotations.get(NETWORKS) and not pod.host_network:
                self._event(
                    pod, node, "NetworksMissing", "the pod asks for networks and was started without them: restart it"
                )
            return
        lost = missing(entry)
        for ifname in lost:
            self._event(pod, node, "InterfaceMissing", f"interface {ifname} is no longer in the pod")
        if self.heal and lost:
            heal(entry, node, pod)
            self.count("healed")

    def _event(self, pod: Pod, node: Node, reason: str, message: str) -> None:
        known = (pod.uid or pod.name, reason, message)
        if known in self._reported or node.store is None:
            return
        self._reported.add(known)
        self.count("told")
        try:
            node.store.event(pod, "Warning", reason, message)
        except CniError as error:
            log.warning("event %s of pod %s was not networks: %s", reason, pod.ref, error)


def _raise_pending(file: SandboxFile) -> None:
    """Raise what still fails: the next retry follows after a longer pause."""
    if pending := [failure for failure in (file.entry.failures if file.entry else ()) if not failure.is_final]:
        raise CniError(Code.INTERNAL, f"try {pending[0].tries}: {pending[0].reason}")


def _failures(node: Node, sandbox: tuple[str, str]) -> tuple[tuple[object, ...], tuple[float, tuple[str, str]] | None]:
    """Return the failures of a sandbox, and when the last began of one that has nothing else and is given up."""
    try:
        entry = node.journal.read(*sandbox)
    except CniError:
        return (), None
    final = bool(entry.failures) and not entry.attachments and all(one.is_final for one in entry.failures)
    return entry.failures, (max(one.since for one in entry.failures), sandbox) if final else None


def missing(entry: Entry) -> list[str]:
    """Return the interfaces of the entry that are not in its namespace; none when it cannot be entered."""
    try:
        with netlink.open(entry.netns) as kernel:
            existing = {link.name for link in kernel.links()}
    except CniError:
        return []
    return [attachment.ifname for attachment in entry.attachments if attachment.ifname not in existing]


def heal(entry: Entry, node: Node, pod: Pod) -> None:
    """Attach the missing interfaces again, after detaching what is left of them; then publish the network status."""
    call = call_for(entry, "ADD", node)
    with (
        node.journal.lock_sandbox(entry.container_id, entry.ifname) as file,
        node.slot(call.verb),
        node.journal.lock_for_attach(),
    ):
        if file.entry is None:
            return
        attachments, lost = file.entry.attachments, missing(file.entry)
        for attachment in attachments:
            if attachment.ifname in lost:
                teardown.detach_network(attachment, file.entry.progress_of(attachment), call, node, attachments)
                file.write_progress(attachment, *uncertain_progress(attachment))
                node.chain.add(attachment, call)
                file.write_progress(attachment, *complete_progress(attachment))
                log.info("sandbox %s: %s attached again", entry.container_id, attachment.ifname)
        networks = attach.apply_default_routes(
            attach.cached_results(attachments, call, node), default_route.claims(attachments), call, node
        )
        attach.publish_status(networks, call.netns, node, pod)


def call_for(entry: Entry, verb: str, node: Node) -> Call:
    """Return the call that a runtime would make for the sandbox of *entry*."""
    named = [*entry.attachments, *(failure.attachment for failure in entry.failures)]
    netns = entry.netns if verb != "DEL" or Path(entry.netns).exists() else ""
    args = named[0].args if named else ()
    config = {"cniVersion": versions.LATEST, "name": entry.network}
    return Call(verb, entry.container_id, netns, entry.ifname, args, node.config.path(entry.path), config)
