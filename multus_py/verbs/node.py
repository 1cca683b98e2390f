# SPDX-License-Identifier: Apache-2.0
"""What the handlers of the verbs use, passed in: config, store, plugins, journal, clock."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from multus_py.cni.call import Call
from multus_py.config.plugin import MultusConfig
from multus_py.kube.store import KubeStore
from multus_py.plan.attachment import Attachment
from multus_py.state.journal import Journal
from multus_py.verbs.chain import Chain

TimedResult = tuple[dict[str, Any], float]  # of the last plugin of a chain, with the seconds that the chain took


class WorkerProcesses(Protocol):
    """Processes that run chains of native delegates."""

    def is_needed(self) -> bool:
        """Tell whether this process has other calls to serve."""

    def add(self, attachments: tuple[Attachment, ...], call: Call, chain: Chain) -> list[TimedResult] | None:
        """Run the chains of a sandbox as *chain* would; None when no process is free."""


@dataclass(frozen=True)
class Node:
    """One node, as seen by one process. *store* None: without pods, only the default networks are attached.

    *workers* may run chains without executables; *slot* is acquired for a verb (its argument) once the sandbox is
    locked, and released at its end.
    """

    config: MultusConfig
    store: KubeStore | None
    chain: Chain
    journal: Journal
    sleep: Callable[[float], None]
    monotonic: Callable[[], float]
    workers: WorkerProcesses | None = None
    slot: Callable[[str], AbstractContextManager[None]] = lambda verb: nullcontext()  # noqa: ARG005  without a limit
