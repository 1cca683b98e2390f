# SPDX-License-Identifier: Apache-2.0
"""Whether the DaemonSet of a pod was deleted, as a real API server tells it."""

import secrets
import time

import pytest

from multus_py.cni.errors import CniError
from multus_py.kube import daemonset
from multus_py.kube.session import Client
from multus_py.kube.store import NotFound, PodRef


@pytest.fixture
def agent(apiserver):
    """A DaemonSet and a pod that it owns; nobody makes pods of it here."""
    name = f"agent-{secrets.token_hex(3)}"
    spec = {"containers": [{"name": "c", "image": "i"}]}
    template = {"metadata": {"labels": {"a": name}}, "spec": spec}
    metadata = {"name": name, "finalizers": ["example.org/hold"]}
    apiserver.kubectl("apply", "-f", "-", manifest={
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata,
        "spec": {"selector": {"matchLabels": {"a": name}}, "template": template},
    })  # fmt: skip
    uid = apiserver.kubectl("get", "daemonset", name, "-o", "jsonpath={.metadata.uid}")
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": uid}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec}
    apiserver.kubectl("apply", "-f", "-", manifest=pod)
    yield PodRef(apiserver.namespace, name)
    apiserver.kubectl("delete", "pod", name, "--force", "--grace-period=0", "--ignore-not-found")
    release(apiserver, name)
    apiserver.kubectl("delete", "daemonset", name, "--ignore-not-found")


def release(apiserver, name):
    """Let the DaemonSet go, if it is still there."""
    if apiserver.kubectl("get", "daemonset", name, "--ignore-not-found", "-o", "name"):
        apiserver.kubectl("patch", "daemonset", name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


def told(kubeconfig, ref):
    """Ask with the account of a kubeconfig."""
    return daemonset.is_deleted(Client(str(kubeconfig)), ref, 5.0)


def test_a_daemonset_that_is_deleted_is_told_from_one_that_is_not(apiserver, agent):
    """There: no. Being deleted, in the foreground: yes. Gone: yes. Made anew under its name: yes."""
    assert not told(apiserver.admin, agent)
    apiserver.kubectl("delete", "daemonset", agent.name, "--wait=false")
    assert told(apiserver.admin, agent)
    release(apiserver, agent.name)
    end = time.monotonic() + 10
    while apiserver.kubectl("get", "daemonset", agent.name, "--ignore-not-found"):
        assert time.monotonic() < end
    assert told(apiserver.admin, agent)
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    apiserver.kubectl("apply", "-f", "-", manifest={
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": agent.name},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template},
    })  # fmt: skip
    assert told(apiserver.admin, agent)


def test_a_pod_of_nobodys_is_never_deleted_with_its_owner(apiserver, agent):
    """A pod without a DaemonSet, or one that cannot be found, is no reason to leave."""
    apiserver.kubectl("patch", "pod", agent.name, "--type=merge", "-p", '{"metadata":{"ownerReferences":null}}')
    assert not told(apiserver.admin, agent)
    with pytest.raises(NotFound):
        told(apiserver.admin, PodRef(agent.namespace, "nobody"))


def test_an_account_that_is_refused_was_deleted_with_it(apiserver, agent):
    """`kubectl delete -k` takes the account away beside the DaemonSet: who comes after us could not work with it."""
    if apiserver.stranger is None:
        pytest.skip("on this cluster there is no account without rights")
    assert told(apiserver.stranger, agent)


def test_a_server_out_of_reach_says_nothing(tmp_path, agent):
    """Without an answer nothing is taken away."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        '{"apiVersion":"v1","kind":"Config","current-context":"x","users":[{"name":"x","user":{}}],'
        '"clusters":[{"name":"x","cluster":{"server":"http://127.0.0.1:9"}}],'
        '"contexts":[{"name":"x","context":{"cluster":"x","user":"x"}}]}'
    )
    with pytest.raises(CniError, match="out of reach"):
        told(kubeconfig, agent)
