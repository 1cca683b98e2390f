# SPDX-License-Identifier: Apache-2.0
"""Who has to answer on a node: the daemon, kubelet, the API server; and whether pods' namespaces can be seen."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from multus_py.cli.doctor.node import Place
from multus_py.cli.doctor.node_finding import Finding, Level, failed
from multus_py.cni.errors import CniError
from multus_py.entry import probe
from multus_py.install import cni_conf, primary
from multus_py.kube.store import NotFound

_NAMESPACES = "/run/netns"


def findings(place: Place) -> Iterator[Finding]:
    """Yield what is found about the sockets and about the way to the API server."""
    yield from _daemon(place)
    yield from _kubelet(place)
    yield from _api_server(place)
    yield from _namespaces(place)


def _daemon(place: Place) -> Iterator[Finding]:
    told = f"{place.socket_dir}/multus.sock"
    socket = place.at(told)
    if not socket.exists():
        level = Level.FAILED if _is_needed(place) else Level.WARNING
        advice = "start the daemon; pods wait for it meanwhile, and DELs are kept"
        yield Finding(level, "daemon", f"{told} is not there: no daemon serves this node", advice)
        return
    for path, most in ((socket, 0o600), (socket.parent, 0o700)):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & ~most:
            fact = f"{told if path == socket else place.socket_dir} has mode {mode:o}: more people than root may use it"
            yield Finding(Level.FAILED, "daemon", fact, f"chmod {most:o}, and restart the daemon")
    if trouble := probe.failure(socket, "/healthz"):
        yield Finding(Level.FAILED, "daemon", f"no daemon answers on {told}: {trouble}", "see its log; restart it")
    elif trouble := probe.failure(socket, "/readyz"):
        advice = "it waits for its first lists, or for the primary network: see its log"
        yield Finding(Level.WARNING, "daemon", f"the daemon on {told} is not ready: {trouble}", advice)
    else:
        yield Finding(Level.OK, "daemon", f"the daemon on {told} is ready")


def _is_needed(place: Place) -> bool:
    """Tell whether the runtime has a conf that leads to a daemon: a plugin that works alone names its own source."""
    body = cni_conf.read(place.at(cni_conf.conf_path(Path(place.conf_dir), place.name)))
    found = primary.plugins(body) if body else []
    return any(not ({"manifests", "kubeconfig", "delegates"} & plugin.keys()) for plugin in found)


def _kubelet(place: Place) -> Iterator[Finding]:
    told = place.settings.pod_resources_socket
    if place.at(told).is_socket():
        yield Finding(Level.OK, "kubelet", f"its pod-resources socket {told} is there")
        return
    advice = "networks that name a device plugin's resource need it: set podResourcesSocket, or mount it"
    yield Finding(Level.WARNING, "kubelet", f"its pod-resources socket {told} is not there", advice)


def _api_server(place: Place) -> Iterator[Finding]:
    """Read what the daemon reads: the pods of this node, and a definition."""
    own = place.daemon.certificate
    kubeconfig = str(own.kubeconfig) if own else place.settings.kubeconfig
    if place.settings.manifests or not (kubeconfig or os.environ.get("KUBERNETES_SERVICE_HOST")):
        return
    from multus_py.kube.apiserver import ApiServer  # brings the kubernetes package: half a second

    node = place.settings.node_name or os.environ.get("MULTUS_NODE_NAME", "") or os.uname().nodename
    store = ApiServer(kubeconfig or None, place.settings.api_deadline, node)
    try:
        pods = len(store.pods_here())
        try:
            store.definition("default", "multus-py-doctor")
        except NotFound as missing:
            if missing.details:  # not this one alone: the resource itself
                raise
    except CniError as trouble:
        yield failed("api server", trouble)
        return
    level = Level.OK if pods else Level.WARNING
    advice = "" if pods else "is nodeName, or MULTUS_NODE_NAME, the name of this node in the cluster?"
    yield Finding(level, "api server", f"answers; it has {pods} pods on node {node}", advice)


def _namespaces(place: Place) -> Iterator[Finding]:
    """See whether namespaces that a runtime makes from now on can be entered from here (mount_namespaces(7))."""
    if place.root == Path("/") or not Path(_NAMESPACES).exists():
        return
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    above = [words for words in mounts if f"{_NAMESPACES}/".startswith(f"{words[4].rstrip('/')}/")]
    nearest = max(above, key=lambda words: len(words[4]))
    if not any(word.startswith(("shared:", "master:")) for word in nearest[6 : nearest.index("-")]):
        yield Finding(
            Level.FAILED,
            "namespaces",
            f"{_NAMESPACES} does not follow the node's mounts: the namespaces of new pods cannot be entered",
            "mount it with mountPropagation: HostToContainer",
        )
