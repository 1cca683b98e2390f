# SPDX-License-Identifier: Apache-2.0
"""The folders and network namespaces of a lab, and the records of its sandboxes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multus_py.cni import names
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code
from multus_py.config.plugin import TYPE
from multus_py.install.cni_conf import Folders
from multus_py.kube.manifests import Manifests
from multus_py.kube.store import Pod, PodRef

_ROOT = Path("/run/multus-py/lab")
NAMESPACES = Path("/run/netns")


@dataclass(frozen=True)
class LabSandbox:
    """The sandbox of a pod; *result* is the result of ADD, None before ADD completed."""

    namespace: str
    pod: str
    uid: str
    container_id: str
    netns: str
    result: Mapping[str, Any] | None = None

    @property
    def ref(self) -> PodRef:
        """The pod."""
        return PodRef(self.namespace, self.pod, self.uid)


@dataclass(frozen=True)
class Lab:
    """A lab: everything below *root*, and the namespaces whose names begin with its name."""

    name: str

    def __post_init__(self) -> None:
        if not names.is_label(self.name) or len(self.name) > 40:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"{self.name!r} cannot name a lab",
                "lower-case letters, digits, '-', at most 40",
            )

    @property
    def root(self) -> Path:
        """The lab's folder."""
        return _ROOT / self.name

    @property
    def host(self) -> Path:
        """The network namespace that is the lab's host."""
        return NAMESPACES / f"{self.name}.host"

    @property
    def folders(self) -> Folders:
        """The folders of executables and of conf files."""
        return Folders(self.root / "bin", self.root / "net.d")

    @property
    def launcher(self) -> Path:
        """The executable that the lab calls as a runtime does."""
        return self.folders.bin / TYPE

    @property
    def wrapper_conf(self) -> Path:
        """The conf that wraps the default network's."""
        return self.folders.conf / f"00-{TYPE}.conflist"

    @property
    def manifests(self) -> Manifests:
        """The store of the lab's pods and definitions, with the published statuses."""
        return Manifests(self.root / "manifests", self.root / "cni" / "pods")

    def netns(self, pod: Pod) -> Path:
        """Return the network namespace of a pod; a namespace's name has no dot, so two pods never share one."""
        return NAMESPACES / f"{self.name}.{pod.namespace}.{pod.name}"

    def sandboxes(self) -> list[LabSandbox]:
        """Return the recorded sandboxes, also those without a result, by namespace and name."""
        return [read_record(path) for path in sorted((self.root / "pods").glob("*.json"))]


def record_path(lab: Lab, sandbox: LabSandbox) -> Path:
    """Return the path of a sandbox's record."""
    return lab.root / "pods" / f"{sandbox.namespace}.{sandbox.pod}.json"


def read_record(path: Path) -> LabSandbox:
    """Read the record of a sandbox; code 6 when it is incomplete."""
    try:
        return LabSandbox(**json_object(path.read_bytes(), str(path)))
    except TypeError as cause:
        raise CniError(
            Code.DECODE, f"{path} is not the record of a pod: {cause}", "multus-py lab down removes it"
        ) from cause


def write_record(lab: Lab, sandbox: LabSandbox) -> None:
    """Write the record of a sandbox, by which `lab down` finds it."""
    record_path(lab, sandbox).write_text(json.dumps(asdict(sandbox), indent=2))
