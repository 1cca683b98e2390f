# SPDX-License-Identifier: Apache-2.0
"""Ask kubelet which devices a pod was given: its pod-resources API, or its own checkpoint when that does not answer.

The only importer of grpc, which is imported only for pods whose networks name a resource.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multus_py.cni.call import INPUT_LIMIT
from multus_py.cni.errors import CniError
from multus_py.kube import checkpoint, podresources
from multus_py.kube.store import Device, PodRef, Unavailable

if TYPE_CHECKING:
    import grpc

_SERVICE = "/v1.PodResourcesLister/"
_DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two tries
_CHANNEL = (
    ("grpc.max_receive_message_length", -1),  # bounded below, where the error is distinct from a busy kubelet
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # A channel of its own for each try: one that is shared waits a second before it connects again.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.default_authority", "localhost"),
)


class _Silent(Unavailable):
    """kubelet gave no usable answer; *again*: another try may get one."""

    def __init__(self, msg: str, details: str = "", again: bool = False) -> None:
        super().__init__(msg, details)
        self.again = again


@dataclass(frozen=True)
class Kubelet:
    """This node's kubelet, found at its pod-resources *socket*; one question takes at most *deadline* seconds."""

    socket: Path
    deadline: float
    sleep: Callable[[float], None]
    monotonic: Callable[[], float]

    def devices(self, ref: PodRef) -> tuple[Device, ...]:
        """Return what the pod was given by device plugins; code 11 when kubelet does not know it or does not answer."""
        if not self.socket.exists() and (written := self._written(ref)) is not None:
            return written
        try:
            return self._persistently(ref)
        except _Silent:
            if (written := self._written(ref)) is None:
                raise
            return written

    def _written(self, ref: PodRef) -> tuple[Device, ...] | None:
        # Device plugins have one folder whatever kubelet's --root-dir is; distributions that move all of it exist.
        folders = (self.socket.parent.parent / "device-plugins", _DEVICE_PLUGINS)
        found = (checkpoint.devices(folder / "kubelet_internal_checkpoint", ref.uid) for folder in folders)
        return next((devices for devices in found if devices is not None), None)

    def _persistently(self, ref: PodRef) -> tuple[Device, ...]:
        """Ask until kubelet answers: it limits how often it may be asked, and it may be starting anew."""
        import random

        until = self.monotonic() + self.deadline
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._ask(ref, until - self.monotonic())
            except _Silent as silent:
                wait = pause * random.uniform(0.5, 1)
                if not silent.again or self.monotonic() + wait >= until:
                    raise
            self.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _ask(self, ref: PodRef, seconds: float) -> tuple[Device, ...]:
        """Ask once: for the one pod, and for all where kubelet cannot answer that."""
        import grpc

        if not self.socket.parent.is_dir():
            raise _Silent(
                f"cannot ask kubelet for the devices of pod {ref}: there is no {self.socket.parent}",
                "name kubelet's socket with 'podResourcesSocket'",
            )
        until = self.monotonic() + seconds
        with grpc.insecure_channel(f"unix:{self.socket}", _CHANNEL) as channel:
            try:
                found = self._one(channel, ref, seconds) or self._all(channel, ref, until - self.monotonic())
            except grpc.RpcError as cause:
                raise self._silent(ref, cause) from cause
        if not found:
            raise Unavailable(f"kubelet does not know pod {ref}", "it may not have placed the pod yet: try again")
        if len(found) > 1:
            raise _Silent(f"kubelet knows {len(found)} pods {ref}", "one of them is ending: try again")
        return found[0]

    def _one(self, channel: "grpc.Channel", ref: PodRef, seconds: float) -> list[tuple[Device, ...]]:
        import grpc

        # Off by default before 1.34: kubelet reports that, and an unknown pod, with a code that means anything.
        cannot = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.NOT_FOUND)
        try:
            return self._call(channel, "Get", podresources.get_request(ref), ref, seconds)
        except grpc.RpcError as error:
            if error.code() in cannot:
                return []
            raise

    def _all(self, channel: "grpc.Channel", ref: PodRef, seconds: float) -> list[tuple[Device, ...]]:
        return self._call(channel, "List", podresources.LIST_REQUEST, ref, seconds)

    def _call(
        self, channel: "grpc.Channel", verb: str, request: bytes, ref: PodRef, seconds: float
    ) -> list[tuple[Device, ...]]:
        reply: bytes = channel.unary_unary(_SERVICE + verb)(request, timeout=max(seconds, 0))
        if len(reply) > INPUT_LIMIT:
            raise _Silent(f"kubelet's reply to {verb} for pod {ref} is larger than {INPUT_LIMIT} bytes")
        try:
            return podresources.of_pod(reply, ref)
        except CniError as malformed:
            raise _Silent(f"pod {ref}: {malformed.msg}", malformed.details) from malformed

    def _silent(self, ref: PodRef, cause: "grpc.RpcError") -> _Silent:
        import grpc

        busy = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
        return _Silent(
            f"kubelet does not tell the devices of pod {ref}: {cause.code().name}: {cause.details()}",
            f"asked at {self.socket} ('podResourcesSocket') for {self.deadline:g} s ('apiDeadline')",
            again=cause.code() in busy,
        )
