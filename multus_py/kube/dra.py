# SPDX-License-Identifier: Apache-2.0
"""Dynamic resource allocation: the devices that a pod's ResourceClaims were allocated, from an API server.

A claim's status names devices by driver, pool and name; the ResourceSlice of the pool has their ids
(attributes `k8s.cni.cncf.io/deviceID` and `k8s.cni.cncf.io/resourceName`, which the device's driver publishes).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from multus_py.cni import names
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.kube.http import Request, Send
from multus_py.kube.store import Device, NotFound, Pod, Unavailable

DEVICE_ID, RESOURCE = "k8s.cni.cncf.io/deviceID", "k8s.cni.cncf.io/resourceName"
_GROUP = "/apis/resource.k8s.io"
_VERSIONS = ("v1", "v1beta2", "v1beta1")  # best first; what we read is the same in all but one place
_PAGE = 500  # slices of one reply
Place = tuple[str, str, str]  # driver, pool, name of a device


@dataclass(frozen=True)
class _Claim:
    """A ResourceClaim of a pod. *holders*: request -> containers; *resources*: request -> resource; "" any request."""

    name: str
    words: tuple[str, ...]
    holders: Mapping[str, tuple[str, ...]]
    resources: Mapping[str, str]


@dataclass(frozen=True)
class _Allocated:
    """One result of a claim's allocation."""

    claim: _Claim
    request: str
    place: Place


def devices(send: Send, pod: Pod) -> tuple[Device, ...]:
    """Return the devices of all claims of a pod, in the order of the claims.

    Devices without an id are not networks' devices and left out. Code 11 when a claim has no allocation, when it or the
    pod does not exist (any more), or when a slice still has to be published.
    """
    try:
        return tuple(_devices(send, pod))
    except NotFound as missing:
        raise Unavailable(missing.msg, missing.details) from missing


def _devices(send: Send, pod: Pod) -> Iterator[Device]:
    doing = f"read the resource claims of pod {pod.ref}"
    if not (names.is_label(pod.namespace) and names.is_subdomain(pod.name)):
        raise NotFound(Code.INVALID_ENVIRONMENT, f"cannot {doing}: no object can have this name")
    body = send(Request("GET", f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}", doing, "get pods"))
    uid = Fields(Fields(body, doing).table("metadata"), doing).text("uid")
    if pod.uid and uid != pod.uid:
        raise Unavailable(f"cannot {doing}: it was replaced, uid {pod.uid} is now {uid}", "try again")
    if not (claims := list(_claims(body, doing))):
        return
    version = _version(send, doing)
    allocated = [one for claim in claims for one in _allocated(send, version, pod.namespace, claim)]
    node = pod.node or Fields(Fields(body, doing).table("spec"), doing).text("nodeName")
    published = _published(send, version, node, {one.place for one in allocated})
    for one in allocated:
        yield from _device(one, published[one.place])


def _claims(body: Mapping[str, Any], doing: str) -> Iterator[_Claim]:
    """Yield the claims of a pod: those that it names or that a template made, then the one for extended resources."""
    spec, status = Fields(Fields(body, doing).table("spec"), doing), Fields(Fields(body, doing).table("status"), doing)
    # Only a claim that a template made stands in the status; one that the pod names stands in its spec alone.
    listed = [*(spec.tables("resourceClaims") or ()), *(status.tables("resourceClaimStatuses") or ())]
    named = {
        entry.text("name"): entry.text("resourceClaimName")
        for entry in (Fields(item, doing) for item in listed)
        if entry.text("resourceClaimName")
    }
    for word, name in named.items():
        yield _Claim(name, tuple(dict.fromkeys((word, name))), _holders(spec, word, doing), {})
    extended = Fields(status.table("extendedResourceClaimStatus"), doing)
    if name := extended.text("resourceClaimName"):
        mappings = [Fields(item, doing) for item in extended.tables("requestMappings") or ()]
        holders = {each.text("requestName"): (each.text("containerName"),) for each in mappings}
        resources = {each.text("requestName"): each.text("resourceName") for each in mappings}
        yield _Claim(name, (name,), holders, resources)


def _holders(spec: Fields, name: str, doing: str) -> dict[str, tuple[str, ...]]:
    """Return the containers that use the pod's claim *name*: by request, "" for those that use all of it."""
    found: dict[str, tuple[str, ...]] = {}
    for part in ("initContainers", "containers"):
        for container in (Fields(item, doing) for item in spec.tables(part) or ()):
            for use in Fields(container.table("resources"), doing).tables("claims") or ():
                if Fields(use, doing).text("name") == name:
                    request = Fields(use, doing).text("request")
                    found[request] = (*found.get(request, ()), container.text("name"))
    return found


def _version(send: Send, doing: str) -> str:
    group = send(Request("GET", _GROUP, doing, f"get {_GROUP}"))
    offered = {Fields(item, doing).text("version") for item in Fields(group, doing).tables("versions") or ()}
    if found := next((version for version in _VERSIONS if version in offered), None):
        return found
    raise CniError(
        Code.INVALID_CONFIG,
        f"cannot {doing}: the API server has resource.k8s.io in {', '.join(sorted(offered)) or 'no version'}",
        f"known: {', '.join(_VERSIONS)}",
    )


def _allocated(send: Send, version: str, namespace: str, claim: _Claim) -> Iterator[_Allocated]:
    doing = f"read ResourceClaim {namespace}/{claim.name}"
    if not names.is_subdomain(claim.name):
        raise NotFound(Code.INVALID_CONFIG, f"cannot {doing}: no object can have this name")
    path = f"{_GROUP}/{version}/namespaces/{namespace}/resourceclaims/{claim.name}"
    body = send(Request("GET", path, doing, "get resourceclaims.resource.k8s.io"))
    allocation = Fields(Fields(body, doing).table("status"), doing).table("allocation")
    if not allocation:
        raise Unavailable(f"ResourceClaim {namespace}/{claim.name} has no allocation", "it may come: try again")
    results = [
        Fields(item, doing)
        for item in Fields(Fields(allocation, doing).table("devices"), doing).tables("results") or ()
    ]
    found = [
        _Allocated(claim, each.text("request"), (each.text("driver"), each.text("pool"), each.text("device")))
        for each in results
    ]
    if missing := set(claim.resources) - {_main(one.request) for one in found}:
        raise Unavailable(
            f"ResourceClaim {namespace}/{claim.name}: nothing is allocated for {', '.join(sorted(missing))}",
            "the pod's extendedResourceClaimStatus names it: try again",
        )
    return iter(found)


def _published(send: Send, version: str, node: str, places: set[Place]) -> dict[Place, Fields]:
    """Return the attributes of the devices: from the slices of this node, then from those of no one node."""
    found: dict[Place, Fields] = {}
    for driver in sorted({driver for driver, _, _ in places}):
        if not names.is_subdomain(driver):  # it becomes a part of a selector, where "," is a sign
            raise CniError(Code.DECODE, f"the pod's claims name the driver {driver!r:.80}, which none can be called")
        needed = {place for place in places if place[0] == driver}
        for where in dict.fromkeys((node, "")):
            if not needed <= found.keys():
                found |= _of_driver(send, version, driver, where)
    if missing := places - found.keys():
        devices_text = ", ".join(" ".join(place) for place in sorted(missing))
        raise Unavailable(
            f"no ResourceSlice tells of a device that was allocated (driver, pool, device): {devices_text}",
            "its driver has to publish it: try again",
        )
    return found


def _of_driver(send: Send, version: str, driver: str, node: str) -> dict[Place, Fields]:
    """Return the devices of one driver in slices of *node* ("": of no one node), of each pool's newest generation."""
    doing = f"list the ResourceSlices of driver {driver}" + (f" on node {node}" if node else "")
    newest: dict[str, int] = {}
    found: dict[Place, tuple[int, Fields]] = {}
    for item in _slices(send, version, f"spec.driver={driver},spec.nodeName={node}", doing):
        spec = Fields(Fields(item, doing).table("spec"), doing)
        pool = Fields(spec.table("pool"), doing)
        name, generation = pool.text("name"), pool.number("generation")
        newest[name] = max(generation, newest.get(name, 0))
        for device in (Fields(each, doing) for each in spec.tables("devices") or ()):
            place = (driver, name, device.text("name"))
            if place not in found or found[place][0] < generation:
                found[place] = (generation, _attributes(device, doing))
    return {place: attributes for place, (generation, attributes) in found.items() if generation == newest[place[1]]}


def _slices(send: Send, version: str, selector: str, doing: str) -> Iterator[Mapping[str, Any]]:
    query = {"fieldSelector": selector, "limit": str(_PAGE)}
    while True:
        path = f"{_GROUP}/{version}/resourceslices?{urlencode(query, quote_via=quote)}"
        reply = Fields(send(Request("GET", path, doing, "list resourceslices.resource.k8s.io")), doing)
        yield from reply.tables("items") or ()
        if not (more := Fields(reply.table("metadata"), doing).text("continue")):
            return
        query["continue"] = more


def _attributes(device: Fields, doing: str) -> Fields:
    # v1beta1 has them one level deeper.
    inner = device if device.get("attributes") is not None else Fields(device.table("basic"), doing)
    return Fields(inner.table("attributes"), doing)


def _device(one: _Allocated, attributes: Fields) -> Iterator[Device]:
    claim, request = one.claim, _main(one.request)
    device_id, resource = (Fields(attributes.table(key), key).text("string") for key in (DEVICE_ID, RESOURCE))
    if not device_id:
        return
    counted = claim.resources.get(request, "")
    if counted and resource and counted != resource:
        raise CniError(
            Code.INVALID_CONFIG,
            f"device {device_id} was given to the pod as {counted}, and its driver calls it {resource}",
            f"let the DeviceClass and the driver's attribute {RESOURCE} say the same",
        )
    containers = tuple(dict.fromkeys((*claim.holders.get("", ()), *claim.holders.get(request, ()))))
    words = tuple(word for name in claim.words for word in (name, f"{name}/{request}"))
    yield Device(counted or resource, device_id, containers, words)


def _main(request: str) -> str:
    """Return the request of a result: a subrequest that was chosen from a list is written as <request>/<subrequest>."""
    return request.partition("/")[0]
