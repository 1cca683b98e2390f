# SPDX-License-Identifier: Apache-2.0
"""The plugin process in standalone mode with a kubeconfig: what a cluster's users then see with kubectl."""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from namespaces import namespace

from multus_py.kube.store import NETWORK_STATUS, NETWORKS

pytestmark = pytest.mark.cluster


def bridge(name: str, subnet: str, folder: Path) -> dict[str, Any]:
    """Return a bridge network whose addresses are reserved under *folder*."""
    ipam = {"type": "host-local", "subnet": subnet, "dataDir": str(folder / "networks")}
    return {"cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": name, "ipam": ipam}


@dataclass(frozen=True)
class Machine:
    """A node: the plugin as a runtime starts it, two bridges of our own, one sandbox."""

    cluster: Cluster
    folder: Path
    netns: str
    bridges: tuple[str, str]

    @property
    def config(self) -> dict[str, Any]:
        """The config that the runtime passes on standard input."""
        return {
            "cniVersion": "1.0.0",
            "name": "multus-cni-network",
            "type": "multus-py",
            "kubeconfig": str(self.cluster.plugin),
            "delegates": [bridge(self.bridges[0], "10.98.1.0/24", self.folder)],
            "cniDir": str(self.folder / "cni"),
            "confDir": str(self.folder / "conf"),
            "delegateBackend": "builtin",
            "apiDeadline": 20,
        }

    def run(self, verb: str, pod: str, uid: str) -> tuple[int, dict[str, Any]]:
        """Run the plugin process; return its exit code and what it printed."""
        args = f"K8S_POD_NAMESPACE={self.cluster.namespace};K8S_POD_NAME={pod};K8S_POD_UID={uid}"
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": f"mpt{uid}", "CNI_NETNS": self.netns, "CNI_IFNAME": "eth0"}
        env |= {"CNI_PATH": str(self.folder / "bin"), "CNI_ARGS": f"IgnoreUnknown=true;{args}", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-m", "multus_py.cli.main", "plugin"],
            input=json.dumps(self.config),
            env={**env, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, json.loads(done.stdout or "{}")

    def put_pod(self, networks: str) -> tuple[str, str]:
        """Create a pod; return its name and uid."""
        name = f"mpt-{secrets.token_hex(4)}"
        metadata = {"name": name, "annotations": {NETWORKS: networks}}
        spec = {"containers": [{"name": "main", "image": "none"}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        made = self.cluster.kubectl("create", "-o", "json", "-f", "-", manifest=body)
        return name, json.loads(made)["metadata"]["uid"]

    def events(self, uid: str) -> list[tuple[str, str, str]]:
        """Return type, reason and message of a pod's Events, oldest first, as kubectl sees them."""
        chosen = ("--field-selector", f"involvedObject.uid={uid}", "--sort-by=.metadata.name")
        items = json.loads(self.cluster.kubectl("get", "events", "-o", "json", *chosen))["items"]
        return [(item["type"], item["reason"], item["message"]) for item in items]


@pytest.fixture
def machine(apiserver: Cluster, tmp_path: Path) -> Iterator[Machine]:
    """Give a node whose bridges are gone after the test; the API server is on this side of the namespaces."""
    bridges = (f"mpt{secrets.token_hex(4)}", f"mpt{secrets.token_hex(4)}")
    try:
        with namespace() as netns:
            yield Machine(apiserver, tmp_path, netns, bridges)
    finally:
        for name in bridges:
            subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def put_definition(machine: Machine) -> str:
    """Create a definition for the second bridge; return its name."""
    name = f"net-{secrets.token_hex(4)}"
    config = json.dumps(bridge(machine.bridges[1], "10.98.2.0/24", machine.folder))
    head = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": name}}
    machine.cluster.kubectl("create", "-f", "-", manifest={**head, "spec": {"config": config}})
    return name


def test_status_and_events_are_seen_with_kubectl(machine: Machine) -> None:
    """After ADD, kubectl shows the network-status annotation and one Event an interface; DEL succeeds afterwards."""
    network = put_definition(machine)
    pod, uid = machine.put_pod(f"{network}@store0")
    code, result = machine.run("ADD", pod, uid)
    assert (0, "10.98.1.2/24") == (code, result.get("ips", [{}])[0].get("address")), result
    seen = json.loads(machine.cluster.kubectl("get", "pod", pod, "-o", "json"))["metadata"]["annotations"]
    status = json.loads(seen[NETWORK_STATUS])
    assert [("eth0", ["10.98.1.2"], True), ("store0", ["10.98.2.2"], None)] == [
        (each["interface"], each["ips"], each.get("default")) for each in status
    ]
    assert f"{machine.cluster.namespace}/{network}" == status[1]["name"]
    told = machine.events(uid)
    assert [("Normal", "AddedInterface")] * 2 == [event[:2] for event in told]
    assert "store0 [10.98.2.2/24]" in told[1][2]
    machine.cluster.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    assert machine.run("DEL", pod, uid)[0] == 0
    assert not list((machine.folder / "networks").rglob("10.98.*"))


@pytest.mark.parametrize("kind", ["nad", "net-attach-def", "network-attachment-definitions.k8s.cni.cncf.io"])
def test_definitions_have_their_short_names(machine: Machine, kind: str) -> None:
    """What people type finds the definition."""
    name = put_definition(machine)
    assert name in machine.cluster.kubectl("get", kind, name, "-o", "name")


def test_a_missing_definition_is_an_event_that_names_it(machine: Machine) -> None:
    """What went wrong is on the pod, for the one who annotated it."""
    pod, uid = machine.put_pod("mpt-absent")
    code, error = machine.run("ADD", pod, uid)
    assert (1, True) == (code, "mpt-absent" in error["msg"])
    ((kind, reason, message),) = machine.events(uid)
    assert ("Warning", "NoNetworkFound", True) == (kind, reason, "mpt-absent" in message)
