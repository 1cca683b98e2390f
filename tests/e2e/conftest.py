# SPDX-License-Identifier: Apache-2.0
"""The node that a module's tests run on, with daemon and shim in place; the module says which networks it wants.

KUBECONFIG names the cluster; this machine is its one node, E2E_CNI_BIN and E2E_CNI_CONF are the runtime's folders.
"""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cluster_node import ROOT, Node, until

_KUBECONFIG = os.environ.get("KUBECONFIG", "")
_FOLDERS = (os.environ.get("E2E_CNI_BIN", ""), os.environ.get("E2E_CNI_CONF", ""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the daemon's state folder."""
    if not (_KUBECONFIG and all(_FOLDERS)):
        pytest.skip("needs KUBECONFIG, E2E_CNI_BIN and E2E_CNI_CONF")
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """Give further keys of the daemon's config: none, unless the module has its own."""
    return {}


@pytest.fixture(scope="module")
def node(folder: Path, options: dict[str, Any], definitions: list[dict[str, Any]]) -> Iterator[Node]:
    """Give a namespace with the module's definitions, daemon and shim in place; all is taken away at the end."""
    node = Node(_KUBECONFIG, Path(_FOLDERS[0]), Path(_FOLDERS[1]), folder, f"mpt-{secrets.token_hex(3)}", options)
    crds = ["kubectl", "--kubeconfig", _KUBECONFIG, "apply", "-k", str(ROOT / "crds")]
    subprocess.run(crds, check=True, capture_output=True)
    node.kubectl("create", "namespace", node.namespace)
    try:
        node.apply(*definitions)
        node.install()
        node.start()
        yield node
    finally:
        node.kubectl("delete", "pods,deployments", "--all", "--force", "--grace-period=0", "--wait=false", check=False)
        with suppress(AssertionError):
            node.gone()
            until(lambda: not node.state())
        node.stop()
        node.uninstall()
        node.kubectl("delete", "namespace", node.namespace, "--wait=false", check=False)


@pytest.fixture
def clean(node: Node) -> Iterator[Node]:
    """Give the node, which holds nothing for pods of ours before; and nothing after, once they are deleted."""
    before = node.state()
    yield node
    node.kubectl("delete", "pods,deployments", "--all", "--wait=false", check=False)
    node.gone()
    until(lambda: node.state() == before, lambda: f"{before} became {node.state()}; {node.log()[-3000:]}", 40)
