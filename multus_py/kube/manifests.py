# SPDX-License-Identifier: Apache-2.0
"""A folder of YAML and JSON manifests as the store: no cluster is needed.

What a cluster stores, statuses and Events, is written to files in a second folder.
"""

import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from multus_py.cni import jsontext, names
from multus_py.cni.errors import CniError, Code
from multus_py.cni.jsontext import DEPTH_LIMIT, TOO_DEEP
from multus_py.cni.text import one_line
from multus_py.kube.pod_files import Event, PodFiles
from multus_py.kube.store import NETWORK_STATUS, Device, NetworkDefinition, NotFound, Pod, PodRef

SUFFIXES = (".yaml", ".yml", ".json")
SIZE_LIMIT = 16 * 1024 * 1024  # bytes of one manifest that we are ready to read
_GROUP = "k8s.cni.cncf.io/"
_KINDS = {Pod: "Pod", NetworkDefinition: "NetworkAttachmentDefinition"}
T = TypeVar("T", Pod, NetworkDefinition)


@dataclass(frozen=True)
class Document:
    """One document of a file: *body* as plain values, or the *problem* that kept it from being read; lines from 1.

    *node* is its PyYAML node (None in a .json file): *id* is "scalar", "sequence" or "mapping", *start_mark* its place.
    """

    body: Any = None
    line: int = 1
    column: int = 1
    problem: str = ""
    node: Any = None


@dataclass(frozen=True)
class _Object:
    """A pod or a definition of a file, or the error that is raised when it is read."""

    kind: str
    namespace: str
    name: str
    place: str
    value: Pod | NetworkDefinition | CniError


@dataclass(frozen=True)
class _File:
    """One file of the folder as it was when its *stamp* (inode, size, time of change) was taken."""

    path: Path
    stamp: tuple[int, ...] = ()
    raw: bytes = b""
    unreadable: str = ""

    def may_hold(self, name: str) -> bool:
        """Tell whether an object of that *name* could be in this file, without parsing it."""
        # A backslash may hide a name: both JSON and YAML have escapes for letters.
        return bool(self.unreadable) or name.encode() in self.raw or b"\\" in self.raw

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """The file's documents; parsed at the first use, since most files are never asked."""
        return tuple(documents(self.raw, is_json=self.path.suffix == ".json"))

    @cached_property
    def objects(self) -> tuple[_Object, ...]:
        """The pods and definitions in the file, the malformed ones too."""
        return tuple(
            _object(body, f"{self.path}:{document.line}")
            for document in self.documents
            for body in _items(document.body)
            if _kind(body)
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """What of this file could not be read, each with its place."""
        if self.unreadable:
            return (f"{self.path}: {self.unreadable}",)
        return tuple(
            f"{self.path}:{document.line}: {document.problem}" for document in self.documents if document.problem
        )


class Manifests:
    """The manifests under *folder* (subfolders too; it may also be one file); *state* is where we may write.

    A file that cannot be read hides nothing but itself: it is named when an object is not found that it could hold.
    Nothing is stored between processes; within one process a file is read again when it changed.
    """

    def __init__(self, folder: Path, state: Path, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._pod_files = PodFiles(state)
        self._now = now
        self._files: dict[Path, _File] = {}

    def pod(self, ref: PodRef) -> Pod:
        """Return the pod with its published status among the annotations."""
        return self._with_status(self._one(Pod, ref.namespace, ref.name, Code.INVALID_ENVIRONMENT))

    def definition(self, namespace: str, name: str) -> NetworkDefinition:
        """Return the definition; `NotFound` when no manifest holds it, code 7 when two do or it is malformed."""
        return self._one(NetworkDefinition, namespace, name, Code.INVALID_CONFIG)

    def pods(self) -> list[Pod]:
        """Return all pods that can be read, by namespace and name."""
        return [self._with_status(pod) for pod in self._all(Pod)]

    def definitions(self) -> list[NetworkDefinition]:
        """Return all definitions that can be read, by namespace and name."""
        return self._all(NetworkDefinition)

    def problems(self) -> list[str]:
        """Return what could not be read in the folder, each with its place, and what is defined twice."""
        files = self._scan()
        found_problems = [problem for file in files for problem in file.problems]
        seen: dict[tuple[str, str, str], _Object] = {}
        for found in (found for file in files for found in file.objects):
            if isinstance(found.value, CniError):
                found_problems.append(str(found.value))
            first = seen.setdefault((found.kind, found.namespace, found.name), found)
            if first is not found:
                found_problems.append(f"{found.place}: {_label(found)} is also at {first.place}")
        return found_problems

    def claimed(self, pod: Pod) -> tuple[Device, ...]:  # noqa: ARG002  the seam's shape
        """Return nothing: a folder has no allocated claims."""
        return ()

    def publish_status(self, pod: Pod, text: str) -> None:
        """Keep the network-status of *pod*; `NotFound` when its manifest is gone or has another uid."""
        now = self._one(Pod, pod.namespace, pod.name, Code.INVALID_ENVIRONMENT)
        if pod.uid and now.uid and pod.uid != now.uid:
            raise NotFound(
                Code.INVALID_ENVIRONMENT,
                f"cannot publish the network-status of pod {pod.ref}: it was replaced, uid {pod.uid} is now {now.uid}",
            )
        self._pod_files.write_status(now.ref, text)

    def event(self, pod: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Keep an Event about *pod*."""
        self._pod_files.append_event(pod.ref, Event(kind, reason, one_line(message), self._now()))

    def events(self, ref: PodRef) -> list[Event]:
        """Return the Events about a pod, oldest first."""
        return self._pod_files.events(ref)

    def forget(self, ref: PodRef) -> None:
        """Drop the status and the Events of the pod, unless they belong to a newer one of the same name."""
        self._pod_files.remove(ref)

    def _one(self, wanted: type[T], namespace: str, name: str, code: Code) -> T:
        files = [file for file in self._scan() if file.may_hold(name)]
        sought = (_KINDS[wanted], namespace, name)
        found = [each for file in files for each in file.objects if (each.kind, each.namespace, each.name) == sought]
        if len(found) > 1:
            raise CniError(
                Code.INVALID_CONFIG,
                f"{_label(found[0])} is there more than once: {', '.join(each.place for each in found)}",
                "keep one of them",
            )
        for each in found:
            if isinstance(each.value, CniError):
                raise each.value.with_context(f"cannot read {_label(each)}")
            if isinstance(each.value, wanted):
                return each.value
        raise NotFound(
            code,
            f"{_KINDS[wanted]} {namespace}/{name} is not among the manifests in {self._folder}",
            "; ".join(self._folder_problem() + [problem for file in files for problem in file.problems]),
        )

    def _all(self, wanted: type[T]) -> list[T]:
        found = [each.value for file in self._scan() for each in file.objects if isinstance(each.value, wanted)]
        return sorted(found, key=lambda each: (each.namespace, each.name))

    def _folder_problem(self) -> list[str]:
        return [] if self._folder.exists() else [f"{self._folder} does not exist"]

    def _scan(self) -> list[_File]:
        """Read what is new or changed under the folder, and return all files by path."""
        self._files = {path: self._refreshed(path) for path in _paths(self._folder)}
        return list(self._files.values())

    def _refreshed(self, path: Path) -> _File:
        try:
            info = path.stat()
            if not stat.S_ISREG(info.st_mode):
                return _File(path, unreadable="not a regular file")
            if info.st_size > SIZE_LIMIT:
                return _File(path, unreadable=f"larger than {SIZE_LIMIT} bytes")
            stamp = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
            before = self._files.get(path)
            return before if before and before.stamp == stamp else _File(path, stamp, path.read_bytes())
        except OSError as cause:
            return _File(path, unreadable=cause.strerror or str(cause))

    def _with_status(self, pod: Pod) -> Pod:
        uid, text = self._pod_files.status(pod.ref)
        return replace(pod, annotations={**pod.annotations, NETWORK_STATUS: text}) if text and uid == pod.uid else pod


def documents(raw: bytes, *, is_json: bool) -> Iterator[Document]:
    """Parse a file's text; a document that cannot be read is yielded with its problem, and nothing is raised."""
    return iter([_json_document(raw)]) if is_json else _yaml_documents(raw)


def _json_document(raw: bytes) -> Document:
    try:
        return Document(jsontext.parse(raw)) if raw.strip() else Document()
    except json.JSONDecodeError as cause:
        return Document(line=cause.lineno, column=cause.colno, problem=f"not JSON: {cause.msg}")


def _yaml_documents(raw: bytes) -> Iterator[Document]:
    # Imported here: it costs 20 ms, and a process that finds no YAML file to read never pays.
    import yaml

    # Without the C parser a file takes ten times longer; the same documents come out.
    parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        loader = _telling_places(parser(raw))
        if _may_be_deep(raw) and (mark := _too_deep(parser(raw))):
            yield Document(line=mark.line + 1, column=mark.column + 1, problem=TOO_DEEP)
            return
        while loader.check_node():
            yield _constructed(loader, loader.get_node())
    except yaml.reader.ReaderError as cause:
        yield _unreadable(raw, cause)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:
        yield _yaml_trouble(cause)


def _may_be_deep(raw: bytes) -> bool:
    """Tell whether there could be more levels than `DEPTH_LIMIT`: small and flat documents are not parsed twice."""
    # Of the two halves one comes from signs within lines, one from indentation: a column has two levels at most.
    signs = sum(raw.count(sign) for sign in (b"[", b"{", b"- ", b"-\t", b"? ", b"?\t"))
    return signs > DEPTH_LIMIT // 2 or b" " * (DEPTH_LIMIT // 4) in raw


def _too_deep(loader: Any) -> Any:
    """Return the mark where the nesting goes beyond `DEPTH_LIMIT`, None when it does not.

    Parsers that build their nodes by recursion on the C stack have no limit, or another: the process would die.
    """
    import yaml

    depth = 0
    try:
        while loader.check_event():
            event = loader.get_event()
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH_LIMIT:
                return event.start_mark
    except yaml.YAMLError:
        return None  # reported, with its place, when the document is parsed
    return None


def _telling_places(loader: Any) -> Any:
    """Have the *loader* say of each value that it cannot make where the value stands."""
    import yaml

    construct = loader.construct_object

    def placed(node: Any, deep: bool = False) -> Any:
        try:
            return construct(node, deep)
        # The package lets through what Python's own types raise for a text that they cannot take.
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as cause:
            shown = f"{node.value[:40]!r}" if isinstance(node.value, str) else "what stands here"
            why = f"{shown} is not a valid {node.tag.rpartition(':')[2]}, put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, why, node.start_mark) from cause

    loader.construct_object = placed
    return loader


def _constructed(loader: Any, node: Any) -> Document:
    import yaml

    line, column = node.start_mark.line + 1, node.start_mark.column + 1
    try:
        return Document(loader.construct_document(node), line, column, node=node)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as cause:
        return _yaml_trouble(cause, line, column)


def _unreadable(raw: bytes, cause: Any) -> Document:
    """Return the problem of a character that YAML does not allow; its place is given as an offset."""
    # The C parser counts bytes; the other one, too, as long as it decodes, and characters afterwards.
    decoded = cause.encoding == "unicode"
    before = (
        raw.decode(errors="replace")[: cause.position] if decoded else raw[: cause.position].decode(errors="replace")
    )
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    return Document(line=line, column=column, problem=f"not YAML: {cause.reason}")


def _yaml_trouble(cause: Exception, line: int = 1, column: int = 1) -> Document:
    mark = getattr(cause, "problem_mark", None)
    why = getattr(cause, "problem", None) or str(cause)
    place = (mark.line + 1, mark.column + 1) if mark else (line, column)
    return Document(line=place[0], column=place[1], problem=f"not YAML: {why}")


def _items(body: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a document: itself, or the items of a List (which may leave their own kind out)."""
    if not isinstance(body, Mapping):
        return
    kind, items = body.get("kind"), body.get("items")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list):
        implied = {"kind": kind.removesuffix("List"), "apiVersion": body.get("apiVersion")}
        for item in items:
            yield from _items({**implied, **item} if isinstance(item, Mapping) else None)
    else:
        yield body


def _kind(body: Mapping[str, Any]) -> str:
    """Return the kind when it is one that we read, "" for all others."""
    kind, group = body.get("kind"), str(body.get("apiVersion"))
    ours = (kind == "Pod" and group == "v1") or (kind == "NetworkAttachmentDefinition" and group.startswith(_GROUP))
    return str(kind) if ours else ""


def _object(body: Mapping[str, Any], place: str) -> _Object:
    kind = _kind(body)
    metadata = body.get("metadata")
    about = metadata if isinstance(metadata, Mapping) else {}
    namespace, name = about.get("namespace") or "default", about.get("name")
    try:
        value: Pod | NetworkDefinition | CniError = _READERS[kind](_checked(namespace, name, about), body)
    except CniError as problem:
        value = problem.with_context(place)
    return _Object(kind, str(namespace), str(name), place, value)


def _checked(namespace: Any, name: Any, about: Mapping[str, Any]) -> Pod:
    """Return the metadata, whatever kind it is of, in the shape of a pod's."""
    if not isinstance(name, str) or not names.is_subdomain(name):
        raise CniError(
            Code.INVALID_CONFIG, f"metadata.name {name!r} is not a name", "lower-case letters, digits, '-', '.'"
        )
    if not isinstance(namespace, str) or not names.is_label(namespace):
        raise CniError(
            Code.INVALID_CONFIG, f"metadata.namespace {namespace!r} is not a name", "lower-case letters, digits, '-'"
        )
    annotations = about.get("annotations") or {}
    if not isinstance(annotations, Mapping):
        raise CniError(Code.INVALID_CONFIG, "metadata.annotations is not a mapping", "write key: value lines")
    for key, value in annotations.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise CniError(Code.INVALID_CONFIG, f"annotation {key!r} is not a string", "put it in quotes")
    uid = about.get("uid")
    return Pod(namespace, name, uid if isinstance(uid, str) else "", dict(annotations))


def _pod(about: Pod, body: Mapping[str, Any]) -> Pod:
    spec = body.get("spec")
    node = spec.get("nodeName") if isinstance(spec, Mapping) else None
    return replace(about, node=node if isinstance(node, str) else "")


def _definition(about: Pod, body: Mapping[str, Any]) -> NetworkDefinition:
    spec = body.get("spec") or {}
    if not isinstance(spec, Mapping):
        raise CniError(Code.INVALID_CONFIG, "spec is not a mapping", "put the JSON under it: `config: |`")
    config = spec.get("config")
    if config is not None and not isinstance(config, str):
        raise CniError(Code.INVALID_CONFIG, "spec.config is not a string", "write the JSON as text: `config: |`")
    return NetworkDefinition(about.namespace, about.name, config or "", about.annotations)


_READERS: Mapping[str, Callable[[Pod, Mapping[str, Any]], Pod | NetworkDefinition]] = {
    "Pod": _pod,
    "NetworkAttachmentDefinition": _definition,
}


def _label(found: _Object) -> str:
    return f"{found.kind} {found.namespace}/{found.name}"


def _paths(folder: Path) -> list[Path]:
    """List the manifests under *folder*, by path; hidden files and folders are left out."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        # A mounted ConfigMap keeps its files a second time under a hidden name.
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in files if name.endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(found) if found or not folder.is_file() else [folder]
