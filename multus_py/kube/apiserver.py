# SPDX-License-Identifier: Apache-2.0
"""A cluster's API server as the store: each verb is a few requests, repeated while the server is busy.

The session sends requests; here is which requests are sent, and for how long.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as DeadlinePassed
from typing import Any, Literal, TypeVar

from multus_py.cni.errors import Code
from multus_py.cni.text import one_line
from multus_py.kube import dra, objects
from multus_py.kube.http import Conflict, Request, Retryable, Send
from multus_py.kube.session import COMPONENT, Client, load_packages
from multus_py.kube.store import NETWORK_STATUS, Device, NetworkDefinition, NotFound, Pod, PodRef, Unavailable

MESSAGE_LIMIT = 1024  # bytes of an Event's message: core/v1 Event
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds before a further try, at most
T = TypeVar("T")


class ApiServer:
    """The API server that *kubeconfig* names (a path); None: the one of the cluster whose pod we are.

    Every verb ends within *deadline* seconds, looking up names, running credential commands and all retries included.
    *node* is the host in the source of our Events, *now* returns the time of day in nanoseconds.
    """

    def __init__(
        self, kubeconfig: str | None, deadline: float, node: str = "", now: Callable[[], int] = time.time_ns
    ) -> None:
        self.client = Client(kubeconfig)
        self._deadline = deadline
        self._node = node
        self._now = now

    def pod(self, ref: PodRef) -> Pod:
        """Return the pod as the API server has it now."""
        doing = f"read pod {ref}"
        request = Request("GET", objects.pod_path(ref.namespace, ref.name, doing), doing, "get pods")
        return self._within_deadline(doing, lambda send: objects.read_pod(_whole(send(request), doing), doing))

    def definition(self, namespace: str, name: str) -> NetworkDefinition:
        """Return the definition as the API server has it now."""
        doing = f"read NetworkAttachmentDefinition {namespace}/{name}"
        path = objects.definition_path(namespace, name, doing)
        request = Request("GET", path, doing, "get network-attachment-definitions.k8s.cni.cncf.io")
        return self._within_deadline(doing, lambda send: objects.read_definition(_whole(send(request), doing), doing))

    def claimed(self, pod: Pod) -> tuple[Device, ...]:
        """Return the devices of the pod's ResourceClaims as the API server has them now."""
        return self._within_deadline(f"read the resource claims of pod {pod.ref}", lambda send: dra.devices(send, pod))

    def pods_here(self) -> list[Pod]:
        """Return the pods of this node as the API server has them now."""
        mine = objects.pods_of(self._node)
        doing = f"list the {mine.noun}"
        return self._within_deadline(
            doing, lambda send: [mine.read(each, doing) for page in mine.pages(send) for each in page.items]
        )

    def publish_status(self, pod: Pod, text: str) -> None:
        """Write the annotation through pods/status; `NotFound` when the pod went away or was replaced."""
        self.patch_status(pod, text)

    def patch_status(self, pod: Pod, text: str) -> Pod:
        """Publish the status as `publish_status` does, and return the pod as it is then."""
        doing = f"publish the network-status of pod {pod.ref}"
        path = objects.pod_path(pod.namespace, pod.name, doing)
        read = Request("GET", path, doing, "get pods")
        # With the uid in the patch the server refuses it when a pod of the same name took the place.
        metadata = {**({"uid": pod.uid} if pod.uid else {}), "annotations": {NETWORK_STATUS: text}}
        patch = Request(
            "PATCH",
            f"{path}/status",
            doing,
            "patch pods/status",
            {"metadata": metadata},
            "application/merge-patch+json",
        )

        def publish(send: Send) -> Pod:
            try:
                return objects.read_pod(_whole(send(patch), doing), doing)
            except Conflict as conflict:
                if pod.uid and (uid := objects.read_pod(_whole(send(read), doing), doing).uid) != pod.uid:
                    raise NotFound(
                        Code.INVALID_ENVIRONMENT, f"cannot {doing}: it was replaced, uid {pod.uid} is now {uid}"
                    ) from conflict
                raise Retryable(conflict.msg, "another writer changes the pod at the same time") from conflict

        return self._within_deadline(doing, publish)

    def event(self, pod: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Create a core/v1 Event about the pod."""
        self.create_event(self.build_event(pod, kind, reason, message))

    def build_event(self, pod: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str) -> Request:
        """Return the request that creates an Event; its name and time are the current ones."""
        doing = f"tell Event {reason} about pod {pod.ref}"
        path = objects.events_path(pod.namespace, pod.name, doing)
        return Request("POST", path, doing, "create events", self._event(pod, kind, reason, message))

    def create_event(self, event: Request) -> None:
        """Create the Event that was `written`."""

        def create(send: Send) -> None:
            try:
                send(event)
            except Conflict:
                # The name is ours alone: an earlier try, whose answer was lost, did create it.
                return

        self._within_deadline(event.doing, create)

    def forget(self, ref: PodRef) -> None:
        """Do nothing: statuses and Events belong to the cluster, and are deleted with the pod."""

    def _event(self, pod: Pod, kind: str, reason: str, message: str) -> dict[str, Any]:
        now = self._now()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now // 1_000_000_000))
        return {
            "apiVersion": "v1",
            "kind": "Event",
            # client-go names Events in the same way; an object's name has at most 253 characters.
            "metadata": {"namespace": pod.namespace, "name": f"{pod.name[:230].rstrip('-.')}.{now:x}"},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": pod.namespace,
                "name": pod.name,
                "uid": pod.uid,
            },
            "type": kind,
            "reason": reason,
            "message": one_line(message).encode()[:MESSAGE_LIMIT].decode(errors="ignore"),
            "source": {"component": COMPONENT, "host": self._node},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }

    def _within_deadline(self, doing: str, operation: Callable[[Send], T]) -> T:
        """Run the operation on a thread of its own, and abandon it when the deadline passes.

        Neither the lookup of a host name nor a credential command nor a reply that drips in takes a timeout.
        """
        load_packages()  # not charged to the first verb's deadline

        reply: Future[T] = Future()
        until = time.monotonic() + self._deadline
        errors: list[Retryable] = []

        def run() -> None:
            try:
                reply.set_result(self._retry(operation, until, errors))
            except Exception as error:  # noqa: BLE001  handed on to the thread that waits
                reply.set_exception(error)

        threading.Thread(target=run, name=f"api server: {doing}", daemon=True).start()
        try:
            return reply.result(self._deadline)
        except DeadlinePassed as cause:
            raise Unavailable(
                f"cannot {doing}: the API server did not answer within {self._deadline:g} s"
                + "".join(f" (the try before: {error})" for error in errors[-1:]),
                "look at the API server and at the way to it; apiDeadline gives it more time",
            ) from cause

    def _retry(self, operation: Callable[[Send], T], until: float, errors: list[Retryable]) -> T:
        """Repeat the operation while the server is busy or unreachable and a further try fits into the time.

        The error of each try is added to *errors*. Retries are written out here, in `kubelet.py` and in
        `cni/executables.py`: importing tenacity for these few lines takes 11 to 27 ms at the start of a plugin process.
        """
        longest = _FIRST_PAUSE
        while True:
            try:
                return operation(lambda request: self.client.send(request, until))
            except Retryable as error:
                errors.append(error)
                pause = random.uniform(0, longest) if error.after is None else error.after
                if time.monotonic() + pause >= until:
                    raise
            time.sleep(pause)
            longest = min(longest * 2, _LONGEST_PAUSE)


def _whole(body: Mapping[str, Any], doing: str) -> Mapping[str, Any]:
    """Return the object; to be asked again when it is none, as a proxy may answer."""
    about = body.get("metadata")
    if not isinstance(about, Mapping) or not isinstance(about.get("name"), str):
        raise Retryable(f"cannot {doing}: the API server answered with an object that has no name")
    return body
