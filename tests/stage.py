# SPDX-License-Identifier: Apache-2.0
"""What tests of the verbs share: a namespace, a folder of manifests, a node, and calls as a runtime makes them."""

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripted import Scripted

from multus_py.cni.call import Call, cni_args
from multus_py.config import plugin as configs
from multus_py.kernel import namespaces
from multus_py.kube.manifests import Manifests
from multus_py.state.journal import Journal
from multus_py.state.result_cache import ResultCache
from multus_py.verbs import handlers
from multus_py.verbs.chain import Chain
from multus_py.verbs.node import Node
from multus_py.verbs.plugins import Plugins


@contextmanager
def namespace() -> Iterator[str]:
    """Make a network namespace for as long as the block lasts."""
    path = f"/run/netns/mpt-{secrets.token_hex(4)}"
    namespaces.create(path)
    try:
        yield path
    finally:
        namespaces.remove(path)


@dataclass(frozen=True)
class Stage:
    """A folder with all that a node needs, and the verbs as a runtime would call them."""

    folder: Path
    netns: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def plugins(self) -> Scripted:
        """The scripted plugins of this stage."""
        return Scripted(self.folder / "bin")

    def definition(self, name: str, config: Any, namespace: str = "default", **annotations: str) -> None:
        """Write a definition; *config* is JSON text or an object."""
        text = config if isinstance(config, str) else json.dumps(config)
        self._write("NetworkAttachmentDefinition", name, namespace, annotations, {"spec": {"config": text}})

    def pod(self, name: str, networks: Any = "", namespace: str = "default", uid: str = "", **annotations: str) -> None:
        """Write a pod; *networks* is the annotation's text or a list for its JSON form."""
        text = networks if isinstance(networks, str) else json.dumps(networks)
        found = {**annotations, **({"k8s.v1.cni.cncf.io/networks": text} if text else {})}
        self._write("Pod", name, namespace, found, {}, uid)

    def _write(
        self, kind: str, name: str, namespace: str, annotations: dict[str, str], more: dict[str, Any], uid: str = ""
    ) -> None:
        folder = self.folder / "manifests"
        folder.mkdir(exist_ok=True)
        metadata = {"name": name, "namespace": namespace, "annotations": annotations, **({"uid": uid} if uid else {})}
        version = "v1" if kind == "Pod" else "k8s.cni.cncf.io/v1"
        body = {"apiVersion": version, "kind": kind, "metadata": metadata, **more}
        (folder / f"{kind}-{namespace}-{name}.json").write_text(json.dumps(body))

    def config(self, **more: Any) -> dict[str, Any]:
        """Return our own plugin config, as it would stand in the conflist of a runtime."""
        return {
            "cniVersion": "1.1.0", "name": "mp", "type": "multus-py", "cniDir": str(self.folder / "cni"),
            "confDir": str(self.folder / "conf"), "binDir": str(self.folder / "bin"),
            "manifests": str(self.folder / "manifests"), **self.settings, **more,
        }  # fmt: skip

    def node(self, **more: Any) -> Node:
        """Return a node over this folder."""
        settings = configs.parse(self.config(**more))
        return Node(
            config=settings,
            store=Manifests(self.folder / "manifests", settings.cni_dir / "pods") if settings.manifests else None,
            chain=Chain(Plugins(settings.backend, settings.exec_timeout), ResultCache(settings.cni_dir / "results")),
            journal=Journal(settings.cni_dir / "attachments"),
            sleep=lambda seconds: None,
            monotonic=time.monotonic,
        )

    def call(self, verb: str, pod: str = "", container: str = "c1", netns: str | None = None, **more: Any) -> Call:
        """Return a call of *verb* for a pod (`name` or `namespace/name`)."""
        namespace, _, name = pod.rpartition("/")
        named = f";K8S_POD_NAMESPACE={namespace or 'default'};K8S_POD_NAME={name}" if pod else ""
        config = self.config(**more)
        return Call(
            verb=verb,
            container_id=container,
            netns=self.netns if netns is None else netns,
            ifname="eth0",
            args=cni_args("IgnoreUnknown=1" + named + (f";K8S_POD_UID={more.get('uid')}" if more.get("uid") else "")),
            path=(str(self.folder / "bin"), "/usr/lib/cni"),
            config=config,
        )

    def run(self, verb: str, pod: str = "", container: str = "c1", **more: Any) -> Any:
        """Run the handler of a verb."""
        call = self.call(verb, pod, container, **more)
        return handlers.HANDLERS[verb](
            call, self.node(**{key: value for key, value in more.items() if key not in ("netns", "uid")})
        )

    def left(self) -> list[str]:
        """Return what is left of any sandbox: journal files, results, statuses, attachments of scripted plugins."""
        folders = ("cni/attachments", "cni/results", "cni/pods")
        files = [path for folder in folders for path in (self.folder / folder).rglob("*") if path.is_file()]
        return sorted(path.name for path in files if path.name != ".lock") + self.plugins.held()
