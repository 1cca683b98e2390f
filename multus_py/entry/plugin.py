# SPDX-License-Identifier: Apache-2.0
"""The plugin process of standalone mode: a runtime starts it for every verb. Imports are paid for by every pod."""

import io
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from multus_py.cni import serve, versions
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code

if TYPE_CHECKING:  # for the names in signatures: VERSION does not pay for them
    from multus_py.config.plugin import MultusConfig
    from multus_py.kube.store import KubeStore
    from multus_py.verbs.node import Node

ABOUT = f"""multus-py: a meta-CNI plugin, one pod with several interfaces.
A container runtime starts this program with CNI_COMMAND in its environment (CNI {", ".join(versions.SUPPORTED)}).
People want `multus-py --help`."""


def main() -> int:
    """Answer the call in this process's environment and standard input; return the exit code."""
    env = dict(os.environ)
    # Python has None for a stream that was closed before it started.
    stdin = sys.stdin.buffer.read() if sys.stdin and env.get("CNI_COMMAND") else b""
    try:
        return serve.serve(lambda call: handle(call, env), env, stdin, sys.stdout, ABOUT)
    except OSError as cause:  # an ADD without an answer has failed: the runtime's DEL follows
        print(f"multus-py: cannot write the answer: {cause.strerror}", file=sys.stderr or io.StringIO())
        sys.stdout = io.StringIO()  # else Python tries the rest of it once more at its end
        return 1


def handle(call: Call, env: Mapping[str, str]) -> dict[str, Any] | None:
    """Build the node that the call's config describes and run the handler of its verb."""
    # VERSION is answered without any of these.
    from multus_py.config import plugin
    from multus_py.entry import logs
    from multus_py.verbs import handlers
    from multus_py.verbs.plugins import DEPTH

    if env.get(DEPTH):
        raise CniError(
            Code.INVALID_CONFIG,
            "multus-py was called by one of its own delegates",
            "a network config names multus-py, or something that calls it: name the network itself",
        )
    settings = plugin.parse(call.config)
    logs.start(settings)
    call = replace(call, path=settings.path(call.path))
    node = assemble(settings, env)
    return handlers.HANDLERS[call.verb](call, node)


def assemble(settings: "MultusConfig", env: Mapping[str, str]) -> "Node":
    """Return the node of this process: stores and folders as *settings* name them."""
    from multus_py.cni.executables import Children
    from multus_py.state.journal import Journal
    from multus_py.state.result_cache import ResultCache
    from multus_py.verbs.chain import Chain
    from multus_py.verbs.node import Node
    from multus_py.verbs.plugins import Plugins

    children = Children({key: value for key, value in env.items() if not key.startswith("CNI_")})
    return Node(
        config=settings,
        store=_store(settings),
        chain=Chain(
            Plugins(settings.backend, settings.exec_timeout, children), ResultCache(settings.cni_dir / "results")
        ),
        journal=Journal(settings.cni_dir / "attachments"),
        sleep=time.sleep,
        monotonic=time.monotonic,
    )


def _store(settings: "MultusConfig") -> "KubeStore | None":
    if settings.manifests:
        from pathlib import Path

        from multus_py.kube.manifests import Manifests

        return Manifests(Path(settings.manifests), settings.cni_dir / "pods")
    if settings.kubeconfig:
        from multus_py.kube.apiserver import ApiServer

        return ApiServer(settings.kubeconfig, settings.api_deadline, settings.node_name or os.uname().nodename)
    return None
