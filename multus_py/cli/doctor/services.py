# SPDX-License-Identifier: Apache-2.0
"""The daemon, kubelet and the API server; and whether pods' network namespaces are visible."""

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
    """Yield the findings about the sockets, the API server and the namespaces."""
    yield from _daemon(node)
    yield from _kubelet(node)
    yield from _api_server(node)
    yield from _namespaces(node)


def _daemon(node: ExaminedNode) -> Iterator[NodeFinding]:
    socket_path = f"{node.socket_dir}/multus.sock"
    socket = node.at(socket_path)
    if not socket.exists():
        level = Level.FAILED if _is_needed(node) else Level.WARNING
        advice = "start the daemon; pods wait for it meanwhile, and DELs are kept"
        yield NodeFinding(level, "daemon", f"{socket_path} is not there: no daemon serves this node", advice)
        return
    for path, most in ((socket, 0o600), (socket.parent, 0o700)):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & ~most:
            checked = socket_path if path == socket else node.socket_dir
            fact = f"{checked} has mode {mode:o}: more people than root may use it"
            yield NodeFinding(Level.FAILED, "daemon", fact, f"chmod {most:o}, and restart the daemon")
    if problem := probe.failure(socket, "/healthz"):
        yield NodeFinding(
            Level.FAILED, "daemon", f"no daemon answers on {socket_path}: {problem}", "see its log; restart it"
        )
    elif problem := probe.failure(socket, "/readyz"):
        advice = "it waits for its first lists, or for the primary network: see its log"
        yield NodeFinding(Level.WARNING, "daemon", f"the daemon on {socket_path} is not ready: {problem}", advice)
    else:
        yield NodeFinding(Level.OK, "daemon", f"the daemon on {socket_path} is ready")


def _is_needed(node: ExaminedNode) -> bool:
    """Tell whether our conf needs a daemon: that of a standalone plugin names its own source."""
    body = cni_conf.read(node.at(cni_conf.conf_path(Path(node.conf_dir), node.name)))
    found = primary.plugins(body) if body else []
    return any(not ({"manifests", "kubeconfig", "delegates"} & plugin.keys()) for plugin in found)


def _kubelet(node: ExaminedNode) -> Iterator[NodeFinding]:
    socket_path = node.settings.pod_resources_socket
    if node.at(socket_path).is_socket():
        yield NodeFinding(Level.OK, "kubelet", f"its pod-resources socket {socket_path} is there")
        return
    advice = "networks that name a device plugin's resource need it: set podResourcesSocket, or mount it"
    yield NodeFinding(Level.WARNING, "kubelet", f"its pod-resources socket {socket_path} is not there", advice)


def _api_server(node: ExaminedNode) -> Iterator[NodeFinding]:
    """Read what the daemon reads: the pods of this node, and a definition."""
    own = node.daemon.certificate
    kubeconfig = str(own.kubeconfig) if own else node.settings.kubeconfig
    if node.settings.manifests or not (kubeconfig or os.environ.get("KUBERNETES_SERVICE_HOST")):
        return
    from multus_py.kube.apiserver import ApiServer  # imports the kubernetes package: half a second

    node_name = node.settings.node_name or os.environ.get("MULTUS_NODE_NAME", "") or os.uname().nodename
    store = ApiServer(kubeconfig or None, node.settings.api_deadline, node_name)
    try:
        pods = len(store.pods_here())
        try:
            store.definition("default", "multus-py-doctor")
        except NotFound as missing:
            if missing.details:  # the resource itself is missing, not only this object
                raise
    except CniError as error:
        yield error_finding("api server", error)
        return
    level = Level.OK if pods else Level.WARNING
    advice = "" if pods else "is nodeName, or MULTUS_NODE_NAME, the name of this node in the cluster?"
    yield NodeFinding(level, "api server", f"answers; it has {pods} pods on node {node_name}", advice)


def _namespaces(node: ExaminedNode) -> Iterator[NodeFinding]:
    """Check that namespaces created from now on can be entered by this process (mount_namespaces(7))."""
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
