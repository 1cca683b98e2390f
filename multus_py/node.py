# SPDX-License-Identifier: Apache-2.0
"""All that the story needs of the world, handed in: the store, the chain, the journal, the clock."""

from collections.abc import Callable
from dataclasses import dataclass

from multus_py.chain import Chain
from multus_py.config import MultusConfig
from multus_py.journal import Journal
from multus_py.kube.store import KubeStore


@dataclass(frozen=True)
class Node:
    """One machine, as seen by one process. *store* None: no pods are known, only the default networks are attached."""

    config: MultusConfig
    store: KubeStore | None
    chain: Chain
    journal: Journal
    sleep: Callable[[float], None]
    monotonic: Callable[[], float]
