# SPDX-License-Identifier: Apache-2.0
"""The contract of a native delegate: four verbs and the schema of the keys it knows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from multus_py.cni.call import Call
from multus_py.cni.result import Result


@dataclass(frozen=True)
class Request:
    """What a native delegate gets: the call as a plugin would see it, and a way to ask another plugin.

    `call.config` is one plugin's config: name, cniVersion, type, its keys, `prevResult` when there is one and
    `runtimeConfig` with what its capabilities declare. *ask* runs the plugin of a type with the same call (CNI spec
    section 4, "Plugin Delegation"): IPAM is asked so. It returns the result of ADD, None for the other verbs. *root* is
    where the node's root is seen, for a delegate that keeps files on it (`host_root.within`).
    """

    call: Call
    ask: Callable[[str, Call], Result | None]
    root: str = "/"


class Delegate(Protocol):
    """A native delegate: a module with these names. Its errors are `CniError`; any other one is told as code 999.

    A module may also have `OWNS_INTERFACE = True`: to the kernel its DEL does nothing but remove the sandbox's
    interface, so that a pod's interfaces may be removed all at once before (the kernel then waits once, not for each).
    And `parse(call)`: it raises what the verb of *call* would say of its config alone, before anything is touched.
    """

    SCHEMA: Mapping[str, Any]  # JSON Schema of the config: every key that is known, `additionalProperties` false

    def add(self, request: Request) -> Result:
        """Attach; whatever was touched is taken back before an error leaves."""

    def delete(self, request: Request) -> None:
        """Detach; what is gone already is success; everything that can be released is, before an error leaves."""

    def check(self, request: Request) -> None:
        """Raise when the kernel does not hold what `prevResult` promises."""

    def status(self, request: Request) -> None:
        """Raise code 50 or 51 when an ADD could not succeed now."""
