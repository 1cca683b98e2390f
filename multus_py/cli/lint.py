# SPDX-License-Identifier: Apache-2.0
"""Find what is wrong in definitions, pods and configs, and say where and what to write instead."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from multus_py.cli.positions import Spot, Text, value_at
from multus_py.cni import conflist, jsontext
from multus_py.cni.call import json_object
from multus_py.cni.conflist import Conflist
from multus_py.cni.errors import CniError
from multus_py.cni.text import one_line
from multus_py.config import selection
from multus_py.config.plugin import OUR_TYPES, delegates_to_us
from multus_py.config.validate import Place, Problem, problems
from multus_py.kube.manifests import SIZE_LIMIT, SUFFIXES, documents
from multus_py.kube.store import DEFAULT_NETWORK, DEFAULT_NETWORKS, NETWORKS
from multus_py.plan import capabilities

CONFIGS = (".conf", ".conflist")
DAEMON_CONFIG = "daemon-config.json"
OK, WRONG, USAGE = 0, 1, 2
# Where workloads keep the annotations of the pods that they make.
_TEMPLATES: tuple[Place, ...] = (("spec", "template"), ("spec", "jobTemplate", "spec", "template"))


# What it means when one of these lists in an element is empty.
_EMPTY = {
    "default-route": "the routes that the plugins set stay as they are",
    "ips": "the network's IPAM chooses",
    "portMappings": "no port leads to the pod",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong at a place of a file (counted from 1); a *note* does not make lint fail."""

    file: str
    line: int
    column: int
    message: str
    fix: str
    note: bool = False

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}:{self.column}: {'note: ' if self.note else ''}{self.message}"
        return one_line(f"{text}; {self.fix}" if self.fix else text)


@dataclass(frozen=True)
class _Named:
    """A network by name at a place of a file: a definition with its *conf*, or a pod's wish, what is *asked* of one."""

    namespace: str
    name: str
    text: Text
    spot: Spot
    conf: Conflist | None = None
    asked: selection.Selection | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name


@dataclass(frozen=True)
class _Report:
    """What one document or file yields."""

    findings: tuple[Finding, ...] = ()
    definitions: tuple[_Named, ...] = ()
    wishes: tuple[_Named, ...] = ()


def add_parser(commands: Any) -> None:
    """Add `lint` to the commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "lint",
        help="find what is wrong in definitions, pods and configs",
        description="Check manifests (.yaml, .yml, .json), CNI configs (.conf, .conflist) and daemon-config.json. "
        "Exit status: 0 fine, 1 something is wrong, 2 wrong usage.",
        epilog="example:\n  multus-py lint examples",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="FILE|DIR", type=Path)
    parser.add_argument("--json", action="store_true", help="print a list of findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the findings of all files."""
    if missing := [str(path) for path in args.paths if not path.exists()]:
        print(f"multus-py lint: no such file or folder: {', '.join(missing)}", file=sys.stderr)
        return USAGE
    found = findings(args.paths)
    if args.json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            print(finding)
    return WRONG if any(not finding.note for finding in found) else OK


def findings(paths: Iterable[Path]) -> list[Finding]:
    """Return what is wrong in the files, and between them, by file and place."""
    files = sorted({file for path in paths for file in _files(path)})
    reports = [report for file in files for report in _file(file)]
    found = [finding for report in reports for finding in report.findings]
    found += _between(reports, several=len(files) > 1)
    return sorted(dict.fromkeys(found), key=lambda finding: (finding.file, finding.line, finding.column))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        endings = (*SUFFIXES, *CONFIGS)
        # Of hidden files and folders nobody thinks when naming a folder.
        inside = (
            file for file in path.rglob("*") if not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        yield from (file for file in inside if file.name.endswith(endings) and file.is_file())
    else:
        yield path  # whatever it is called: it was named


def _file(path: Path) -> Iterator[_Report]:
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT + 1)
    except OSError as cause:
        yield _Report((Finding(str(path), 1, 1, f"cannot be read: {cause}", ""),))
        return
    if len(raw) > SIZE_LIMIT:
        yield _Report((Finding(str(path), 1, 1, f"larger than {SIZE_LIMIT} bytes", "split it"),))
        return
    text = Text(str(path), raw.decode("utf-8-sig", errors="replace"))
    try:
        raw.decode()
    except UnicodeDecodeError as cause:
        spot = text.at(len(raw[: cause.start].decode()))
        yield _Report((Finding(text.file, spot.line, spot.column, f"not UTF-8: {cause.reason}", "save it as UTF-8"),))
        return
    if path.name.endswith(CONFIGS) or path.name == DAEMON_CONFIG:
        yield _Report(tuple(_config(text, path.name)))
        return
    is_json = path.suffix == ".json"
    for document in documents(raw, is_json=is_json):
        if document.problem:
            yield _Report((Finding(text.file, document.line, document.column, document.problem, ""),))
        elif is_json and isinstance(document.body, Mapping) and "kind" not in document.body:
            yield _Report(tuple(_config(text, path.name)))
        else:
            yield from _objects(document.body, _Where(text, document.node, ()))


@dataclass(frozen=True)
class _Where:
    """A place in a document of a file: *root* is the document's YAML node, None when the file is JSON."""

    text: Text
    root: Any
    path: Place

    def at(self, path: Place, offset: int | None = None) -> Spot:
        """Return the spot of the value at *path* below this place, *offset* characters into it when it is a string."""
        return self.text.spot(self.root, (*self.path, *path), offset)

    def below(self, *path: str | int) -> "_Where":
        return _Where(self.text, self.root, (*self.path, *path))

    def finding(self, trouble: Problem, offset: int | None = None, base: Place = ()) -> Finding:
        """Return the finding for a trouble whose path begins at *base*."""
        spot = self.at(base if offset is not None else (*base, *trouble.path), offset)
        where = f"{trouble.where}: " if trouble.where else ""
        return Finding(self.text.file, spot.line, spot.column, where + trouble.message, trouble.fix, trouble.note)


def _objects(body: Any, where: _Where) -> Iterator[_Report]:
    if not isinstance(body, Mapping):
        return
    kind, items = body.get("kind"), body.get("items")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list):
        for n, item in enumerate(items):
            implied = {"kind": kind.removesuffix("List"), "apiVersion": body.get("apiVersion")}
            if isinstance(item, Mapping) and len(where.path) < 20:
                yield from _objects({**implied, **item}, where.below("items", n))
    elif kind == "NetworkAttachmentDefinition":
        yield _definition(body, where)
    elif kind == "Pod":
        yield _pod(body, where, _namespace(body))
    else:
        for path in _TEMPLATES:
            template = value_at(body, path)
            if isinstance(template, Mapping):
                yield _pod(template, where.below(*path), _namespace(body))


def _namespace(body: Mapping[str, Any]) -> str:
    return str(value_at(body, ("metadata", "namespace")) or "default")


def _pod(body: Mapping[str, Any], where: _Where, namespace: str) -> _Report:
    annotations = value_at(body, ("metadata", "annotations"))
    if annotations is None:
        return _Report()
    at = ("metadata", "annotations")
    if not isinstance(annotations, Mapping):
        return _Report((where.finding(Problem(at, "must be a mapping", "write key: value lines")),))
    found: list[Finding] = []
    wishes: list[_Named] = []
    for key in (NETWORKS, DEFAULT_NETWORK, DEFAULT_NETWORKS):
        text = annotations.get(key, "")
        if not isinstance(text, str):
            found.append(where.finding(Problem((*at, key), "must be a string", "put it in quotes")))
            continue
        if key == DEFAULT_NETWORKS:
            found += _declining(text, where.below(*at, key))
            continue
        # Multus looks for the default network in a namespace of its own, which the files do not tell.
        home = namespace if key == NETWORKS else ""
        troubled, chosen = _annotation(text, home, where.below(*at, key), key)
        found += troubled
        wishes += chosen if key == NETWORKS else ()
    return _Report(tuple(found), wishes=tuple(wishes))


def _declining(text: str, where: _Where) -> Iterator[Finding]:
    try:
        selection.declines_defaults(text)
    except selection.SelectionError as cause:
        yield where.finding(Problem((), cause.why, cause.details), cause.offset)


def _annotation(text: str, namespace: str, where: _Where, key: str) -> tuple[list[Finding], list[_Named]]:
    """Return the findings in an annotation and the networks that it names."""
    found = [where.finding(trouble, _offset(text, trouble.path)) for trouble in _element_problems(text)]
    if any(not finding.note for finding in found):
        return found, []
    try:
        parsed = selection.parse(text, namespace or "kube-system", key)
        if key == DEFAULT_NETWORK:
            selection.parse_default(text, "kube-system")
    except selection.SelectionError as cause:
        return [*found, where.finding(Problem((), cause.why, cause.details), cause.offset)], []
    return found, [
        _Named(wish.namespace, wish.name, where.text, where.at((), _wish_offset(text, n)), asked=wish)
        for n, wish in enumerate(parsed)
    ]


def _element_problems(text: str) -> list[Problem]:
    """Hold the JSON form against its schema; what is no JSON is the parser's business."""
    try:
        body = jsontext.parse(text) if any(sign in text for sign in '[{"') else None
    except json.JSONDecodeError:
        return []
    return [*problems(body, "networks"), *_empty_wishes(body)] if isinstance(body, list) else []


def _empty_wishes(body: list[Any]) -> Iterator[Problem]:
    """Find lists that look like a wish and are none."""
    for n, element in enumerate(body):
        for key, value in element.items() if isinstance(element, Mapping) else ():
            if value == [] and key in _EMPTY:
                yield Problem((n, key), f"an empty {key!r} asks for nothing: {_EMPTY[key]}", note=True)


def _wish_offset(text: str, n: int) -> int:
    if any(sign in text for sign in '[{"'):
        return selection.value_offsets(text).get((n, "name"), 0)
    start = sum(len(item) + 1 for item in text.split(",")[:n])
    return start + len(text[start:]) - len(text[start:].lstrip())


def _offset(text: str, path: Place) -> int:
    """Return where the value at *path* begins in valid JSON text, or the nearest one around it."""
    spots = selection.value_offsets(text)
    return next((spots[path[:n]] for n in range(len(path), -1, -1) if path[:n] in spots), 0)


def _definition(body: Mapping[str, Any], where: _Where) -> _Report:
    found = [where.finding(trouble) for trouble in problems(body, "definition")]
    name, config = value_at(body, ("metadata", "name")), value_at(body, ("spec", "config"))
    mine = _Named(_namespace(body), str(name), where.text, where.at(("metadata", "name")))
    if isinstance(config, Mapping):
        found = [finding for finding in found if "spec.config" not in finding.message]
        found.append(where.finding(Problem(("spec", "config"), "must be a string", "put the JSON under `config: |`")))
    elif isinstance(config, str) and config.strip():
        found += _network(config, where.below("spec", "config"), str(name))
        mine = replace(mine, conf=_conf(config, str(name)))
    return _Report(tuple(found), definitions=(mine,))


def _conf(text: str, name: str) -> Conflist | None:
    """Return the network that a definition's config describes, None when it cannot be read."""
    with suppress(CniError, ValueError, RecursionError):
        return conflist.parse({"cniVersion": "1.0.0", **json_object(text, name)}, name)
    return None


def _network(text: str, where: _Where, name: str) -> Iterator[Finding]:
    """Check the CNI config in the string at a place."""
    try:
        body = jsontext.parse(text)
    except json.JSONDecodeError as cause:
        yield where.finding(Problem((), f"not JSON: {cause.msg}", _advice(text, cause)), cause.pos)
        return
    found = problems(body, "network")
    if all(trouble.note for trouble in found):
        found += _unusable(body, name)
    for trouble in found:
        yield where.finding(trouble, _offset(text, trouble.path))


def _unusable(body: Mapping[str, Any], name: str) -> Iterator[Problem]:
    """Find what the schemas cannot say: what our own reading of the network refuses."""
    try:
        conflist.parse(body, name, "network")
    except CniError as cause:
        yield Problem((), cause.msg, cause.details)
    if delegates_to_us(body):
        yield Problem((), "the network would call multus-py again", "name the plugin that makes the interface")


def _advice(text: str, cause: json.JSONDecodeError) -> str:
    before = text[: cause.pos].rstrip()
    if before.endswith(",") and cause.pos < len(text) and text[cause.pos] in "}]":
        return "take away the comma before it"
    if cause.pos < len(text) and text[cause.pos] == "'":
        return 'JSON wants double quotes: "'
    return {"Expecting ',' delimiter": "a comma or a closing bracket is missing before it"}.get(cause.msg, "")


def _config(text: Text, name: str) -> Iterator[Finding]:
    """Check a file that is one JSON config."""
    try:
        body = jsontext.parse(text.content)
    except json.JSONDecodeError as cause:
        yield Finding(text.file, cause.lineno, cause.colno, f"not JSON: {cause.msg}", _advice(text.content, cause))
        return
    for trouble in _config_problems(_with_folder(body, Path(text.file)), name):
        spot = text.spot(None, trouble.path)
        where = f"{trouble.where}: " if trouble.where else ""
        yield Finding(text.file, spot.line, spot.column, where + trouble.message, trouble.fix, trouble.note)


def _with_folder(body: Any, path: Path) -> Any:
    """Return a list without plugins as one with a stand-in for those of the folder beside it (CNI 1.1), if it has any.

    The files there are linted on their own.
    """
    if path.suffix != ".conflist" or not isinstance(body, Mapping) or "type" in body or body.get("plugins"):
        return body
    name = str(body.get("name") or ".")
    loaded = body.get("loadOnlyInlinedPlugins") not in (True, "true") and "/" not in name
    there = loaded and any((path.parent / name).glob("*.conf"))
    return {**body, "plugins": [{"type": "in-the-folder"}]} if there else {"plugins": [], **body}


def _config_problems(body: Any, name: str) -> list[Problem]:
    if name == DAEMON_CONFIG:
        return problems(body, "daemon")
    if isinstance(body, Mapping) and body.get("type") in OUR_TYPES:
        return problems(body, "config")
    found = problems(body, "network")
    plugins = body.get("plugins") if isinstance(body, Mapping) else None
    for n, plugin in enumerate(plugins if isinstance(plugins, list) else ()):
        if isinstance(plugin, Mapping) and plugin.get("type") in OUR_TYPES:
            ours = problems(plugin, "config")
            found += [Problem(("plugins", n, *each.path), each.message, each.fix, each.note) for each in ours]
    return found


def _between(reports: list[_Report], several: bool) -> Iterator[Finding]:
    """Compare the definitions with each other and with what the pods ask for."""
    given: dict[tuple[str, str], _Named] = {}
    for definition in (each for report in reports for each in report.definitions):
        first = given.setdefault(definition.key, definition)
        if first is not definition:
            place = f"{first.text.file}:{first.spot.line}"
            yield _at(definition, f"{'/'.join(definition.key)} is also at {place}", "keep one of them")
    namespaces = {namespace for namespace, _ in given}
    for wish in (each for report in reports for each in report.wishes):
        yield from _unheard(wish, given.get(wish.key))
        if wish.key in given or not (several or given):
            continue
        near = get_close_matches(wish.name, [name for namespace, name in given if namespace == wish.namespace], 1)
        elsewhere = [namespace for namespace, name in given if name == wish.name]
        fix = f"did you mean {near[0]!r}?" if near else ""
        if elsewhere:
            fix = f"did you mean {elsewhere[0]}/{wish.name}?"
        message = f"no definition {wish.name!r} in namespace {wish.namespace!r} among these files"
        yield _at(wish, message, fix, note=wish.namespace not in namespaces)


def _unheard(wish: _Named, definition: _Named | None) -> Iterator[Finding]:
    """Find what a pod asks of a network whose plugins would not be told."""
    if definition and definition.conf:
        try:
            capabilities.refuse_undeliverable("/".join(wish.key), definition.conf, wish.asked)
        except CniError as cause:
            yield _at(wish, cause.msg, cause.details)


def _at(named: _Named, message: str, fix: str, note: bool = False) -> Finding:
    return Finding(named.text.file, named.spot.line, named.spot.column, message, fix, note)
