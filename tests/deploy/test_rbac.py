# SPDX-License-Identifier: Apache-2.0
"""The manifest's permissions are those that are used: all operations succeed with them, and each is needed."""

import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accounts import Rules, account, asking, rules
from cluster import Cluster

from multus_py.cni.errors import CniError
from multus_py.kube import certificate, daemonset, dra
from multus_py.kube.apiserver import ApiServer
from multus_py.kube.cached_apiserver import CachedApiServer
from multus_py.kube.http import Request
from multus_py.kube.reflector import Timing
from multus_py.kube.session import Client
from multus_py.kube.store import NotFound, Pod, PodRef

NODE = "mpt-rbac-node"
TIMING = Timing(first_pause=0.05, longest_pause=0.2)


def permissions(found: Rules) -> list[str]:
    """Return each permission in the words of our errors: `get pods`, `list resourceslices.resource.k8s.io`."""
    return sorted(
        f"{verb} {'.'.join(filter(None, [resource, group]))}"
        for rule in found.cluster + found.own
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def without(found: Rules, permission: str) -> Rules:
    """Return the rules with one permission less."""
    verb, _, resource = permission.partition(" ")

    def less(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**rule, "verbs": [each for each in rule["verbs"] if each != verb]}
            if ".".join(filter(None, [*rule["resources"], *rule["apiGroups"]])) == resource
            else rule
            for rule in listed
        ]

    return Rules([rule for rule in less(found.cluster) if rule["verbs"]], [r for r in less(found.own) if r["verbs"]])


@dataclass(frozen=True)
class Setting:
    """An API server with a pod, a definition and a DaemonSet's pod in a namespace of ours."""

    cluster: Cluster
    pod: PodRef
    daemon: PodRef


@pytest.fixture(scope="module")
def setting(apiserver: Cluster) -> Setting:
    """Make the objects; they go with the namespace."""
    if apiserver.servers is None:
        pytest.skip("accounts and roles are made on an API server of our own alone")

    def put(kind: str, name: str, version: str = "v1", **body: Any) -> dict[str, Any]:
        manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": name, **body.pop("metadata", {})}, **body}
        found: dict[str, Any] = json.loads(apiserver.kubectl("create", "-o", "json", "-f", "-", manifest=manifest))
        return found

    spec = {"nodeName": NODE, "containers": [{"name": "c", "image": "none"}]}
    labels = {"matchLabels": {"a": "b"}}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": spec["containers"]}}
    owner = put("DaemonSet", "multus-py", "apps/v1", spec={"selector": labels, "template": template})
    reference = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "multus-py", "uid": owner["metadata"]["uid"]}
    put("Pod", "daemon", metadata={"ownerReferences": [reference]}, spec=spec)
    put("NetworkAttachmentDefinition", "net", "k8s.cni.cncf.io/v1", spec={"config": "{}"})
    put("Pod", "p", spec=spec)
    return Setting(apiserver, PodRef(apiserver.namespace, "p"), PodRef(apiserver.namespace, "daemon"))


def missed(setting: Setting, kubeconfig: Path, log: pytest.LogCaptureFixture) -> set[str]:
    """Do everything that the daemon asks an API server for; return which permissions were missed."""
    errors: list[str] = []

    def attempt(operation: Callable[[], object]) -> None:
        try:
            operation()
        except CniError as error:
            errors.append(str(error))

    log.clear()
    connection, pod = Client(str(kubeconfig)), Pod(setting.pod.namespace, "p", "", NODE, {})
    store = CachedApiServer(str(kubeconfig), 20, NODE, TIMING)
    live = ApiServer(str(kubeconfig), 20, NODE)  # the copies are read with one when a watch is broken
    try:
        with log.at_level(logging.INFO, "multus_py"):
            store.start()
            settled(store, log)
            attempt(lambda: live.pod(setting.pod))
            attempt(live.pods_here)
            attempt(lambda: live.definition(setting.pod.namespace, "net"))
            attempt(lambda: live.publish_status(pod, "[]"))
            attempt(lambda: live.event(pod, "Normal", "Test", "a test"))
            attempt(lambda: dra.devices(claims(setting, connection), pod))
            attempt(lambda: daemonset.is_deleted(connection, setting.daemon, 20))
    finally:
        store.close()
        connection.close()
    return {found for text in [*errors, log.text] for found in re.findall(r"allow '([^']+)'", text)}


def settled(store: CachedApiServer, log: pytest.LogCaptureFixture) -> None:
    """Wait until both copies are there and watched, or somebody was refused."""
    until = time.monotonic() + 20
    while not (store.ready() and store.age() < 20) and "allow '" not in log.text:
        assert time.monotonic() < until, log.text
        time.sleep(0.05)
    time.sleep(0.5)  # both watches were asked for by then, and their refusals logged


def claims(setting: Setting, connection: Client) -> Callable[[Request], dict[str, Any]]:
    """Ask the server, and tell of a claim where it knows none: which requests it refuses is what matters here."""
    result = {"request": "r", "driver": "d", "pool": "p", "device": "x"}
    replies = {
        "/apis/resource.k8s.io": {"versions": [{"version": "v1"}]},
        f"/api/v1/namespaces/{setting.pod.namespace}/pods/p": {
            "spec": {"nodeName": NODE, "resourceClaims": [{"name": "c", "resourceClaimName": "c"}]}
        },
        f"/apis/resource.k8s.io/v1/namespaces/{setting.pod.namespace}/resourceclaims/c": {
            "status": {"allocation": {"devices": {"results": [result]}}}
        },
    }

    def ask(request: Request) -> dict[str, Any]:
        with suppress(NotFound):
            found = connection.send(request, time.monotonic() + 20)
            if request.path not in replies:
                return dict(found)
        uid = {"metadata": {"uid": ""}} if request.path.startswith("/api/") else {}
        return {**uid, **replies.get(request.path, {"items": []})}

    return ask


def test_the_manifests_account_can_do_everything(setting, tmp_path, caplog):
    """With the rules of the manifest nothing that the daemon does is refused."""
    with account(setting.cluster, rules(), tmp_path) as kubeconfig:
        assert missed(setting, kubeconfig, caplog) == set()


@pytest.mark.parametrize("permission", permissions(rules()))
def test_no_permission_is_too_much(setting, tmp_path, caplog, permission):
    """Without one permission exactly this one is reported as missing: so each is used."""
    with account(setting.cluster, without(rules(), permission), tmp_path) as kubeconfig:
        assert missed(setting, kubeconfig, caplog) == {permission}


def test_a_stranger_is_not_told_anything(setting, tmp_path, caplog):
    """Without rules every operation is refused: the rules are what permits them."""
    with account(setting.cluster, Rules([], []), tmp_path) as kubeconfig:
        refused = missed(setting, kubeconfig, caplog)
    assert {"list pods", "list network-attachment-definitions.k8s.cni.cncf.io", "create events"} <= refused


def missed_asking(setting: Setting, kubeconfig: Path) -> set[str]:
    """Ask for a client certificate, look what became of it, and tell so; return which permissions were missed."""
    errors: list[str] = []
    connection, wanted = Client(str(kubeconfig)), certificate.create_request(NODE)
    live = ApiServer(str(kubeconfig), 20, NODE)

    def submit() -> None:
        for _ in range(2):
            certificate.submit(lambda request: connection.send(request, time.monotonic() + 20), wanted, 3600)

    def publish() -> None:
        live.event(live.pod(setting.daemon), "Normal", "CertificateRequested", "a test")

    try:
        for operation in (submit, publish):
            try:
                operation()
            except CniError as error:
                errors.append(str(error))
    finally:
        connection.close()
        live.client.close()
    return {found for text in errors for found in re.findall(r"allow '([^']+)'", text)}


def test_who_may_ask_gets_a_request_through(setting, tmp_path):
    """With the rules of the component a request is made and read again, and an Event of the daemon's pod tells it."""
    with account(setting.cluster, asking(), tmp_path) as kubeconfig:
        assert missed_asking(setting, kubeconfig) == set()


@pytest.mark.parametrize("permission", permissions(asking()))
def test_no_permission_to_ask_is_too_much(setting, tmp_path, permission):
    """Take one permission away, and that very one is missed."""
    with account(setting.cluster, without(asking(), permission), tmp_path) as kubeconfig:
        assert missed_asking(setting, kubeconfig) == {permission}
