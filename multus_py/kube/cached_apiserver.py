# SPDX-License-Identifier: Apache-2.0
"""A cluster's API server as the store of a process that lives long: answers come from copies that watches keep."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

from multus_py.kube import objects
from multus_py.kube.apiserver import ApiServer
from multus_py.kube.event_queue import EventQueue
from multus_py.kube.reflector import Reflector, Timing
from multus_py.kube.store import Device, NetworkDefinition, Pod, PodRef, Unavailable
from multus_py.kube.subscribers import Subscribers

log = logging.getLogger("multus_py")

CLOSE_SECONDS = 1.0  # seconds for the last Events, and again for the threads, when the store is closed


class CachedApiServer:
    """The API server that *kubeconfig* names (None: the cluster whose pod we are), seen from *node* ("": all pods).

    Every verb ends within *deadline* seconds; most do not wait at all. A cache that was never listed, or whose watch is
    broken for longer than `timing.stale_after`, is not trusted: the verbs then read from the server, and use the cache
    only when the server does not answer. *now* returns the time of day in nanoseconds.
    """

    def __init__(
        self,
        kubeconfig: str | None,
        deadline: float,
        node: str = "",
        timing: Timing | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        timing = timing or Timing()
        self._live = ApiServer(kubeconfig, deadline, node, now)
        self._node = node
        self._pod_subscribers: Subscribers[Pod] = Subscribers("pods of this node")
        self._definition_subscribers: Subscribers[NetworkDefinition] = Subscribers("definitions")
        client = self._live.client
        self._pods = Reflector(client, objects.pods_of(node), timing, self._pod_changed)
        self._definitions = Reflector(client, objects.all_definitions(), timing, self._definition_subscribers.publish)
        self.events = EventQueue(self._live.create_event)

    def start(self) -> None:
        """Begin to watch and to send Events."""
        for each in (self._pods, self._definitions, self.events):
            each.start()

    def close(self) -> None:
        """Send the last Events, end the watches and close the connections; takes `CLOSE_SECONDS` twice at most."""
        self._pods.stop()
        self._definitions.stop()
        self.events.stop(CLOSE_SECONDS)
        self._live.client.close()
        until = time.monotonic() + CLOSE_SECONDS
        for each in (self._pods, self._definitions, self.events):
            each.join(max(0.0, until - time.monotonic()))

    def ready(self) -> bool:
        """Tell whether both collections were listed."""
        return self._pods.synced and self._definitions.synced

    def age(self) -> float:
        """Return the seconds since the last event of the watch that is silent for longer.

        A cluster without changes sends a bookmark every minute or so. Infinite before the first event of both.
        """
        return max(self._pods.age, self._definitions.age)

    def token_expiry(self) -> float:
        """Return when our API token expires, in Unix seconds; 0 when it never does or is not known."""
        return self._live.client.expiry()

    def gauges(self) -> Sequence[tuple[str, str, Callable[[], float]]]:
        """Return the metrics of the watches and of the API token."""
        return (
            ("watch_age", "Seconds since the watches last said something", self.age),
            ("token_expiry", "When the API token expires, in Unix seconds; 0: never", self.token_expiry),
        )

    def subscribe(
        self,
        pods: Callable[[Pod | None, Pod | None], None],
        definitions: Callable[[NetworkDefinition | None, NetworkDefinition | None], None] | None = None,
    ) -> None:
        """Call *pods* with (old, new) of each change of a pod of this node, *definitions* with each of a definition.

        None stands for absence. They run on the threads of the watches, which wait; what they raise is logged. A pod
        that was replaced by one of the same name is reported as removed first. Existing objects are reported when they
        are listed, so subscribe before `start`.
        """
        self._pod_subscribers.add(pods)
        if definitions:
            self._definition_subscribers.add(definitions)

    def pod(self, ref: PodRef) -> Pod:
        """Return the pod: the copy's when it has the uid that is asked for, else as the API server has it now."""
        known = self._pods.cache.get(ref.namespace, ref.name)
        if known and ref.uid and known.uid != ref.uid:
            known = None
        if known and self._pods.usable:
            return known
        try:
            fresh = self._live.pod(ref)
        except Unavailable as error:
            if known is None:
                raise
            log.warning("%s; taking what was known before", error)
            return known
        self._note(fresh)
        return fresh

    def definition(self, namespace: str, name: str) -> NetworkDefinition:
        """Return the definition: the copy's, or as the API server has it now when the copy has none."""
        known = self._definitions.cache.get(namespace, name)
        if known and self._definitions.usable:
            return known
        try:
            fresh = self._live.definition(namespace, name)
        except Unavailable as error:
            if known is None:
                raise
            log.warning("%s; taking what was known before", error)
            return known
        self._definitions.cache.put(fresh)
        return fresh

    def claimed(self, pod: Pod) -> tuple[Device, ...]:
        """Return the devices of the pod's ResourceClaims as the API server has them now: they are asked for once."""
        return self._live.claimed(pod)

    def pods_here(self) -> list[Pod]:
        """Return the pods of this node, from the copy; as the API server has them now when the copy is not usable."""
        return self._pods.cache.all() if self._pods.usable else self._live.pods_here()

    def publish_status(self, pod: Pod, text: str) -> None:
        """Write the annotation; what is read here afterwards has it."""
        self._note(self._live.patch_status(pod, text))

    def event(self, pod: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Queue an Event about the pod; it is sent in the background."""
        self.events.post(self._live.build_event(pod, kind, reason, message))

    def forget(self, ref: PodRef) -> None:
        """Do nothing: the cache follows the cluster, and statuses and Events are deleted with the pod."""

    def _note(self, fresh: Pod) -> None:
        # The watch would never report that a pod of another node was deleted.
        if not self._node or fresh.node == self._node:
            self._pods.cache.put(fresh)

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if old and new and old.uid != new.uid:
            self._pod_subscribers.publish(old, None)
            old = None
        self._pod_subscribers.publish(old, new)
