# SPDX-License-Identifier: Apache-2.0
"""The record of one network of one pod, and the pod that a call is for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multus_py.cni.call import Call
from multus_py.cni.conflist import Conflist
from multus_py.cni.result import Address
from multus_py.kube.store import Device, PodRef

# Who asked for a network: our own config, the pod's annotation, a /delegate request; or another program attached it.
ORIGINS = PLATFORM, POD, REQUEST, OTHER = ("platform", "pod", "request", "other")


@dataclass(frozen=True)
class Attachment:
    """One planned network of one pod: all that its plugins get, the same on ADD, CHECK and DEL.

    *name* is for messages and the status: `<namespace>/<definition>`, or the name of a config file.
    *capabilities* is what may become a plugin's runtimeConfig; *default_route* None: not requested, (): keep what the
    delegate sets, else the gateways. *device* is assigned to it, and already in the config.
    *origin* is who asked for it, one of `ORIGINS`; "" from an earlier build.
    """

    name: str
    conflist: Conflist
    ifname: str
    primary: bool
    args: tuple[tuple[str, str], ...] = ()
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    default_route: tuple[Address, ...] | None = None
    device: Device | None = None
    origin: str = ""

    def __str__(self) -> str:
        return f"network {self.name} as {self.ifname}"


def pod_ref(call: Call) -> PodRef | None:
    """Return the pod that the runtime names in CNI_ARGS; None when the sandbox belongs to none."""
    name, namespace = _text(call.arg("K8S_POD_NAME")), _text(call.arg("K8S_POD_NAMESPACE"))
    return PodRef(namespace or "default", name, _text(call.arg("K8S_POD_UID"))) if name else None


def _text(value: str) -> str:
    """Return a value of an environment, which may be any bytes, as text that every store accepts."""
    return value if value.isascii() else value.encode(errors="surrogateescape").decode(errors="replace")
