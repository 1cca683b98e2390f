# SPDX-License-Identifier: Apache-2.0
"""A running pod whose annotation is edited, and what it then has: in the kernel, the journal and its Events."""

import json
from contextlib import nullcontext
from typing import Any

from running import Running

from multus_py.agent.reconciling.dynamic_attachments import DynamicAttachments
from multus_py.kernel import namespaces, netlink
from multus_py.kube.polled import Polled
from multus_py.kube.store import PodRef
from multus_py.plan.attachment import Attachment
from multus_py.verbs.node import Node

STATUS = "k8s.v1.cni.cncf.io/network-status"


def interfaces(running: Running) -> tuple[list[str], list[str]]:
    """Return the pod's interfaces in the kernel and in network-status."""
    with netlink.open(running.stage.netns) as kernel:
        there = sorted(link.name for link in kernel.links() if link.name != "lo")
    text = running.stage.node().store.pod(PodRef("default", "p")).annotations.get(STATUS, "[]")
    return there, sorted(status["interface"] for status in json.loads(text))


def following(node: Node) -> DynamicAttachments:
    """Return what follows annotations on a node, without threads and lanes."""
    here = node.store.pods_here if isinstance(node.store, Polled) else list
    return DynamicAttachments(lambda: node, lambda: True, lambda: True, lambda call: nullcontext(), here)


def look(running: Running, node: Node | None = None) -> bool:
    """Follow the pod once; return whether nothing is left to be done."""
    there = node or running.stage.node()
    return namespaces.run_in(running.host, lambda: following(there).process(("default", "p")))


def journalled(running: Running) -> tuple[Attachment, ...]:
    """Return the attachments on the pod's page."""
    return running.stage.node().journal.read("c1", "eth0").attachments


def followed(running: Running, networks: Any, *, done: bool = True) -> tuple[list[str], list[str]]:
    """Edit the pod's annotation and follow it; return what was attached and detached."""
    running.stage.pod("p", networks)
    before = journalled(running)
    assert done == look(running)
    after = journalled(running)
    return (
        [item.ifname for item in after if item not in before],
        [item.ifname for item in before if item not in after],
    )


def events(running: Running, kind: str = "") -> list[tuple[str, str]]:
    """Return the reasons and messages of the pod's Events."""
    told = running.stage.node().store.events(PodRef("default", "p"))
    return [(event.reason, event.message) for event in told if kind in ("", event.kind)]
