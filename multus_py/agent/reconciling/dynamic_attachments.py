# SPDX-License-Identifier: Apache-2.0
"""The networks of running pods follow their annotation: what the journal has is compared with what is asked for now.

A change only queues the pod. Processing starts from the journal, the pod and the definitions of that moment.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from multus_py.agent.reconciling import hotplug, reconciler
from multus_py.agent.reconciling.pod_queue import Key, PodQueue
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.config import selection
from multus_py.config.plugin import MultusConfig
from multus_py.config.selection import Selection
from multus_py.kube.store import NETWORKS, NetworkDefinition, NotFound, Pod, PodRef
from multus_py.plan import capabilities, decide, devices
from multus_py.plan.attachment import OTHER, PLATFORM, POD, Attachment
from multus_py.plan.networks import NoNetwork, Sources
from multus_py.state.journal import Journal
from multus_py.state.journal_entry import Entry, complete_progress
from multus_py.verbs import attach, events
from multus_py.verbs.node import Node

log = logging.getLogger("multus_py")

_EVERY: Key = ("", "")  # no pod has this name: all pods are compared, and those that differ are looked at
_SETTLE = 5.0  # seconds within which pods that appear one after the other are compared together
_NUMBERED = re.compile(r"net[0-9]+\Z")
_VARYING = re.compile(r"[0-9a-f]*[0-9][0-9a-f]*")
_ENDED = ("Succeeded", "Failed")


# --- comparing -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What the annotation changes of the existing networks."""

    plug: tuple[Selection, ...]
    unplug: tuple[Attachment, ...]


def compare(
    there: Sequence[Attachment], asked: Sequence[Selection], config: MultusConfig, half: Sequence[str] = ()
) -> Change:
    """Return what has to be attached and detached; a network that is asked for as before stays, whatever its number.

    Interfaces in *half* were attached in part and are attached again.

    Definitions are not read: existing networks stay as they are, also when a definition was changed or deleted. What
    the platform's config, a `/delegate` request or another program brought is never detached.
    """
    primary = next((item for item in there if item.primary), None)
    left = [item for item in there if not item.primary and item.origin != PLATFORM]
    new = []
    # Who names an interface chooses first: another network of that name would take it for its own.
    for n, choice in sorted(enumerate(asked), key=lambda one: not one[1].interface):
        whole = (item for item in left if item.ifname not in half)
        existing = next((item for item in whole if _is_as_asked(item, choice, primary)), None)
        if existing:
            left.remove(existing)
        else:
            new.append(n)
    return Change(tuple(asked[n] for n in sorted(new)), tuple(item for item in left if _is_the_pods(item, config)))


def _is_as_asked(item: Attachment, choice: Selection, primary: Attachment | None) -> bool:
    named = item.ifname == choice.interface if choice.interface else bool(_NUMBERED.match(item.ifname))
    return (
        named
        and item.name == f"{choice.namespace}/{choice.name}"
        and item.default_route == choice.default_route
        and _has_device(item, choice)
        and all(_has_args(plugin, choice.cni_args or {}) for plugin in item.conflist.plugins)
        and _has_wishes(item, capabilities.runtime_config(False, choice, {}), primary.capabilities if primary else {})
    )


def _has_device(item: Attachment, choice: Selection) -> bool:
    wish = devices.DeviceRequest(item.name, choice.resource, choice.device_id, choice.container, choice.claim)
    return wish.fits(item.device) if item.device else not wish.is_allocated


def _has_args(plugin: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Tell whether a plugin's config has the requested `cni-args`; others may come from the definition."""
    args = plugin.get("args")
    cni = args.get("cni") if isinstance(args, Mapping) else None
    return not asked or (isinstance(cni, Mapping) and all(cni.get(key) == value for key, value in asked.items()))


def _has_wishes(item: Attachment, asked: Mapping[str, Any], runtimes: Mapping[str, Any]) -> bool:
    """Tell whether a network has what is requested; *runtimes* are the runtime's own requests."""
    for key in capabilities.REQUESTABLE:
        has, wants = item.capabilities.get(key), asked.get(key)
        if has == wants or (key == "deviceID" and item.device):
            continue
        if wants is not None or has != runtimes.get(key):
            return False
    return True


def _is_the_pods(item: Attachment, config: MultusConfig) -> bool:
    """Tell whether the annotation requested a network; in entries of earlier builds its name decides."""
    if item.origin:
        return item.origin == POD
    platform = {f"{config.multus_namespace}/{name}" for name in (config.cluster_network, *config.default_networks)}
    return "/" in item.name and item.name not in platform


def _half(entry: Entry, node: Node) -> list[str]:
    """Return the interfaces whose ADD did not complete: the process was killed."""
    return [
        item.ifname
        for item in entry.attachments
        if entry.progress_of(item) != complete_progress(item) and not node.chain.cache.has(item, entry.container_id)
    ]


def free_name(there: Sequence[Attachment], asked: Sequence[Selection]) -> str:
    """Return the first net<N> that no network has and none asks for."""
    used = {item.ifname for item in there} | {choice.interface for choice in asked}
    return next(name for n in range(1, len(used) + 2) if (name := f"net{n}") not in used)


def _follows(entry: Entry, pod: Pod) -> bool:
    """Tell whether the sandbox of *entry* is that of the running *pod*, and was attached by us."""
    ref = entry.pod
    if ref is None or (ref.namespace, ref.name) != (pod.namespace, pod.name):
        return False
    if ref.uid and pod.uid and ref.uid != pod.uid and not pod.is_static:
        return False
    if pod.deleted or pod.phase in _ENDED or entry.is_gone():
        return False
    # Of a sandbox that another program attached, only what came by /delegate is surely known.
    return any(item.primary and item.origin != OTHER for item in entry.attachments)


def _sandboxes(journal: Journal) -> Iterator[Entry]:
    """Yield what stands on the pages that can be read, without waiting for any."""
    for container_id, ifname in journal.sandboxes():
        try:
            yield journal.read(container_id, ifname)
        except CniError:
            continue  # gone meanwhile, or damaged: DEL's business


# --- looking at pods --------------------------------------------------------------------------------------------------


@dataclass
class _Failing:
    """Requests of a pod that failed: reported once, then retried. *asked* is the annotation of the pod's uid."""

    asked: tuple[str, str]
    reported: set[str] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)
    status_is_old: bool = False


class DynamicAttachments:
    """Has pods looked at when they or what they wait for changed, until each has what it asks for.

    *enabled* returns whether the config enables it, *ready* whether the store is synced; *admitted* counts the
    work on one sandbox among the runtime's calls for the time of a block, *pods_here* returns the pods of this node.
    """

    def __init__(
        self,
        node: Callable[[], Node],
        enabled: Callable[[], bool],
        ready: Callable[[], bool],
        admitted: Callable[[Call], AbstractContextManager[object]],
        pods_here: Callable[[], Sequence[Pod]],
    ) -> None:
        self._node, self._enabled, self._ready, self._admitted = node, enabled, ready, admitted
        self._pods_here = pods_here
        self._failing: dict[Key, _Failing] = {}
        self.queue = PodQueue(self.process)

    def process_all(self, after: float = 0.0) -> None:
        """Have all pods compared soon."""
        if self._enabled():
            self.queue.add(_EVERY, after)

    def config_changed(self) -> None:
        """Have all pods compared, and what failed tried again now: the config may have been the reason."""
        self.process_all()
        for key in list(self._failing):
            self.queue.add(key)

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """Have a pod looked at whose annotation changed; one that appears may have been edited before that."""
        if not self._enabled():
            return
        if new is None:
            if old:
                self.queue.drop((old.namespace, old.name))
                self._failing.pop((old.namespace, old.name), None)
        elif old is None:
            self.process_all(_SETTLE)
        elif (old.uid, old.annotations.get(NETWORKS)) != (new.uid, new.annotations.get(NETWORKS)):
            self.queue.add((new.namespace, new.name))

    def definition_changed(self, old: NetworkDefinition | None, new: NetworkDefinition | None) -> None:
        """Have the pods looked at that could not get this network."""
        about = new or old
        if about is None:
            return
        for key, failing in list(self._failing.items()):
            if f"{about.namespace}/{about.name}" in failing.networks:
                self.queue.add(key)

    def process(self, key: Key) -> bool:
        """Process one pod, or compare all; False when it has to be retried."""
        if not self._enabled():
            self._failing.clear()
            return True
        if not self._ready():
            return False
        return self._compare_all() if key == _EVERY else self._process_pod(key)

    def _compare_all(self) -> bool:
        """Have those pods looked at that differ: one reading of the journal for all of them, and none of the kernel."""
        node = self._node()
        try:
            pods = {(pod.namespace, pod.name): pod for pod in self._pods_here()}
        except CniError as error:
            log.warning("the networks of running pods cannot be compared: %s", error)
            return False
        for entry in _sandboxes(node.journal):
            key = (entry.pod.namespace, entry.pod.name) if entry.pod else _EVERY
            if key in pods and _differs(entry, pods[key], node):
                self.queue.offer(key)
        return True

    def _process_pod(self, key: Key) -> bool:
        node = self._node()
        if node.store is None:
            return True
        try:
            pod = node.store.pod(PodRef(*key))
        except NotFound:
            self._failing.pop(key, None)
            return True
        except CniError as error:
            log.warning("pod %s/%s: its networks cannot be compared: %s", *key, error)
            return False
        asked = (pod.uid, pod.annotations.get(NETWORKS, ""))
        failing = self._failing.get(key)
        if failing is None or failing.asked != asked:
            failing = _Failing(asked)
        failing.networks.clear()
        # A pod with a new sandbox may still have the previous one.
        mine = [entry for entry in _sandboxes(node.journal) if _follows(entry, pod)]
        done = [self._follow(entry, _Pass(node, pod, failing)) for entry in mine]
        if all(done):
            self._failing.pop(key, None)
        else:
            self._failing[key] = failing
        return all(done)

    def _follow(self, entry: Entry, current: "_Pass") -> bool:
        """Make one sandbox have what is asked for; False when something is left to be done."""
        call = _call_for(entry, current.node)
        try:
            with self._admitted(call):
                current.follow(entry, call)
        except hotplug.UnknownSandbox:
            return True
        except CniError as error:
            # The sandbox is locked by an ADD or DEL, or the annotation cannot be read.
            if error.code != Code.TRY_AGAIN:
                current.report_failure("FailedAttach", NETWORKS, error)
            return False
        return not current.errors


@dataclass
class _Pass:
    """One processing of one pod, and its number of *errors*."""

    node: Node
    pod: Pod
    failing: _Failing
    errors: int = 0

    def follow(self, before: Entry, call: Call) -> None:
        """Compare again under the lock of the sandbox, then detach and attach one by one."""
        with self.node.journal.lock_sandbox(before.container_id, before.ifname, wait=False) as file:
            entry = file.entry
        if entry is None or not _follows(entry, self.pod):
            raise hotplug.UnknownSandbox(Code.UNKNOWN_CONTAINER, f"sandbox {before.container_id} is gone")
        asked = _asked(self.pod)
        change = compare(entry.attachments, asked, self.node.config, _half(entry, self.node))
        if self.failing.status_is_old:
            attach.publish_status(
                attach.cached_results(entry.attachments, call, self.node), call.netns, self.node, self.pod
            )
            self.failing.status_is_old = False
        stuck = [item for item in reversed(change.unplug) if not self._unplug(item, call)]
        there = [item for item in entry.attachments if item not in change.unplug or item in stuck]
        for choice in sorted(change.plug, key=lambda one: not (one.device_id or one.claim or one.container)):
            # One that cannot be detached yet would exist twice.
            if f"{choice.namespace}/{choice.name}" not in [item.name for item in stuck]:
                ifname = choice.interface or free_name(there, asked)
                there += self._plug(replace(choice, interface=ifname), there, call)

    def _unplug(self, item: Attachment, call: Call) -> bool:
        try:
            there = hotplug.unplug(item.ifname, call, self.node, self.pod)
        except Exception as error:  # noqa: BLE001  a delegate may raise anything: the other networks go on
            # The network may be detached all the same, and only the status not published.
            self.failing.status_is_old = True
            self._failed("FailedDetach", item.name, item.ifname, error)
            return False
        if there:
            self._tell("Normal", "RemovedInterface", f"Remove {item.ifname} from {item.name}")
        return True

    def _plug(self, choice: Selection, there: Sequence[Attachment], call: Call) -> list[Attachment]:
        """Attach one network; return it, or nothing when that failed."""
        node, pod = self.node, self.pod
        name = f"{choice.namespace}/{choice.name}"
        try:
            given = attach.device_sources(call, node, pod) or ()
            attachment = decide.additional_attachment(
                there, choice, call, pod, sources=Sources(node.config, node.store), device_sources=given
            )
            result = hotplug.plug(attachment, call, node, pod)
        except hotplug.UnknownSandbox:
            raise
        except Exception as error:  # noqa: BLE001  as above
            reason = "NoNetworkFound" if isinstance(error, NoNetwork) else "FailedAttach"
            self._failed(reason, name, choice.interface, error)
            return []
        self._tell("Normal", "AddedInterface", events.added_message(attachment, result))
        return [attachment]

    def _failed(self, reason: str, network: str, ifname: str, error: Exception) -> None:
        """Note what is to be tried again."""
        self.failing.networks.add(network)
        self.report_failure(reason, f"network {network} as {ifname}", error)

    def report_failure(self, reason: str, about: str, error: Exception) -> None:
        """Report what failed, unless an earlier attempt failed in the same way."""
        self.errors += 1
        words = str(error) if str(error).startswith(about) else f"{about}: {error or repr(error)}"
        # Numbers differ from one try to the next: process ids, addresses, times.
        known = _VARYING.sub("#", f"{reason} {words}")
        if known in self.failing.reported:
            log.debug("pod %s: %s; to be tried again", self.pod.ref, words)
            return
        self.failing.reported.add(known)
        defect = None if isinstance(error, CniError) else error
        log.warning("pod %s: %s; to be tried again", self.pod.ref, words, exc_info=defect)
        self._tell("Warning", reason, words)

    def _tell(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        try:
            if self.node.store:
                self.node.store.event(self.pod, kind, reason, message)
        except CniError as error:
            log.warning("event %s of pod %s was not reported: %s", reason, self.pod.ref, error)


def _differs(entry: Entry, pod: Pod, node: Node) -> bool:
    if not _follows(entry, pod):
        return False
    try:
        return compare(entry.attachments, _asked(pod), node.config, _half(entry, node)) != Change((), ())
    except CniError:
        return True  # reported when it is processed


def _asked(pod: Pod) -> tuple[Selection, ...]:
    return selection.parse(pod.annotations.get(NETWORKS, ""), pod.namespace)


def _call_for(entry: Entry, node: Node) -> Call:
    """Return the call of the sandbox's ADD, without what was asked of its first network alone."""
    call = reconciler.call_for(entry, "ADD", node)
    return replace(call, args=tuple(pair for pair in call.args if pair[0] not in ("MAC", "IP")))
