# SPDX-License-Identifier: Apache-2.0
"""The interface to the cluster: what a store returns, and its methods. The stores are other modules of this room."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from multus_py.cni.errors import CniError, Code

NETWORKS = "k8s.v1.cni.cncf.io/networks"
NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
DEFAULT_NETWORK = "v1.multus-cni.io/default-network"
DEFAULT_NETWORKS = "multus-py/default-networks"
RESOURCE_NAME = "k8s.v1.cni.cncf.io/resourceName"
CONFIG_SOURCE = "kubernetes.io/config.source"


class NotFound(CniError):
    """The store answered: the object does not exist."""


class Unavailable(CniError):
    """The store did not answer within its deadline: to be tried again (code 11)."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.TRY_AGAIN, msg, details)


@dataclass(frozen=True)
class PodRef:
    """Which pod: namespace and name, and the uid that the runtime passed ("" for none)."""

    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Claim(NamedTuple):
    """A resource claim of a pod: *name* is the pod's own name for it, *claim* the ResourceClaim (resource.k8s.io)."""

    name: str
    claim: str


@dataclass(frozen=True, slots=True)
class Pod:
    """What we need to know of a pod.

    *containers* are the regular ones, then the init ones; *claims* those whose ResourceClaim is known already.
    *deleted*: it has a deletion timestamp. *version* orders two readings (metadata.resourceVersion), 0 unknown.
    """

    namespace: str
    name: str
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    node: str = ""
    phase: str = ""
    deleted: bool = False
    host_network: bool = False
    containers: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    version: int = field(default=0, compare=False)

    @property
    def ref(self) -> PodRef:
        """The pod's own reference."""
        return PodRef(self.namespace, self.name, self.uid)

    @property
    def is_static(self) -> bool:
        """Tell whether kubelet read the pod from a file or URL: its mirror in the API has another uid."""
        return self.annotations.get(CONFIG_SOURCE, "api") != "api"


@dataclass(frozen=True, slots=True)
class NetworkDefinition:
    """A NetworkAttachmentDefinition: *config* is `spec.config`, JSON text, "" when it is empty or absent.

    *version* orders two readings (metadata.resourceVersion), 0 unknown.
    """

    namespace: str
    name: str
    config: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    version: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a pod: *id* is that of its plugin or driver (for SR-IOV a PCI address), *resource* its kind.

    *containers* are those that have it. *claims* are the names by which the pod may refer to its claim
    (resource.k8s.io): none when a device plugin gave it.
    """

    resource: str
    id: str
    containers: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()


class KubeStore(Protocol):
    """Where pods and definitions are read and statuses are published. Every method has the store's own deadline."""

    def pod(self, ref: PodRef) -> Pod:
        """Return the pod; `NotFound` when there is none of that name (the caller compares the uid)."""

    def definition(self, namespace: str, name: str) -> NetworkDefinition:
        """Return the definition; `NotFound` when there is none."""

    def claimed(self, pod: Pod) -> tuple[Device, ...]:
        """Return the devices that the pod's ResourceClaims were allocated; none where no claims are allocated.

        Asked only when a network names a resource and kubelet's device plugins did not give enough of it.
        """

    def publish_status(self, pod: Pod, text: str) -> None:
        """Write the network-status annotation, whole; `NotFound` when the pod went away or has another uid now."""

    def event(self, pod: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Publish an Event about the pod."""

    def forget(self, ref: PodRef) -> None:
        """The sandbox of this pod is gone: drop what this store itself keeps of it. Never fails on an unknown pod."""


class NodeStore(KubeStore, Protocol):
    """The store of the daemon: it follows the pods of its node and the definitions, from `start` to `close`."""

    def start(self) -> None:
        """Begin to follow the pods and definitions."""

    def close(self) -> None:
        """Publish what is still queued, then end; waits a few seconds at most."""

    def ready(self) -> bool:
        """Tell whether all pods and definitions were read once."""

    def subscribe(
        self,
        pods: Callable[[Pod | None, Pod | None], None],
        definitions: Callable[[NetworkDefinition | None, NetworkDefinition | None], None] | None = None,
    ) -> None:
        """Call *pods* and *definitions* with (old, new) of each change; None stands for absence. Before `start`."""

    def pods_here(self) -> list[Pod]:
        """Return the pods that are bound to this node; all pods when the store has no node name."""

    def gauges(self) -> Sequence[tuple[str, str, Callable[[], float]]]:
        """Return the store's own metrics: name, description, and the function that returns the value."""
