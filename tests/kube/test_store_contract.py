# SPDX-License-Identifier: Apache-2.0
"""What every store promises, asked of a folder of manifests and of a real API server, live and watched."""

import json
import secrets
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from cluster import Cluster
from waiting import eventually

from multus_py.cni.errors import CniError
from multus_py.kube.apiserver import ApiServer
from multus_py.kube.cached_apiserver import CachedApiServer
from multus_py.kube.manifests import Manifests
from multus_py.kube.store import DEFAULT_NETWORK, NETWORK_STATUS, NETWORKS, KubeStore, NotFound, Pod, PodRef

CONFIG = '{"cniVersion": "1.0.0", "type": "bridge"}\n'


class World(Protocol):
    """A store and the ways to put things into it behind its back."""

    store: KubeStore
    namespace: str

    def put(self, body: Mapping[str, Any]) -> None:
        """Create an object."""

    def remove(self, kind: str, name: str) -> None:
        """Delete an object."""

    def events(self, ref: PodRef) -> list[tuple[str, str, str]]:
        """Return kind, reason and message of each Event of a pod, oldest first."""


@dataclass
class Folder:
    """The world as files."""

    folder: Path
    store: Manifests
    namespace: str = "mpt-folder"

    def put(self, body: Mapping[str, Any]) -> None:
        body = {**body, "metadata": {"uid": str(uuid.uuid4()), **body["metadata"], "namespace": self.namespace}}
        path = self.folder / f"{body['kind']}-{body['metadata']['name']}.yaml"
        path.write_text(yaml.safe_dump(body))

    def remove(self, kind: str, name: str) -> None:
        (self.folder / f"{kind}-{name}.yaml").unlink()

    def events(self, ref: PodRef) -> list[tuple[str, str, str]]:
        return [(event.kind, event.reason, event.message) for event in self.store.events(ref)]


@dataclass
class Server:
    """The world behind an API server."""

    cluster: Cluster
    store: KubeStore

    @property
    def namespace(self) -> str:
        return self.cluster.namespace

    def put(self, body: Mapping[str, Any]) -> None:
        self.cluster.kubectl("create", "-f", "-", manifest=body)

    def remove(self, kind: str, name: str) -> None:
        self.cluster.kubectl("delete", kind, name, "--grace-period=0", "--force")

    def events(self, ref: PodRef) -> list[tuple[str, str, str]]:
        items = json.loads(self.cluster.kubectl("get", "events", "-o", "json"))["items"]
        mine = [item for item in items if item["involvedObject"].get("uid") == ref.uid]
        mine.sort(key=lambda item: item["metadata"]["name"])
        return [(item["type"], item["reason"], item["message"]) for item in mine]


@dataclass
class QueuedServer(Server):
    """The same, with Events that are told later."""

    store: CachedApiServer

    def events(self, ref: PodRef) -> list[tuple[str, str, str]]:
        assert self.store.events.flush(20)
        return super().events(ref)


@dataclass
class WatchedServer(QueuedServer):
    """The same, seen through watches; a change is made once the copy has it: what is late is another test's matter."""

    def put(self, body: Mapping[str, Any]) -> None:
        super().put(body)
        self._wait(body["kind"], body["metadata"]["name"], there=True)

    def remove(self, kind: str, name: str) -> None:
        super().remove(kind, name)
        self._wait(kind, name, there=False)

    def _wait(self, kind: str, name: str, there: bool) -> None:
        if kind == "Pod":
            ours = (self.namespace, name)
            eventually(lambda: there == (ours in {(pod.namespace, pod.name) for pod in self.store.pods_here()}))


@pytest.fixture(params=["manifests", "apiserver", "watched", "watched from another node"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Give each kind of store in turn."""
    if request.param == "manifests":
        folder = tmp_path / "manifests"
        folder.mkdir()
        yield Folder(folder, Manifests(folder, tmp_path / "state"))
        return
    found: Cluster = request.getfixturevalue("apiserver")
    if request.param == "apiserver":
        yield Server(found, ApiServer(str(found.plugin), 20, "node-7"))
        return
    everything = request.param == "watched"
    store = CachedApiServer(str(found.plugin), 20, "" if everything else "node-7")
    store.start()
    try:
        eventually(store.ready)
        # With a node that runs none of the pods every answer is one that the copy lacks.
        yield WatchedServer(found, store) if everything else QueuedServer(found, store)
    finally:
        store.close()


def fresh(prefix: str = "mpt") -> str:
    """Return a name that nobody else uses."""
    return f"{prefix}-{secrets.token_hex(4)}"


def pod_body(name: str, **annotations: str) -> dict[str, Any]:
    """Return the smallest pod that an API server takes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": {NETWORKS: "net-a", **annotations}},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    }


def definition_body(name: str, spec: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a definition, without a spec when that is None."""
    body = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": name}}
    return body if spec is None else {**body, "spec": spec}


def put_pod(world: World, name: str) -> Pod:
    """Create a pod and read it through the store."""
    world.put(pod_body(name))
    return world.store.pod(PodRef(world.namespace, name))


def test_a_pod_is_read_with_its_annotations_and_uid(world: World) -> None:
    """The pod has the annotations that were written and the uid that it was given."""
    name = fresh()
    world.put(pod_body(name, **{DEFAULT_NETWORK: "ünïcode %s"}))
    pod = world.store.pod(PodRef(world.namespace, name, "whatever"))
    assert (world.namespace, name, "net-a", "ünïcode %s") == (
        pod.namespace,
        pod.name,
        pod.annotations[NETWORKS],
        pod.annotations[DEFAULT_NETWORK],
    )
    assert uuid.UUID(pod.uid)


def test_a_definition_is_read_with_its_config_as_written(world: World) -> None:
    """The text of the config comes back character by character, annotations beside it."""
    name = fresh("net.dotted")
    body = definition_body(name, {"config": CONFIG})
    body["metadata"]["annotations"] = {"k8s.v1.cni.cncf.io/resourceName": "intel.com/vf"}
    world.put(body)
    found = world.store.definition(world.namespace, name)
    assert (CONFIG, "intel.com/vf") == (found.config, found.annotations["k8s.v1.cni.cncf.io/resourceName"])


@pytest.mark.parametrize("spec", [None, {}, {"config": ""}])
def test_a_definition_without_a_config_has_the_empty_one(world: World, spec: Mapping[str, Any] | None) -> None:
    """No spec, no config and an empty config are the same: the config is then looked up on disk by others."""
    name = fresh("net")
    world.put(definition_body(name, spec))
    assert world.store.definition(world.namespace, name).config == ""


@pytest.mark.parametrize("name", ["mpt-absent", "../../etc", "a/b", "A", ".", "..", "x%2fy", "a?b", ""])
def test_what_is_not_there_is_not_found(world: World, name: str) -> None:
    """A name that nothing has, or that nothing can have, ends as NotFound and never as a path."""
    with pytest.raises(NotFound):
        world.store.pod(PodRef(world.namespace, name))
    with pytest.raises(NotFound):
        world.store.definition(world.namespace, name)


def test_an_object_of_another_namespace_is_not_found(world: World) -> None:
    """Names live in their namespace."""
    name = fresh()
    world.put(pod_body(name))
    with pytest.raises(NotFound):
        world.store.pod(PodRef("mpt-elsewhere", name))


def test_the_published_status_is_an_annotation_of_the_pod(world: World) -> None:
    """The status is written whole, replaces the one before, and leaves the other annotations alone."""
    pod = put_pod(world, fresh())
    world.store.publish_status(pod, "[first]")
    world.store.publish_status(pod, "[\n    second]")
    found = world.store.pod(pod.ref)
    assert {**pod.annotations, NETWORK_STATUS: "[\n    second]"} == dict(found.annotations)


def test_the_status_of_a_pod_that_went_away_is_refused(world: World) -> None:
    """Publishing for a deleted pod is NotFound."""
    pod = put_pod(world, fresh())
    world.remove("Pod", pod.name)
    with pytest.raises(NotFound):
        world.store.publish_status(pod, "[]")


def test_the_status_of_a_replaced_pod_is_refused(world: World) -> None:
    """A pod recreated under the same name never gets the status of the one before."""
    old = put_pod(world, fresh())
    world.remove("Pod", old.name)
    new = put_pod(world, old.name)
    assert old.uid != new.uid
    with pytest.raises(NotFound, match="replaced"):
        world.store.publish_status(old, "[old]")
    assert NETWORK_STATUS not in world.store.pod(new.ref).annotations


def test_events_are_told_about_the_pod(world: World) -> None:
    """Kind, reason and message arrive as they were told, in order."""
    pod = put_pod(world, fresh())
    told = [("Normal", "AddedInterface", "Add net1 [10.1.0.2/16] from %s ü"), ("Warning", "NoNetworkFound", "net-z")]
    for kind, reason, message in told:
        world.store.event(pod, kind, reason, message)  # type: ignore[arg-type]
    assert told == world.events(pod.ref)


def test_an_event_of_a_pod_that_is_gone_is_no_error(world: World) -> None:
    """Events about a pod that was just deleted are told all the same."""
    pod = put_pod(world, fresh())
    world.remove("Pod", pod.name)
    world.store.event(pod, "Warning", "Late", "the pod went away meanwhile")
    assert [("Warning", "Late", "the pod went away meanwhile")] == world.events(pod.ref)


def test_forgetting_an_unknown_pod_succeeds(world: World) -> None:
    """DEL is repeated at will: forgetting twice, or what was never known, is quiet."""
    for name in ("mpt-absent", "../..", ""):
        world.store.forget(PodRef(world.namespace, name, "u"))
        world.store.forget(PodRef(world.namespace, name))


def test_all_errors_are_of_the_one_family(world: World) -> None:
    """NotFound is a CniError with a code that a runtime can be told."""
    with pytest.raises(CniError) as caught:
        world.store.definition(world.namespace, "mpt-absent")
    assert caught.value.code > 0
    assert "mpt-absent" in caught.value.msg
