# SPDX-License-Identifier: Apache-2.0
"""ARCHITECTURE.md compared with the code: rooms, imports, third-party packages, the walk of one ADD."""

import ast
import base64
import http.client
import importlib
import json
import pkgutil
import re
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest
from stage import Stage, namespace

from multus_py.agent.concurrency.call_limits import CallLimits
from multus_py.agent.serving import api
from multus_py.agent.serving.metrics import Metrics
from multus_py.agent.serving.service import Service
from multus_py.cni.executables import Children
from multus_py.config.daemon import DaemonConfig
from multus_py.kernel import namespaces, wire
from multus_py.kube.manifests import Manifests

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "multus_py"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
_CELL = re.compile(r"`([^`]+)`")


def _table(heading: str) -> list[list[str]]:
    """Return the rows of the first table after a heading, without the two of its head."""
    after = TEXT.partition(f"\n{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)
    assert table, f"ARCHITECTURE.md has no table under {heading!r}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.group().splitlines()[2:]]


def _rooms() -> dict[str, tuple[str, str]]:
    """Return the rows of the table of rooms: package -> its floor, what it says."""
    rows = _table("## Rooms")
    return {_CELL.findall(room)[0].strip("/").replace("/", "."): (floor, words) for floor, room, words in rows}


@cache
def _modules() -> dict[str, ast.Module]:
    """Return all modules of the package by name, parsed."""
    found = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "delegates").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "multus_py" else ("multus_py", *parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


def _imports(module: str) -> Iterator[str]:
    """Yield the full names of the modules that a module imports, also inside functions."""
    modules = _modules()
    for node in ast.walk(modules[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules else str(node.module)


def _ours(module: str) -> set[str]:
    return {name for name in _imports(module) if name.partition(".")[0] == "multus_py" and name != "multus_py"}


def _room(module: str) -> str:
    """Return the most precise room of a module: `agent.serving` for multus_py.agent.serving.api."""
    rooms, parts = _rooms(), module.split(".")[1:]
    while parts and ".".join(parts) not in rooms:
        parts.pop()
    return ".".join(parts)


def _may_import(module: str, other: str) -> bool:
    """Tell whether *other* stands below *module*, or in the same room, whose groups may have floors of their own."""
    (mine, my_floor), (theirs, their_floor) = ((_room(name), _rooms()[_room(name)][0]) for name in (module, other))
    have_floors = "." in my_floor and "." in their_floor
    if mine == theirs or (mine.partition(".")[0] == theirs.partition(".")[0] and not have_floors):
        return True
    return float(their_floor) < float(my_floor)


def test_the_package_has_few_entries() -> None:
    """A stranger sees the whole house at one look."""
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 14


def test_the_table_of_rooms_is_the_tree() -> None:
    """Every package has a row and every row a package; each says what the package's own docstring says."""
    packages = {name.removeprefix("multus_py."): tree for name, tree in _modules().items() if name != "multus_py"}
    folders = {
        ".".join(path.parent.relative_to(ROOT if path.is_relative_to(ROOT / "delegates") else PACKAGE).parts)
        for path in [*PACKAGE.rglob("__init__.py"), *(ROOT / "delegates").rglob("__init__.py")]
    } - {""}
    table = {room: words for room, (_, words) in _rooms().items()}
    tree = {room: " ".join((ast.get_docstring(packages[room]) or "").split()) for room in folders}
    assert table == tree


@pytest.mark.parametrize("module", sorted(_modules().keys() - {"multus_py"}))
def test_a_module_imports_from_below(module: str) -> None:
    """No import leads upward; between two rooms of one floor there is none."""
    upward = [name for name in _ours(module) if not _may_import(module, name)]
    assert upward == [], f"{module} stands on floor {_rooms()[_room(module)][0]}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """The modules can be put in an order in which each imports only those before it."""
    graph = {module: _ours(module) - {module} for module in _modules()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


def test_a_third_party_package_is_imported_in_one_module() -> None:
    """Each has the row, and the module, that ARCHITECTURE.md says."""
    found: dict[str, set[str]] = {}
    for module in _modules():
        for name in _imports(module):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "multus_py":
                found.setdefault(top, set()).add(module.removeprefix("multus_py.").replace(".", "/") + ".py")
    table = {_CELL.findall(row[0])[0]: set(_CELL.findall(row[1])) for row in _table("## Third-party packages")}
    assert table == found


def _walk() -> list[str]:
    """Return the hops of the walk of one ADD: names of functions below multus_py, from the socket to the kernel."""
    return [_CELL.findall(row[1])[0] for row in _table("## The walk of one ADD")]


def test_the_walk_of_one_add_is_short() -> None:
    """From the socket to the kernel there are at most seven hops, each a function that exists."""
    assert 0 < len(_walk()) <= 7
    for hop in _walk():
        assert callable(pkgutil.resolve_name(f"multus_py.{hop}")), hop


def test_an_add_takes_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack of a real ADD at its first netlink request is the walk: the same functions, no module beside theirs."""
    stacks: list[list[tuple[str, str]]] = []
    request = wire.Socket.request

    def recorded(self: wire.Socket, kind: int, body: bytes, flags: int = 0) -> None:
        frames = [(frame.f_globals["__name__"], frame.f_code.co_qualname) for frame, _ in traceback.walk_stack(None)]
        stacks.append([frame for frame in reversed(frames) if frame[0].startswith("multus_py.")])
        request(self, kind, body, flags)

    monkeypatch.setattr(wire.Socket, "request", recorded)
    with namespace() as host, namespace() as pod:
        ipam = {"type": "host-local", "dataDir": str(tmp_path / "ipam"), "subnet": "10.88.0.0/24"}
        cluster = {"cniVersion": "1.0.0", "name": "cluster", "type": "bridge", "bridge": "br0", "ipam": ipam}
        stage = Stage(tmp_path, pod, {"delegates": [cluster]})
        stage.pod("p")
        namespaces.run_in(host, lambda: _add_through_the_socket(stage))
    stack = stacks[0]
    modules = [module.removeprefix("multus_py.") for module, _ in groupby(stack, key=itemgetter(0))]
    hops = [tuple(pkgutil.resolve_name(f"multus_py.{hop}").__module__.split(".", 1))[1] for hop in _walk()]
    assert modules[: len(hops)] == hops
    assert modules[len(hops)].startswith("kernel.")
    functions = {f"{module}.{name}".removeprefix("multus_py.") for module, name in stack}
    assert set(_walk()) <= functions


def _add_through_the_socket(stage: Stage) -> None:
    """Serve one ADD in this process, by threads that are in the calling thread's network namespace."""
    settings = {key: value for key, value in stage.config().items() if key not in ("cniVersion", "name", "type")}
    store = Manifests(stage.folder / "manifests", stage.folder / "pods")
    service = Service(DaemonConfig(overlay=settings), store, Children(), Metrics(), CallLimits(8, 8))
    service.serving.set()
    server = api.listen(stage.folder / "run" / "multus.sock", service, 8)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        call = stage.call("ADD", "p")
        config = base64.b64encode(json.dumps(dict(call.config)).encode()).decode()
        line = http.client.HTTPConnection("unix")
        line.sock = socket.socket(socket.AF_UNIX)
        line.sock.connect(str(stage.folder / "run" / "multus.sock"))
        line.request("POST", "/cni", json.dumps({"env": call.environment(), "config": config}))
        reply = line.getresponse()
        assert reply.status == 200, reply.read()
        line.close()
    finally:
        server.finish(5)


def test_every_package_can_be_imported() -> None:
    """No package depends on having been imported after another one."""
    for room in _rooms():
        assert importlib.import_module(f"multus_py.{room}").__doc__
