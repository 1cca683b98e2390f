# SPDX-License-Identifier: Apache-2.0
"""The watched store on a real API server: killed, compacted, changed all the time."""

import json
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cluster import Cluster, Servers
from waiting import eventually

from multus_py.cni.errors import CniError
from multus_py.kube import objects
from multus_py.kube.apiserver import ApiServer
from multus_py.kube.cached_apiserver import CachedApiServer
from multus_py.kube.http import Request
from multus_py.kube.reflector import Timing
from multus_py.kube.session import Client
from multus_py.kube.store import NETWORK_STATUS, NETWORKS, NotFound, Pod, PodRef

pytestmark = pytest.mark.cluster
TIMING = Timing(first_pause=0.1, longest_pause=1)
DEFINITIONS = "/apis/k8s.cni.cncf.io/v1/namespaces/{}/network-attachment-definitions"


@dataclass
class Hands:
    """Whoever changes the cluster: an administrator with requests of his own."""

    client: Client
    namespace: str

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request and return the object that comes back."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = Request(method, path, f"{method} {path}", "all", body, kind)
        return self.client.send(request, time.monotonic() + 10)

    @property
    def pods(self) -> str:
        """The path of our pods."""
        return f"/api/v1/namespaces/{self.namespace}/pods"

    @property
    def definitions(self) -> str:
        """The path of our definitions."""
        return DEFINITIONS.format(self.namespace)

    def make(self, name: str, node: str = "", networks: str = "net") -> str:
        """Create a pod; return its uid."""
        spec = {"containers": [{"name": "main", "image": "none"}], **({"nodeName": node} if node else {})}
        about = {"name": name, "annotations": {NETWORKS: networks}}
        body = self.send("POST", self.pods, {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec})
        return str(body["metadata"]["uid"])

    def remove(self, name: str) -> None:
        """Delete a pod at once."""
        self.send("DELETE", f"{self.pods}/{name}", {"gracePeriodSeconds": 0})

    def annotate(self, name: str, networks: str) -> None:
        """Change what a pod asks for."""
        self.send("PATCH", f"{self.pods}/{name}", {"metadata": {"annotations": {NETWORKS: networks}}})

    def define(self, name: str, config: str) -> None:
        """Create a definition, or change it."""
        kind = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition"}
        try:
            self.send("POST", self.definitions, {**kind, "metadata": {"name": name}, "spec": {"config": config}})
        except CniError:
            self.send("PATCH", f"{self.definitions}/{name}", {"spec": {"config": config}})

    def truth(self) -> dict[str, tuple[str, str]]:
        """Return uid and annotation of each pod, as the server has them."""
        items = self.send("GET", self.pods)["items"]
        return {
            item["metadata"]["name"]: (item["metadata"]["uid"], item["metadata"]["annotations"][NETWORKS])
            for item in items
        }


@pytest.fixture
def hands(apiserver: Cluster) -> Iterator[Hands]:
    """Give an administrator, whose pods and definitions are removed in the end."""
    made = Hands(Client(str(apiserver.admin)), apiserver.namespace)
    yield made
    made.send("DELETE", f"{made.pods}?gracePeriodSeconds=0")
    made.send("DELETE", made.definitions)
    made.client.close()


@contextmanager
def watching(apiserver: Cluster, node: str = "", timing: Timing = TIMING) -> Iterator[CachedApiServer]:
    """Give a store that is ready."""
    store = CachedApiServer(str(apiserver.plugin), 20, node, timing)
    store.start()
    try:
        eventually(store.ready)
        yield store
    finally:
        store.close()


def seen(store: CachedApiServer, hands: Hands) -> dict[str, tuple[str, str]]:
    """Return uid and annotation of each pod of our namespace, as the copy has them."""
    ours = [pod for pod in store.pods_here() if pod.namespace == hands.namespace]
    return {pod.name: (pod.uid, pod.annotations.get(NETWORKS, "")) for pod in ours}


def servers(apiserver: Cluster) -> Servers:
    """Return the processes that the test may kill."""
    if apiserver.servers is None:
        pytest.skip("this cluster is not ours to be killed")
    return apiserver.servers


def test_a_recreated_pod_has_the_right_uid_at_once(apiserver: Cluster, hands: Hands) -> None:
    """However far the watch is behind, the pod that the runtime asks for by its uid is the one that is answered."""
    with watching(apiserver) as store:
        for n in range(20):
            uid = hands.make("mpt-again", networks=f"net-{n}")
            found = store.pod(PodRef(hands.namespace, "mpt-again", uid))
            assert (uid, f"net-{n}") == (found.uid, found.annotations[NETWORKS])
            hands.remove("mpt-again")


def test_a_deleted_pod_is_gone_and_does_not_come_back(apiserver: Cluster, hands: Hands) -> None:
    """Live reads that race with deletions leave no ghost in the copy."""
    with watching(apiserver) as store:
        for n in range(20):
            ref = PodRef(hands.namespace, f"mpt-brief-{n}", hands.make(f"mpt-brief-{n}"))
            reader = threading.Thread(target=lambda ref=ref: suppressed(lambda: store.pod(ref)))
            reader.start()
            hands.remove(ref.name)
            reader.join()
        last = hands.make("mpt-last")
        eventually(lambda: {"mpt-last": (last, "net")} == seen(store, hands))


def suppressed(deed: Callable[[], object]) -> None:
    """Do it, whether or not the pod is still there."""
    with suppress(NotFound):
        deed()


def test_only_the_pods_of_the_node_are_copied(apiserver: Cluster, hands: Hands) -> None:
    """Another node's pods are answered by name and are not among those that are here, watched and live alike."""
    hands.make("mpt-here", "mpt-node-1")
    elsewhere = hands.make("mpt-elsewhere", "mpt-node-2")
    with watching(apiserver, "mpt-node-1") as store:
        later = hands.make("mpt-later", "mpt-node-1")
        eventually(lambda: {"mpt-here", "mpt-later"} == seen(store, hands).keys())
        assert elsewhere == store.pod(PodRef(hands.namespace, "mpt-elsewhere", elsewhere)).uid
        assert later == store.pod(PodRef(hands.namespace, "mpt-later", later)).uid
        live = ApiServer(str(apiserver.plugin), 20, "mpt-node-1").pods_here()
        assert {pod.ref for pod in store.pods_here()} == {pod.ref for pod in live}


def test_a_published_status_is_read_back_and_then_told(apiserver: Cluster, hands: Hands) -> None:
    """The store has the status at once; its subscribers hear of it from the watch, once."""
    told: list[Pod | None] = []
    store = CachedApiServer(str(apiserver.plugin), 20, "mpt-node-3", TIMING)
    store.subscribe(lambda _, new: told.append(new))
    store.start()
    try:
        eventually(store.ready)
        ref = PodRef(hands.namespace, "mpt-told", hands.make("mpt-told", "mpt-node-3"))
        store.publish_status(store.pod(ref), "[1]")
        assert "[1]" == store.pod(ref).annotations[NETWORK_STATUS]
        eventually(lambda: len(told) >= 2)
        assert [None, "[1]"] == [each and each.annotations.get(NETWORK_STATUS) for each in told]
    finally:
        store.close()


def test_watches_that_end_all_the_time_lose_nothing(apiserver: Cluster, hands: Hands) -> None:
    """With watches of a second or two every pod is told, once and in order."""
    told: list[str] = []
    store = CachedApiServer(str(apiserver.plugin), 20, "mpt-node-4", Timing(watch_timeout=1))
    store.subscribe(lambda old, new: told.append(new.name if new else f"-{old.name if old else ''}"))
    store.start()
    try:
        for n in range(40):
            hands.make(f"mpt-steady-{n}", "mpt-node-4")
            threading.Event().wait(0.1)
        eventually(lambda: len(told) == 40)
        assert [f"mpt-steady-{n}" for n in range(40)] == told
    finally:
        store.close()


def test_pages_of_a_real_server_are_put_together(apiserver: Cluster, hands: Hands) -> None:
    """A list in pages of three has every definition, once, and one version."""
    for n in range(10):
        hands.define(f"mpt-page-{n}", "{}")
    small = replace(objects.all_definitions(), limit=3)
    account = Client(str(apiserver.plugin))
    pages = list(small.pages(lambda request: account.send(request, time.monotonic() + 10)))
    account.close()
    assert len(pages) >= 4
    assert len({page.version for page in pages}) == 1
    found = [item["metadata"]["name"] for page in pages for item in page.items]
    assert sorted(name for name in found if name.startswith("mpt-page-")) == [f"mpt-page-{n}" for n in range(10)]


def test_a_version_that_the_server_never_had_or_forgot_is_listed_anew(
    apiserver: Cluster, hands: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    """After a compaction and a restart the watch cannot go on from its version: what was missed is found by a list."""
    ours = servers(apiserver)
    caplog.set_level("INFO")
    old = hands.make("mpt-old")
    with watching(apiserver, timing=Timing(first_pause=1.5, longest_pause=2)) as store:
        eventually(lambda: seen(store, hands).keys() == {"mpt-old"})
        ours.api.kill()
        ours.restart()
        hands.remove("mpt-old")
        hands.define("mpt-net", "{1}")
        new = hands.make("mpt-old", networks="other")
        ours.compact()
        assert "other" == store.pod(PodRef(hands.namespace, "mpt-old", new)).annotations[NETWORKS]
        eventually(lambda: seen(store, hands) == {"mpt-old": (new, "other")}, 20)
        eventually(lambda: any("listing again" in record.getMessage() for record in caplog.records), 20)
        assert old != new
        assert "{1}" == store.definition(hands.namespace, "mpt-net").config


def test_a_server_killed_in_a_burst_of_changes_leaves_a_true_copy(apiserver: Cluster, hands: Hands) -> None:
    """Pods and definitions change all the time while the server dies and comes back; in the end the copy is true."""
    ours = servers(apiserver)
    over = threading.Event()
    dice = random.Random(secrets.randbits(32))
    counted = [0]

    def burst() -> None:
        while not over.is_set():
            with suppress(CniError):  # the server is away, or the pod was not there
                change(hands, dice, counted[0])
                counted[0] += 1

    told: dict[str, tuple[str, str]] = {}
    wrong: list[tuple[Pod | None, Pod | None]] = []

    def follow(was: Pod | None, now: Pod | None) -> None:
        if was and told.get(was.name) != (was.uid, was.annotations[NETWORKS]):
            wrong.append((was, now))
        if was and now and was.uid != now.uid:
            wrong.append((was, now))
        if now:
            told[now.name] = (now.uid, now.annotations[NETWORKS])
        elif was:
            told.pop(was.name, None)

    store = CachedApiServer(str(apiserver.plugin), 20, "", TIMING)
    store.subscribe(follow)
    worker = threading.Thread(target=burst)
    try:
        store.start()
        worker.start()
        eventually(lambda: counted[0] > 100, 30)
        ours.api.kill()
        ours.restart()
        before = counted[0]
        eventually(lambda: counted[0] > before + 100, 30)
        over.set()
        worker.join()
        truth = hands.truth()
        eventually(lambda: seen(store, hands) == truth, 20)
        assert told == truth
        assert wrong == []
        for item in hands.send("GET", hands.definitions)["items"]:
            name = item["metadata"]["name"]
            eventually(
                lambda name=name, item=item: store.definition(hands.namespace, name).config == item["spec"]["config"]
            )
    finally:
        over.set()
        store.close()


def change(hands: Hands, dice: random.Random, number: int) -> None:
    """Make, change or remove one of twenty pods, or change one of five definitions."""
    name, deed = f"mpt-burst-{dice.randrange(20)}", dice.randrange(4)
    if deed == 0:
        hands.make(name, networks=f"net-{number}")
    elif deed == 1:
        hands.remove(name)
    elif deed == 2:
        hands.annotate(name, f"net-{number}")
    else:
        hands.define(f"mpt-net-{dice.randrange(5)}", json.dumps({"n": number}))
