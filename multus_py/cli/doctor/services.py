# SPDX-License-Identifier: Apache-2.0
"""Who has to answer on a node: the daemon, kubelet, the API server; and whether pods' namespaces can be seen."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from multus_py.cli.doctor.node import ExaminedNode
from multus_py.cli.doctor.node_finding import Level, NodeFinding, error_finding
from multus_py.cni.errors import CniError
from multus_py.entry import probe
from multus_py.install import cni_conf, primary
from multus_py.kube.store import NotFound

_NAMESPACES = "/run/netns"


def findings(node: ExaminedNode) -> Iterator[NodeFinding]:
    """Yield what is found about the sockets and about the way to the API server."""
    yield from _daemon(node)
    yield from _kubelet(node)
    yield from _api_server(node)
    yield from _namespaces(node)


def _daemon(node: ExaminedNode) -> Iterator[NodeFinding]:
    told = f"{node.socket_dir}/multus.sock"
    socket = node.at(told)
    if not socket.exists():
        level = Level.FAILED if _is_needed(node) else Level.WARNING
        advice = "start the daemon; pods wait for it meanwhile, and DELs are kept"
        yield NodeFinding(level, "daemon", f"{told} is not there: no daemon serves this node", advice)
        return
    for path, most in ((socket, 0o600), (socket.parent, 0o700)):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & ~most:
            fact = f"{told if path == socket else node.socket_dir} has mode {mode:o}: more people than root may use it"
            yield NodeFinding(Level.FAILED, "daemon", fact, f"chmod {most:o}, and restart the daemon")
    if trouble := probe.failure(socket, "/healthz"):
        yield NodeFinding(Level.FAILED, "daemon", f"no daemon answers on {told}: {trouble}", "see its log; restart it")
    elif trouble := probe.failure(socket, "/readyz"):
        advice = "it waits for its first lists, or for the primary network: see its log"
        yield NodeFinding(Level.WARNING, "daemon", f"the daemon on {told} is not ready: {trouble}", advice)
    else:
        yield NodeFinding(Level.OK, "daemon", f"the daemon on {told} is ready")


def _is_needed(node: ExaminedNode) -> bool:
    """Tell whether the runtime has a conf that leads to a daemon: a plugin that works alone names its own source."""
    body = cni_conf.read(node.at(cni_conf.conf_path(Path(node.conf_dir), node.name)))
    found = primary.plugins(body) if body else []
    return any(not ({"manifests", "kubeconfig", "delegates"} & plugin.keys()) for plugin in found)


def _kubelet(node: ExaminedNode) -> Iterator[NodeFinding]:
    told = node.settings.pod_resources_socket
    if node.at(told).is_socket():
        yield NodeFinding(Level.OK, "kubelet", f"its pod-resources socket {told} is there")
        return
    advice = "networks that name a device plugin's resource need it: set podResourcesSocket, or mount it"
    yield NodeFinding(Level.WARNING, "kubelet", f"its pod-resources socket {told} is not there", advice)


def _api_server(node: ExaminedNode) -> Iterator[NodeFinding]:
    """Read what the daemon reads: the pods of this node, and a definition."""
    own = node.daemon.certificate
    kubeconfig = str(own.kubeconfig) if own else node.settings.kubeconfig
    if node.settings.manifests or not (kubeconfig or os.environ.get("KUBERNETES_SERVICE_HOST")):
        return
    from multus_py.kube.apiserver import ApiServer  # brings the kubernetes package: half a second

    node_name = node.settings.node_name or os.environ.get("MULTUS_NODE_NAME", "") or os.uname().nodename
    store = ApiServer(kubeconfig or None, node.settings.api_deadline, node_name)
    try:
        pods = len(store.pods_here())
        try:
            store.definition("default", "multus-py-doctor")
        except NotFound as missing:
            if missing.details:  # not this one alone: the resource itself
                raise
    except CniError as trouble:
        yield error_finding("api server", trouble)
        return
    level = Level.OK if pods else Level.WARNING
    advice = "" if pods else "is nodeName, or MULTUS_NODE_NAME, the name of this node in the cluster?"
    yield NodeFinding(level, "api server", f"answers; it has {pods} pods on node {node_name}", advice)


def _namespaces(node: ExaminedNode) -> Iterator[NodeFinding]:
    """See whether namespaces that a runtime makes from now on can be entered from here (mount_namespaces(7))."""
    if node.root == Path("/") or not Path(_NAMESPACES).exists():
        return
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    above = [words for words in mounts if f"{_NAMESPACES}/".startswith(f"{words[4].rstrip('/')}/")]
    nearest = max(above, key=lambda words: len(words[4]))
    if not any(word.startswith(("shared:", "master:")) for word in nearest[6 : nearest.index("-")]):
        yield NodeFinding(
            Level.FAILED,
            "namespaces",
            f"{_NAMESPACES} does not follow the node's mounts: the namespaces of new pods cannot be entered",
            "mount it with mountPropagation: HostToContainer",
        )
