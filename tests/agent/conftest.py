# SPDX-License-Identifier: Apache-2.0
"""A stage with a daemon that is not started yet, and is stopped whatever happens."""

import signal

import pytest
from running import Running
from stage import Stage, namespace

from multus_py.kernel import namespaces, netlink


@pytest.fixture
def running(tmp_path):
    """A host, a pod, real bridges with host-local pools, a scripted plugin; a daemon ready to be started."""
    with namespace() as host, namespace() as pod:
        ipam = {"type": "host-local", "dataDir": str(tmp_path / "ipam")}
        cluster = {"cniVersion": "1.0.0", "name": "cluster", "plugins": [
            {"type": "bridge", "bridge": "br0", "isDefaultGateway": True, "ipam": {**ipam, "subnet": "10.88.0.0/16"}},
            {"type": "scripted"},
        ]}  # fmt: skip
        stage = Stage(tmp_path, pod, {"delegates": [cluster]})
        stage.plugins.plugin("scripted")
        stage.definition("b", {"cniVersion": "1.1.0", "type": "bridge", "bridge": "br1", "isGateway": True,
                               "ipam": {**ipam, "subnet": "10.89.0.0/16"}, "capabilities": {"ips": True}})  # fmt: skip
        stage.definition("m", {"cniVersion": "0.4.0", "type": "macvlan", "master": "br1",
                               "ipam": {**ipam, "subnet": "10.90.0.0/16"}})  # fmt: skip
        stage.definition("s", {"cniVersion": "1.0.0", "name": "snet", "type": "scripted"})
        stage.pod("p", "b,m")
        found = Running(stage, host)
        try:
            yield found
        finally:
            found.stop(signal.SIGKILL)


@pytest.fixture
def leftovers():
    """Return what is left of all sandboxes of a running daemon."""

    def look(running, *pods):
        links = []
        for netns in (running.stage.netns, *pods):
            with netlink.open(netns) as kernel:
                links += [link.name for link in kernel.links() if link.name != "lo"]
        with netlink.open(running.host) as kernel:
            links += [link.name for link in kernel.links() if link.name not in ("lo", "br0", "br1")]
        files = [path.name for path in (running.folder / "ipam").rglob("*") if path.is_file()]
        ipam = [name for name in files if not name.startswith(("lock", "last_reserved_ip", ".reserving"))]
        left = [name for name in running.stage.left() if name != "events.jsonl"]
        return links + ipam + left + running.spooled()

    return look


@pytest.fixture
def attached(running):
    """A pod with eth0, net1 (b) and net2 (m), attached without a daemon."""
    namespaces.run_in(running.host, lambda: running.stage.run("ADD", "p"))
    yield running
    namespaces.run_in(running.host, lambda: running.stage.run("DEL", "p"))
