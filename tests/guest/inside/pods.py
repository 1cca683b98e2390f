# SPDX-License-Identifier: Apache-2.0
"""Pods inside the guest: a namespace each, attached by the whole story to networks of type sriov and others."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage import Stage, namespace

from multus_py.cni.errors import CniError
from multus_py.kernel import namespaces
from multus_py.kernel.pci import Bus
from multus_py.verbs.attached import Sandbox, Survey

DEFAULT = {"cniVersion": "1.1.0", "name": "default", "plugins": [{"type": "passthru"}]}


@dataclass(frozen=True)
class Pod:
    """One pod: the stage it plays on, its name and its namespace."""

    stage: Stage
    name: str
    netns: str

    def run(self, verb: str, **more: Any) -> Any:
        """Tell the story of a verb for it."""
        return self.stage.run(verb, self.name, container=self.name, **{"netns": self.netns, **more})

    def result(self, ifname: str = "net1") -> dict[str, Any]:
        """Return the kept result of one interface."""
        import json

        (path,) = (self.stage.folder / "cni/results").glob(f"*{self.name}-{ifname}")
        found: dict[str, Any] = json.loads(path.read_text())["result"]
        return found

    def addresses(self) -> list[str]:
        """Return the IPv4 addresses that the pool keeps for it."""
        found = [path for path in (self.stage.folder / "ipam").rglob("*") if path.is_file() and path.name[0].isdigit()]
        return [path.name for path in found if path.read_text().startswith(self.name)]


@dataclass
class Pods:
    """Makes definitions and pods in one folder."""

    folder: Path
    stack: ExitStack
    made: list[Pod] = field(default_factory=list)

    @property
    def stage(self) -> Stage:
        """The stage that all pods share."""
        return Stage(self.folder, settings={"delegates": [DEFAULT]})

    def sriov(self, subnet: str = "", **keys: Any) -> dict[str, Any]:
        """Return a plugin config of type sriov."""
        body = {"cniVersion": "1.1.0", "type": "sriov", "dataDir": str(self.folder / "sriov"),
                "capabilities": {"deviceID": True, "mac": True}, **keys}  # fmt: skip
        ipam = {"type": "host-local", "dataDir": str(self.folder / "ipam"), "subnet": subnet}
        return {**body, "ipam": ipam} if subnet else body

    def network(self, name: str, subnet: str = "", **keys: Any) -> None:
        """Write a definition of type sriov."""
        self.stage.definition(name, self.sriov(subnet, **keys))

    def pod(self, *networks: dict[str, Any]) -> Pod:
        """Make a pod that asks for *networks*, elements of the annotation."""
        netns = self.stack.enter_context(namespace())
        pod = Pod(self.stage, f"mpt-{Path(netns).name[4:]}", netns)
        self.stage.pod(pod.name, list(networks))
        self.made.append(pod)
        return pod

    def leases(self) -> list[str]:
        """Return the devices that are leased."""
        folder = self.folder / "sriov/leases"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def shown(self) -> list[Sandbox]:
        """Return what `multus-py status` would show."""
        node = self.stage.node()
        return list(Survey(node.journal, node.chain.cache, Bus()).sandboxes())

    def delete_all(self) -> None:
        """Delete all pods; a test that wants to see an error of it deletes its pods itself."""
        for pod in self.made:
            try:
                pod.run("DEL")
            except CniError as trouble:
                print(f"{pod.name}: {trouble}")

    @staticmethod
    def bury(pod: Pod) -> None:
        """Take a pod's namespace away."""
        namespaces.remove(pod.netns)
