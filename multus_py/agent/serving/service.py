# SPDX-License-Identifier: Apache-2.0
"""The calls of the daemon: each gets the node that its config describes, and is counted among those in progress."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from multus_py.agent.concurrency.call_limits import CallLimits
from multus_py.agent.concurrency.workers import Workers
from multus_py.agent.reconciling import hotplug
from multus_py.agent.serving.api import NotReady
from multus_py.agent.serving.metrics import Metrics
from multus_py.cni import call as calls
from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.cni.executables import Executables
from multus_py.config import plugin as configs
from multus_py.config.daemon import DaemonConfig
from multus_py.kube.store import KubeStore, NotFound, Pod
from multus_py.plan.attachment import pod_ref
from multus_py.state.journal import Journal
from multus_py.state.journal_entry import complete_progress
from multus_py.state.result_cache import ResultCache
from multus_py.state.spool import Tombstone
from multus_py.verbs import teardown
from multus_py.verbs.chain import Chain
from multus_py.verbs.handlers import HANDLERS
from multus_py.verbs.node import Node
from multus_py.verbs.plugins import Plugins

log = logging.getLogger("multus_py")

# What a config must have that no runtime wrote.
_NO_CONFIG: Mapping[str, Any] = {"cniVersion": "1.1.0", "name": "multus-py"}
_ENDED_KEPT = 4096  # the pods that a node ends in an hour, at the very most


class Ended:
    """The sandboxes whose DEL came and no ADD after it: the newest `_ENDED_KEPT` of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._containers: dict[str, None] = {}

    def note(self, call: Call) -> None:
        """Note a DEL or an ADD that begins."""
        if call.verb not in ("ADD", "DEL"):
            return
        with self._lock:
            self._containers.pop(call.container_id, None)
            if call.verb == "DEL":
                self._containers[call.container_id] = None
                if len(self._containers) > _ENDED_KEPT:
                    del self._containers[next(iter(self._containers))]

    def __contains__(self, container_id: str) -> bool:
        return container_id in self._containers


@dataclass
class Service:
    """All calls of one node. *config* is replaced whole when the file changes; the rest stays.

    *network* is the default network's conf as found on the node, *obstacle* why nothing can be attached to it.
    """

    config: DaemonConfig
    store: KubeStore | None
    executables: Executables
    metrics: Metrics
    limits: CallLimits
    workers: Workers | None = None
    serving: threading.Event = field(default_factory=threading.Event)
    network: Mapping[str, str] = field(default_factory=dict)
    obstacle: str = ""
    _ended: Ended = field(default_factory=Ended)

    def ready(self) -> bool:
        """Tell whether ADD, CHECK, STATUS and GC are served."""
        return self.serving.is_set() and not self.obstacle

    def cni(self, env: Mapping[str, str], stdin: bytes) -> dict[str, Any] | None:
        """Answer a runtime's call; the result of ADD is in the caller's version."""
        with self.metrics.measured("/cni", env.get("CNI_COMMAND", "")):
            call = calls.parse({"CNI_IFNAME": hotplug.PRIMARY, **env}, stdin)
            if call.verb == "VERSION":
                return None
            self._refuse_unready(call.verb)
            self._ended.note(call)
            node, call = self.node(call)
            with self.limits.admitted(call) as first:
                return HANDLERS[call.verb](call, node) if first else None

    def delegate(self, env: Mapping[str, str], stdin: bytes, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Attach, detach, check or ask for the status of one more network; its config is on standard input."""
        with self.metrics.measured("/delegate", env.get("CNI_COMMAND", "")):
            call = calls.parse({"CNI_PATH": "/", **env}, stdin)
            if call.verb == "VERSION":
                return None
            self._refuse_unready(call.verb)
            # The config of the call is the delegate's: our own settings come from the daemon's file alone.
            node = self.own_node({"name": call.config["name"], "cniVersion": call.version})
            call = replace(call, path=(node.config.bin_dir, *(folder for folder in call.path if folder != "/")))
            with self.limits.admitted(call) as first:
                return self._one_more(call, asked, node) if first else None

    def _one_more(self, call: Call, asked: dict[str, Any], node: Node) -> dict[str, Any] | None:
        if call.verb == "GC":
            raise CniError(Code.INVALID_ENVIRONMENT, "/delegate has no GC")
        pod = self._pod(call) if call.verb in ("ADD", "DEL") else None
        attachment = hotplug.requested_attachment(call, asked, node, pod)
        adopt = partial(self._may_adopt, call, pod)
        if call.verb == "ADD":
            return results.write(hotplug.plug(attachment, call, node, pod, adopt), call.version)
        if call.verb == "DEL":
            if not self._unplugged(call, node, pod, adopt):
                teardown.detach_network(attachment, complete_progress(attachment), call, node)
        elif call.verb == "CHECK":
            node.chain.check(attachment, call)
        else:
            node.chain.status(attachment, call)
        return None

    @staticmethod
    def _unplugged(call: Call, node: Node, pod: Pod | None, adopt: Callable[[], bool]) -> bool:
        try:
            return hotplug.unplug(call.ifname, call, node, pod, adopt)
        except hotplug.UnknownSandbox:
            return False

    def _may_adopt(self, call: Call, pod: Pod | None) -> bool:
        """Tell whether a sandbox without an entry may be one that another program attached, and not a removed one."""
        return call.container_id not in self._ended and not (pod and pod.deleted)

    def replay(self, tombstone: Tombstone) -> None:
        """Run one spooled DEL, unless its sandbox was attached again since: some runtimes reuse container ids."""
        call = calls.parse({"CNI_IFNAME": hotplug.PRIMARY, **tombstone.env}, tombstone.stdin)
        node, _ = self.node(call)
        if tombstone.is_older(node.journal, call):
            log.info("spool: %s: its sandbox was attached anew since, nothing to do", tombstone.path.name)
            return
        self.cni(tombstone.env, tombstone.stdin)

    def node(self, call: Call) -> tuple[Node, Call]:
        """Return the node that the daemon's file and the call's own config describe, and the call for it."""
        node = self.own_node(call.config)
        return node, replace(call, path=node.config.path(call.path))

    def own_node(self, config: Mapping[str, Any] = _NO_CONFIG) -> Node:
        """Return the node that the daemon's file describes, over the keys of *config*."""
        root = self.config.chroot_dir or "/"
        settings = configs.parse({**self.config.effective(config), **self.network}, root)
        plugins = Plugins(settings.backend, settings.exec_timeout, self.executables, self.metrics.delegated, root)
        return Node(
            config=settings,
            store=self.store,
            chain=Chain(plugins, ResultCache(settings.cni_dir / "results")),
            journal=Journal(settings.cni_dir / "attachments"),
            sleep=time.sleep,
            monotonic=time.monotonic,
            workers=self.workers,
            slot=self.limits.slot,
        )

    def _pod(self, call: Call) -> Pod | None:
        ref = pod_ref(call)
        if ref is None or self.store is None:
            return None
        try:
            return self.store.pod(ref)
        except NotFound:
            return None

    def _refuse_unready(self, verb: str) -> None:
        if verb != "DEL" and not self.ready():
            raise NotReady(
                Code.NOT_AVAILABLE if verb == "STATUS" else Code.TRY_AGAIN,
                self.obstacle or "the multus-py daemon is not ready",
                "it waits for its first list of pods and definitions, or it is about to end"
                if not self.obstacle
                else "pods wait for the default network; what is there goes on",
            )
