# SPDX-License-Identifier: Apache-2.0
"""A node with conf and plugin folders of its own, and a daemon that installs itself there."""

import signal

import pytest
from installed import Node
from running import Running
from stage import Stage, namespace


@pytest.fixture
def node(tmp_path):
    """A host, a pod, a bridge network as primary, a daemon ready to be started; it is stopped whatever happens."""
    with namespace() as host, namespace() as pod:
        stage = Stage(tmp_path, pod)
        for name in ("bin", "net.d", "opt"):
            (tmp_path / name).mkdir()
        stage.plugins.plugin("scripted")
        stage.definition("s", {"cniVersion": "1.0.0", "name": "snet", "type": "scripted"})
        stage.pod("p", "s")
        stage.pod("agent", namespace="kube-system")
        found = Node(Running(stage, host))
        found.primary()
        try:
            yield found
        finally:
            found.running.stop(signal.SIGKILL)
