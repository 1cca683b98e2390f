# SPDX-License-Identifier: Apache-2.0
"""The contract of a native delegate: four verbs and the schema of the keys that it supports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from multus_py.cni.call import Call
from multus_py.cni.result import Result


@dataclass(frozen=True)
class Request:
    """The argument of a native delegate: the call as an executable would get it, and a way to run another plugin.

    `call.config` is one plugin's config: name, cniVersion, type, its keys, `prevResult` when there is one and
    `runtimeConfig` with what its capabilities declare. *ask* runs the plugin of a type with the same call (CNI spec
    section 4, "Plugin Delegation"), as for IPAM. It returns the result of ADD, None for the other verbs. *root* is
    where the node's root is mounted, for a delegate that stores files there (`host_root.within`).
    """

    call: Call
    ask: Callable[[str, Call], Result | None]
    root: str = "/"


class Delegate(Protocol):
    """A native delegate: a module with these names. Its errors are `CniError`; any other exception becomes code 999.

    Optional names: `OWNS_INTERFACE = True` when DEL changes nothing in the kernel but remove the sandbox's interface:
    a pod's interfaces are then removed in one request (the kernel waits once, not for each). `parse(call)` raises the
    errors that the verb of *call* would raise for its config alone, before anything is changed.
    """

    SCHEMA: Mapping[str, Any]  # JSON Schema of the config: every supported key, `additionalProperties` false

    def add(self, request: Request) -> Result:
        """Attach; roll back all changes before an error is raised."""

    def delete(self, request: Request) -> None:
        """Detach; what does not exist is success; release everything that can be released before an error is raised."""

    def check(self, request: Request) -> None:
        """Raise when the kernel's state differs from `prevResult`."""

    def status(self, request: Request) -> None:
        """Raise code 50 or 51 when an ADD would fail now."""
