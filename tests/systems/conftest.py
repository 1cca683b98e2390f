# SPDX-License-Identifier: Apache-2.0
"""A node that is furnished and not started yet; its daemon is ended whatever happens."""

import signal

import pytest
from world import UID, World, namespace


@pytest.fixture
def world(tmp_path):
    """A node with a pod `p` that asks for a bridge and a macvlan network beside the default one."""
    with namespace() as host, namespace() as pod:
        made = World(tmp_path, host, pod)
        made.furnish()
        made.stage.pod("p", "b,m", uid=UID)
        try:
            yield made
        finally:
            made.stop(signal.SIGKILL)
