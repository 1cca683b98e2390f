# SPDX-License-Identifier: Apache-2.0
"""The objects of an API server: their paths, and how their JSON becomes a record that keeps only what we read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import urlencode

from multus_py.cni import names
from multus_py.cni.errors import CniError, Code
from multus_py.kube.http import Request, Retryable, Send
from multus_py.kube.store import CONFIG_SOURCE, Claim, NetworkDefinition, NotFound, Pod

T = TypeVar("T", bound="Record")
# A pod carries many annotations of others; a copy of a whole node's pods keeps ours.
_OURS = ("k8s.v1.cni.cncf.io/", "v1.multus-cni.io/", "multus-py/", CONFIG_SOURCE)


class Record(Protocol):
    """What is stored of an object of any kind."""

    @property
    def namespace(self) -> str: ...  # noqa: D102  as in metadata
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> int: ...  # noqa: D102


class Page(NamedTuple):
    """Some of the objects of a list, and the resourceVersion of the whole list."""

    items: list[Mapping[str, Any]]
    version: str


@dataclass(frozen=True)
class Collection(Generic[T]):
    """All objects of one kind in all namespaces, or those of them that the field *selector* names.

    *limit* is the number of objects of a page: a page is in memory completely before it is reduced.
    """

    noun: str
    path: str
    resource: str
    limit: int
    read: Callable[[Mapping[str, Any], str], T]
    selector: str = ""

    def request(self, verb: str, **query: str) -> Request:
        """Return the request to list or to watch (the *verb*)."""
        query |= {"fieldSelector": self.selector} if self.selector else {}
        return Request("GET", f"{self.path}?{urlencode(query)}", f"{verb} the {self.noun}", f"{verb} {self.resource}")

    def pages(self, send: Send) -> Iterator[Page]:
        """List the collection page by page; `Expired` when a page is requested too late.

        The version is left to the server, which then answers with what is newest: an older state could lack a pod that
        runs.
        """
        query = {"limit": str(self.limit)}
        while True:
            request = self.request("list", **query)
            body = send(request)
            about, items = body.get("metadata"), body.get("items")
            if not isinstance(about, Mapping) or not isinstance(items, list):
                raise Retryable(f"cannot {request.doing}: the API server answered with what is not a list")
            yield Page([each for each in items if isinstance(each, Mapping)], _text(about, "resourceVersion"))
            if not (following := _text(about, "continue")):
                return
            query["continue"] = following


def pods_of(node: str) -> Collection[Pod]:
    """Return the collection of the pods that are bound to *node*, of all pods when that is ""."""
    selector = f"spec.nodeName={node}" if node else ""
    return Collection("pods of this node", "/api/v1/pods", "pods", 100, read_pod, selector)


def all_definitions() -> Collection[NetworkDefinition]:
    """Return the collection of all NetworkAttachmentDefinitions."""
    resource = "network-attachment-definitions"
    return Collection(
        "NetworkAttachmentDefinitions",
        f"/apis/k8s.cni.cncf.io/v1/{resource}",
        f"{resource}.k8s.cni.cncf.io",
        500,
        read_definition,
    )


def pod_path(namespace: str, name: str, doing: str) -> str:
    """Return the path of a pod; `NotFound` when none can have this name."""
    return f"{_namespaced('/api/v1', namespace, name, doing)}/pods/{name}"


def definition_path(namespace: str, name: str, doing: str) -> str:
    """Return the path of a definition; `NotFound` when none can have this name."""
    base = _namespaced("/apis/k8s.cni.cncf.io/v1", namespace, name, doing)
    return f"{base}/network-attachment-definitions/{name}"


def events_path(namespace: str, name: str, doing: str) -> str:
    """Return the path where Events about an object of that namespace and name are created."""
    return f"{_namespaced('/api/v1', namespace, name, doing)}/events"


def _namespaced(base: str, namespace: str, name: str, doing: str) -> str:
    # Checked before it becomes a path: with an empty name the server would list them all.
    if not names.is_label(namespace) or not names.is_subdomain(name):
        raise NotFound(Code.INVALID_ENVIRONMENT, f"cannot {doing}: no object can have this name")
    return f"{base}/namespaces/{namespace}"


def read_pod(body: Mapping[str, Any], doing: str) -> Pod:
    """Return the pod; code 6 when the object is not one. Annotations of others are left out."""
    about, spec, status = _metadata(body, doing), _mapping(body, "spec"), _mapping(body, "status")
    return Pod(
        namespace=about["namespace"],
        name=about["name"],
        uid=_text(about, "uid"),
        annotations=_annotations(about),
        node=_text(spec, "nodeName"),
        phase=_text(status, "phase"),
        deleted=bool(about.get("deletionTimestamp")),
        host_network=spec.get("hostNetwork") is True,
        containers=tuple(
            _text(each, "name") for part in ("containers", "initContainers") for each in _items(spec, part)
        ),
        claims=tuple(
            Claim(_text(each, "name"), claim)
            # The claim is named by the pod, or, made from a template, by the status.
            for each in [*_items(spec, "resourceClaims"), *_items(status, "resourceClaimStatuses")]
            if (claim := _text(each, "resourceClaimName"))
        ),
        version=_version(about),
    )


def read_definition(body: Mapping[str, Any], doing: str) -> NetworkDefinition:
    """Return the definition; code 6 when the object is not one, code 7 when its config is not text."""
    about = _metadata(body, doing)
    config = _mapping(body, "spec").get("config") or ""
    if not isinstance(config, str):
        raise CniError(
            Code.INVALID_CONFIG,
            f"cannot {doing}: spec.config of {about['namespace']}/{about['name']} is not a string",
            "write the JSON as text: `config: |`",
        )
    return NetworkDefinition(about["namespace"], about["name"], config, _annotations(about), version=_version(about))


def _metadata(body: Mapping[str, Any], doing: str) -> Mapping[str, Any]:
    about = _mapping(body, "metadata")
    if not _text(about, "name") or not _text(about, "namespace"):
        raise CniError(Code.DECODE, f"cannot {doing}: the API server answered with an object that has no name")
    return about


def _mapping(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = body.get(key)
    return value if isinstance(value, Mapping) else {}


def _items(body: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = body.get(key)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    return value if isinstance(value, str) else ""


def _annotations(about: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in _mapping(about, "annotations").items() if key.startswith(_OURS)}


def _version(about: Mapping[str, Any]) -> int:
    return number(_text(about, "resourceVersion"))


def number(version: str) -> int:
    """Return a resourceVersion as a number, 0 when it is none (they are decimal since etcd 3, and comparable)."""
    return int(version) if version.isascii() and version.isdigit() else 0
