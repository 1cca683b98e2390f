# SPDX-License-Identifier: Apache-2.0
"""Resource claims as an API server tells of them: real HTTP on loopback, with the paths that resource.k8s.io has."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cluster import kubeconfig_text
from misbehaving import Handler, Script, playing, reply

from multus_py.cni.errors import CniError, Code
from multus_py.kube.apiserver import ApiServer
from multus_py.kube.store import Device, Pod

VF, DRIVER, NODE = "intel.com/vf", "sriov.example.com", "node-1"
POD = Pod("ns", "p", "uid-1", node=NODE)
GROUP = "/apis/resource.k8s.io"
Objects = dict[str, Any]


def pod(**more: Any) -> Objects:
    """Return a pod whose claim a template made; the container `app` uses all of it, `side` one request."""
    containers = [
        {"name": "app", "resources": {"claims": [{"name": "vfs"}]}},
        {"name": "side", "resources": {"claims": [{"name": "vfs", "request": "fast"}]}},
        {"name": "idle", "resources": {"limits": {"cpu": "1"}}},
    ]
    spec = {"nodeName": NODE, "containers": containers, "resourceClaims": [{"name": "vfs"}], **more.pop("spec", {})}
    status = {"resourceClaimStatuses": [{"name": "vfs", "resourceClaimName": "p-vfs-x1"}], **more.pop("status", {})}
    return {"metadata": {"namespace": "ns", "name": "p", "uid": "uid-1"}, "spec": spec, "status": status, **more}


def claim(*results: tuple[str, str, str]) -> Objects:
    """Return a claim that was allocated (request, pool, device)."""
    told = [{"request": request, "driver": DRIVER, "pool": pool, "device": name} for request, pool, name in results]
    return {"status": {"allocation": {"devices": {"results": told}}, "reservedFor": [{"uid": "uid-1"}]}}


def device(name: str, device_id: str = "", resource: str = "", **more: Any) -> Objects:
    """Return a device of a slice with the attributes of a network's device."""
    told = {"k8s.cni.cncf.io/deviceID": device_id, "k8s.cni.cncf.io/resourceName": resource}
    attributes = {key: {"string": value} for key, value in told.items() if value}
    return {"name": name, "attributes": {**attributes, "numa": {"int": 1}}, **more}


def published(pool: str, *devices: Objects, node: str = NODE, generation: int = 1) -> Objects:
    """Return a ResourceSlice."""
    place = {"nodeName": node} if node else {"allNodes": True}
    about = {"name": pool, "generation": generation, "resourceSliceCount": 1}
    return {"spec": {"driver": DRIVER, "pool": about, "devices": list(devices), **place}}


def routed(objects: Objects, slices: list[Objects], page: int = 500) -> Callable[[Handler], None]:
    """Answer as an API server with these objects: slices by driver and node, in pages."""

    def answer(handler: Handler) -> None:
        url = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if not url.path.endswith("/resourceslices"):
            found = objects.get(url.path)
            reply(200 if found else 404, found or {"kind": "Status", "message": f"{url.path} not found"})(handler)
            return
        wanted = dict(part.split("=") for part in query["fieldSelector"].split(","))
        assert {"spec.driver", "spec.nodeName"} == set(wanted)
        matching = [
            item
            for item in slices
            if item["spec"]["driver"] == wanted["spec.driver"]
            and item["spec"].get("nodeName", "") == wanted["spec.nodeName"]
        ]
        start = int(query.get("continue", 0))
        more = {"continue": str(start + page)} if len(matching) > start + page else {}
        reply(200, {"kind": "ResourceSliceList", "metadata": more, "items": matching[start : start + page]})(handler)

    return answer


def cluster(version: str = "v1", **claims: Objects) -> Objects:
    """Return what the server has: the pod, the claims and the API group in *version*."""
    paths = {
        f"{GROUP}/{version}/namespaces/ns/resourceclaims/{name.replace('_', '-')}": body
        for name, body in claims.items()
    }
    group = {"kind": "APIGroup", "versions": [{"version": "v1alpha3"}, {"version": version}]}
    return {"/api/v1/namespaces/ns/pods/p": pod(), GROUP: group, **paths}


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., tuple[Device, ...]]]:
    """Give a function that asks a server with these objects for the devices of the pod."""

    def asked(objects: Objects, slices: list[Objects], page: int = 500) -> tuple[Device, ...]:
        with playing(routed(objects, slices, page)) as script:
            scripts.append(script)
            path = tmp_path / "kubeconfig"
            path.write_text(kubeconfig_text(script.url, {"token": "t"}))
            return ApiServer(str(path), 2).claimed(POD)

    scripts: list[Script] = []
    asked.scripts = scripts  # type: ignore[attr-defined]
    yield asked


def words(*requests: str, names: tuple[str, ...] = ("vfs", "p-vfs-x1")) -> tuple[str, ...]:
    """Return how a pod may name a device of these requests."""
    return tuple(word for name in names for word in (name, *(f"{name}/{request}" for request in requests)))


@pytest.mark.parametrize("version", ["v1", "v1beta2", "v1beta1"])
def test_a_claims_devices_are_found_by_driver_pool_and_name(ask, version):
    """Id and resource are the driver's attributes; containers are those that use the claim, or the request."""
    objects = cluster(version, p_vfs_x1=claim(("slow", NODE, "vf-1"), ("fast/best", NODE, "vf-2")))
    devices = [device("vf-1", "0000:01:00.1", VF), device("vf-2", "0000:01:00.2", VF), device("vf-3", "x", VF)]
    if version == "v1beta1":
        devices = [{"name": each["name"], "basic": {"attributes": each["attributes"]}} for each in devices]
    assert (
        Device(VF, "0000:01:00.1", ("app",), words("slow")),
        Device(VF, "0000:01:00.2", ("app", "side"), words("fast")),
    ) == ask(objects, [published(NODE, *devices), published("elsewhere", device("vf-1", "y", VF), node="node-2")])


def test_pools_of_no_one_node_are_found_too(ask):
    """A pool that all nodes reach is looked up when the node's own slices do not have the device."""
    objects = cluster(p_vfs_x1=claim(("r", NODE, "vf-1"), ("r", "fabric", "port-1")))
    slices = [published(NODE, device("vf-1", "a", VF)), published("fabric", device("port-1", "b", VF), node="")]
    assert ["a", "b"] == [each.id for each in ask(objects, slices)]


def test_slices_come_in_pages_and_old_generations_do_not_count(ask):
    """All pages are read; a pool that is being published anew is what its newest generation says."""
    objects = cluster(p_vfs_x1=claim(("r", NODE, "vf-1"), ("r", NODE, "vf-2")))
    slices = [
        published(NODE, device("vf-1", "old", VF), device("gone", "x", VF)),
        published(NODE, device("vf-1", "new", VF), generation=2),
        published(NODE, device("vf-2", "b", VF), generation=2),
    ]
    for order in (slices, slices[::-1]):
        assert ["new", "b"] == [each.id for each in ask(objects, order, page=1)]
    objects = cluster(p_vfs_x1=claim(("r", NODE, "gone")))
    with pytest.raises(CniError, match="no ResourceSlice tells of a device") as caught:
        ask(objects, slices)
    assert 11 == caught.value.code


def test_a_claim_that_the_pod_names_itself_counts(ask):
    """Such a claim stands in the pod's spec and not in its status."""
    objects = cluster(shared=claim(("r", NODE, "vf-1")))
    spec = {"resourceClaims": [{"name": "vfs", "resourceClaimName": "shared"}]}
    objects["/api/v1/namespaces/ns/pods/p"] = pod(spec=spec, status={"resourceClaimStatuses": []})
    assert (Device(VF, "a", ("app",), words("r", names=("vfs", "shared"))),) == ask(
        objects, [published(NODE, device("vf-1", "a", VF))]
    )


def test_devices_that_are_no_networks_device_are_left_out(ask):
    """A GPU in the same claim has no id for networks; one without a resource can only be named by its claim."""
    objects = cluster(p_vfs_x1=claim(("r", NODE, "gpu"), ("r", NODE, "vf-1")))
    found = ask(objects, [published(NODE, device("gpu"), device("vf-1", "a"))])
    assert [("", "a")] == [(each.resource, each.id) for each in found]


def extended(*mappings: tuple[str, str, str]) -> Objects:
    """Return a pod whose extended resources a claim serves (container, resource, request)."""
    told = [{"containerName": c, "resourceName": resource, "requestName": request} for c, resource, request in mappings]
    status = {
        "resourceClaimStatuses": [],
        "extendedResourceClaimStatus": {"resourceClaimName": "p-ext", "requestMappings": told},
    }
    return pod(spec={"resourceClaims": []}, status=status)


def test_extended_resources_that_a_claim_serves_are_mapped(ask):
    """The scheduler's map says which container and which resource each request stands for."""
    objects = cluster(p_ext=claim(("c0", NODE, "vf-1"), ("c1", NODE, "vf-2")))
    objects["/api/v1/namespaces/ns/pods/p"] = extended(("app", VF, "c0"), ("side", VF, "c1"))
    devices = [device("vf-1", "a", VF), device("vf-2", "b")]
    assert (
        Device(VF, "a", ("app",), words("c0", names=("p-ext",))),
        Device(VF, "b", ("side",), words("c1", names=("p-ext",))),
    ) == ask(objects, [published(NODE, *devices)])


def test_an_extended_resource_that_does_not_fit_is_refused(ask):
    """A request without a device, and a device that its driver counts as something else."""
    objects = cluster(p_ext=claim(("c0", NODE, "vf-1")))
    objects["/api/v1/namespaces/ns/pods/p"] = extended(("app", VF, "c0"), ("side", VF, "c1"))
    slices = [published(NODE, device("vf-1", "a", "intel.com/other"))]
    with pytest.raises(CniError, match="nothing is allocated for c1") as caught:
        ask(objects, slices)
    assert 11 == caught.value.code
    objects["/api/v1/namespaces/ns/pods/p"] = extended(("app", VF, "c0"))
    with pytest.raises(CniError, match=r"given to the pod as intel\.com/vf, and its driver calls it intel\.com/other"):
        ask(objects, slices)


def test_a_pod_without_claims_costs_one_question(ask):
    """A cluster without the API is not asked for it."""
    objects = {"/api/v1/namespaces/ns/pods/p": pod(spec={"resourceClaims": []}, status={"resourceClaimStatuses": []})}
    assert () == ask(objects, [])
    assert 1 == len(ask.scripts[0].seen)


@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        ({f"{GROUP}/v1/namespaces/ns/resourceclaims/p-vfs-x1": {"status": {}}}, "has no allocation"),
        ({f"{GROUP}/v1/namespaces/ns/resourceclaims/p-vfs-x1": None}, "resourceclaims/p-vfs-x1 not found"),
        ({"/api/v1/namespaces/ns/pods/p": None}, "pods/p not found"),
        ({"/api/v1/namespaces/ns/pods/p": pod(metadata={"uid": "uid-2"})}, "it was replaced"),
    ],
)
def test_what_is_not_there_yet_is_tried_again(ask, change, words_of_it):
    """Code 11 for whatever the next try may find."""
    with pytest.raises(CniError, match=words_of_it) as caught:
        ask(cluster(p_vfs_x1=claim(("r", NODE, "vf-1"))) | change, [published(NODE, device("vf-1", "a", VF))])
    assert 11 == caught.value.code


@pytest.mark.parametrize("version", ["v1alpha3", "v2"])
def test_an_api_that_we_do_not_know_is_told(ask, version):
    """Code 7 names the versions that would do."""
    with pytest.raises(CniError, match=r"resource\.k8s\.io in") as caught:
        ask(cluster(version), [])
    assert (7, True) == (caught.value.code, "v1beta1" in caught.value.details)


@pytest.mark.parametrize(
    "path", ["/api/v1/namespaces/ns/pods/p", GROUP, f"{GROUP}/v1/namespaces/ns/resourceclaims/p-vfs-x1"]
)
@pytest.mark.parametrize("body", [{"x": 1}, {"spec": []}, {"status": {"allocation": 5}}, {"versions": [1]},
                                  {"status": {"allocation": {"devices": {"results": [{"pool": 5}]}}}}])  # fmt: skip
def test_only_cni_errors_come_out_of_strange_objects(ask, path, body):
    """Objects of another shape are errors, not crashes."""
    objects = cluster(p_vfs_x1=claim(("r", NODE, "vf-1"))) | {path: {"metadata": {"uid": "uid-1"}, **body}}
    try:
        ask(objects, [published(NODE, device("vf-1", "a", VF))])
    except CniError as error:
        assert error.code in (7, 11), json.dumps(body)


@pytest.mark.parametrize("driver", ["a,spec.nodeName=other", "a=b", "", "A"])
def test_a_driver_that_is_no_name_is_not_asked_for(ask: Callable[..., tuple[Device, ...]], driver: str) -> None:
    """It would become a part of a selector: the answer would be of other slices than those of this node."""
    body = claim(("vf", "pool", "vf-0"))
    body["status"]["allocation"]["devices"]["results"][0]["driver"] = driver
    with pytest.raises(CniError, match="driver") as caught:
        ask(cluster(p_vfs_x1=body), [published("pool", device("vf-0", "0000:01:00.1", "x/y"))])
    assert Code.DECODE == caught.value.code
