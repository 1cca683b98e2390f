# SPDX-License-Identifier: Apache-2.0
"""The networks of running pods follow their annotation: what the journal has is compared with what is asked for now.

Whatever changed, and whenever: who is told of a change only has the pod looked at, and a look starts from nothing but
the journal, the pod and the definitions as they are then.
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


# --- what is there beside what is asked -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What the annotation means for the networks that are there."""

    plug: tuple[Selection, ...]
    unplug: tuple[Attachment, ...]


def compare(
    there: Sequence[Attachment], asked: Sequence[Selection], config: MultusConfig, half: Sequence[str] = ()
) -> Change:
    """Return what has to be attached and detached; a network that is asked for as before stays, whatever its number.

    What is only *half* there, by interface, is made anew.

    Definitions are not read: what is there stays as it was made, also when its definition was changed or deleted. What
    the platform's config, a `/delegate` request or another program brought is never detached.
    """
    primary = next((item for item in there if item.primary), None)
    left = [item for item in there if not item.primary and item.origin != PLATFORM]
    new = []
    # Who names an interface chooses first: another network of that name would take it for its own.
    for n, choice in sorted(enumerate(asked), key=lambda one: not one[1].interface):
        whole = (item for item in left if item.ifname not in half)
        kept = next((item for item in whole if _is_as_asked(item, choice, primary)), None)
        if kept:
            left.remove(kept)
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
    """Tell whether a plugin's config holds the asked `cni-args`; more of them may be the definition's own."""
    args = plugin.get("args")
    cni = args.get("cni") if isinstance(args, Mapping) else None
    return not asked or (isinstance(cni, Mapping) and all(cni.get(key) == value for key, value in asked.items()))


def _has_wishes(item: Attachment, asked: Mapping[str, Any], runtimes: Mapping[str, Any]) -> bool:
    """Tell whether what was asked of a network is what it has; *runtimes* is what the runtime asked of the pod."""
    for key in capabilities.REQUESTABLE:
        has, wants = item.capabilities.get(key), asked.get(key)
        if has == wants or (key == "deviceID" and item.device):
            continue
        if wants is not None or has != runtimes.get(key):
            return False
    return True


def _is_the_pods(item: Attachment, config: MultusConfig) -> bool:
    """Tell whether an annotation brought a network. Of a page that an earlier build wrote, the name has to tell."""
    if item.origin:
        return item.origin == POD
    platform = {f"{config.multus_namespace}/{name}" for name in (config.cluster_network, *config.default_networks)}
    return "/" in item.name and item.name not in platform


def _half(entry: Entry, node: Node) -> list[str]:
    """Return the interfaces whose network did not come to be whole: the process that attached it was killed."""
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
    """What a pod asks for and could not be done: told once, waited for. *asked* is the annotation of the pod's uid."""

    asked: tuple[str, str]
    told: set[str] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)
    status_is_old: bool = False


class DynamicAttachments:
    """Has pods looked at when they or what they wait for changed, until each has what it asks for.

    *wanted* tells whether the config says so, *ready* whether the cluster's word is known; *admitted* counts the
    work on one sandbox among the runtime's calls for the time of a block, *pods_here* returns the pods of this node.
    """

    def __init__(
        self,
        node: Callable[[], Node],
        wanted: Callable[[], bool],
        ready: Callable[[], bool],
        admitted: Callable[[Call], AbstractContextManager[object]],
        pods_here: Callable[[], Sequence[Pod]],
    ) -> None:
        self._node, self._wanted, self._ready, self._admitted = node, wanted, ready, admitted
        self._pods_here = pods_here
        self._failing: dict[Key, _Failing] = {}
        self.queue = PodQueue(self.look)

    def look_at_all(self, after: float = 0.0) -> None:
        """Have all pods compared soon."""
        if self._wanted():
            self.queue.add(_EVERY, after)

    def config_changed(self) -> None:
        """Have all pods compared, and what failed tried again now: the config may have been the reason."""
        self.look_at_all()
        for key in list(self._failing):
            self.queue.add(key)

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """Have a pod looked at whose annotation changed; one that appears may have been edited before that."""
        if not self._wanted():
            return
        if new is None:
            if old:
                self.queue.drop((old.namespace, old.name))
                self._failing.pop((old.namespace, old.name), None)
        elif old is None:
            self.look_at_all(_SETTLE)
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

    def look(self, key: Key) -> bool:
        """Look at one pod, or compare all; False when it has to be done again."""
        if not self._wanted():
            self._failing.clear()
            return True
        if not self._ready():
            return False
        return self._compare_all() if key == _EVERY else self._look_at(key)

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

    def _look_at(self, key: Key) -> bool:
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
        # A pod that is made anew may have a sandbox of before beside the new one.
        mine = [entry for entry in _sandboxes(node.journal) if _follows(entry, pod)]
        done = [self._follow(entry, _Look(node, pod, failing)) for entry in mine]
        if all(done):
            self._failing.pop(key, None)
        else:
            self._failing[key] = failing
        return all(done)

    def _follow(self, entry: Entry, look: "_Look") -> bool:
        """Make one sandbox have what is asked for; False when something is left to be done."""
        call = _call_for(entry, look.node)
        try:
            with self._admitted(call):
                look.follow(entry, call)
        except hotplug.Gone:
            return True
        except CniError as error:
            # The page is held by an ADD or DEL, or the annotation cannot be read.
            if error.code != Code.TRY_AGAIN:
                look.tell_failure("FailedAttach", NETWORKS, error)
            return False
        return not look.troubles


@dataclass
class _Look:
    """One look at one pod, and how many *troubles* it met."""

    node: Node
    pod: Pod
    failing: _Failing
    troubles: int = 0

    def follow(self, before: Entry, call: Call) -> None:
        """Compare once more while nobody else works on the sandbox, then detach and attach one by one."""
        with self.node.journal.lock_sandbox(before.container_id, before.ifname, wait=False) as page:
            entry = page.entry
        if entry is None or not _follows(entry, self.pod):
            raise hotplug.Gone(Code.UNKNOWN_CONTAINER, f"sandbox {before.container_id} is gone")
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
            # One that cannot be detached yet would be there twice.
            if f"{choice.namespace}/{choice.name}" not in [item.name for item in stuck]:
                ifname = choice.interface or free_name(there, asked)
                there += self._plug(replace(choice, interface=ifname), there, call)

    def _unplug(self, item: Attachment, call: Call) -> bool:
        try:
            there = hotplug.unplug(item.ifname, call, self.node, self.pod)
        except Exception as error:  # noqa: BLE001  a delegate may raise anything: the other networks go on
            # The network may be gone all the same, and only the status not be told.
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
        except hotplug.Gone:
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
        self.tell_failure(reason, f"network {network} as {ifname}", error)

    def tell_failure(self, reason: str, about: str, error: Exception) -> None:
        """Tell what failed, unless an earlier try failed in the same way."""
        self.troubles += 1
        words = str(error) if str(error).startswith(about) else f"{about}: {error or repr(error)}"
        # Numbers differ from one try to the next: process ids, addresses, times.
        known = _VARYING.sub("#", f"{reason} {words}")
        if known in self.failing.told:
            log.debug("pod %s: %s; to be tried again", self.pod.ref, words)
            return
        self.failing.told.add(known)
        defect = None if isinstance(error, CniError) else error
        log.warning("pod %s: %s; to be tried again", self.pod.ref, words, exc_info=defect)
        self._tell("Warning", reason, words)

    def _tell(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        try:
            if self.node.store:
                self.node.store.event(self.pod, kind, reason, message)
        except CniError as error:
            log.warning("event %s of pod %s was not told: %s", reason, self.pod.ref, error)


def _differs(entry: Entry, pod: Pod, node: Node) -> bool:
    if not _follows(entry, pod):
        return False
    try:
        return compare(entry.attachments, _asked(pod), node.config, _half(entry, node)) != Change((), ())
    except CniError:
        return True  # the look tells


def _asked(pod: Pod) -> tuple[Selection, ...]:
    return selection.parse(pod.annotations.get(NETWORKS, ""), pod.namespace)


def _call_for(entry: Entry, node: Node) -> Call:
    """Return the call of the sandbox's ADD, without what was asked of its first network alone."""
    call = reconciler.call_for(entry, "ADD", node)
    return replace(call, args=tuple(pair for pair in call.args if pair[0] not in ("MAC", "IP")))
