# SPDX-License-Identifier: Apache-2.0
"""All that the story needs of the world, handed in: the store, the chain, the journal, the clock."""

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

TimedResult = tuple[dict[str, Any], float]  # what the last plugin of a chain said, and the seconds that the chain took


class WorkerProcesses(Protocol):
    """Other processes that attach natively."""

    def is_needed(self) -> bool:
        """Tell whether this process has more to do than it can."""

    def add(self, attachments: tuple[Attachment, ...], call: Call, chain: Chain) -> list[TimedResult] | None:
        """Have the chains of a sandbox run as *chain* would; None when nobody there has time."""


@dataclass(frozen=True)
class Node:
    """One machine, as seen by one process. *store* None: no pods are known, only the default networks are attached.

    *workers* may run chains that need no executable; *slot* is taken for the time in which a verb is worked on, once
    the sandbox's page is ours.
    """

    config: MultusConfig
    store: KubeStore | None
    chain: Chain
    journal: Journal
    sleep: Callable[[float], None]
    monotonic: Callable[[], float]
    workers: WorkerProcesses | None = None
    slot: Callable[[str], AbstractContextManager[None]] = lambda verb: nullcontext()  # noqa: ARG005  nobody to wait for
