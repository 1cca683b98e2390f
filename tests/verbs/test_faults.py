# SPDX-License-Identifier: Apache-2.0
"""A fault at every step: whatever fails or dies in the middle, after DEL (or a retry and DEL) nothing is left.

The steps are found, not listed: a child process counts the calls that touch the world (writes, renames, locks, netlink
messages, new processes) and is killed just before the n-th, for every n. Links, addresses and files are real.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import killed_before
from running import until
from stage import Stage, namespace

from multus_py.cni.errors import CniError
from multus_py.kernel import namespaces, netlink

CONTAINER = "fault1"


@pytest.fixture
def stage(tmp_path):
    """A host and a pod; a bridge as default network with a scripted plugin behind it, a bridge and a macvlan more."""
    with namespace() as host, namespace() as pod:
        ipam = {"type": "host-local", "dataDir": str(tmp_path / "ipam")}
        cluster = {
            "cniVersion": "1.0.0", "name": "cluster",
            "plugins": [{"type": "bridge", "bridge": "br0", "isGateway": True, "isDefaultGateway": True,
                         "ipam": {**ipam, "subnet": "10.88.0.0/24"}}, {"type": "scripted"}],
        }  # fmt: skip
        stage = Stage(tmp_path, pod, {"delegates": [cluster], "host": host})
        stage.plugins.plugin("scripted")
        stage.definition("b", {"cniVersion": "1.0.0", "type": "bridge", "bridge": "br1", "isGateway": True,
                               "ipam": {**ipam, "subnet": "10.89.0.0/24"}})  # fmt: skip
        stage.definition("m", {"cniVersion": "0.4.0", "type": "macvlan", "master": "br1",
                               "ipam": {"type": "static", "addresses": [{"address": "10.90.0.5/24"}]}})  # fmt: skip
        stage.pod("p", '[{"name":"b","default-route":["10.89.0.1"]},{"name":"m"}]')
        namespaces.run_in(host, lambda: stage.run("ADD", "p", container="first"))  # the bridges are there from now on
        namespaces.run_in(host, lambda: stage.run("DEL", "p", container="first"))
        yield stage


def leftovers(stage: Stage) -> list[str]:
    """Return every link, address file, journal page, result, status and scripted marker of the sandbox that is left."""
    with netlink.open(stage.netns) as kernel:
        links = [link.name for link in kernel.links() if link.name != "lo"]
    with netlink.open(stage.settings["host"]) as kernel:
        links += [link.name for link in kernel.links() if link.name not in ("lo", "br0", "br1")]
    ipam = [path.name for path in (stage.folder / "ipam").rglob("*") if path.is_file()]
    kept = [name for name in ipam if not name.startswith(("lock", "last_reserved_ip", ".reserving"))]  # the pool's own
    return links + kept + [name for name in stage.left() if name != "events.jsonl"]


def told(stage: Stage, verb: str) -> str:
    """Run the handler of a verb in the host's namespace; return the error message, "" without one."""
    try:
        namespaces.run_in(stage.settings["host"], lambda: stage.run(verb, "p", container=CONTAINER))
    except CniError as error:
        return str(error)
    return ""


def orphans(stage: Stage) -> list[str]:
    """Return the processes that run an executable of the stage."""
    own = os.fsencode(stage.folder / "bin")
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if own in _read(path)]
    return [path.parent.name for path in running]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def every_kill(stage: Stage, verb: str, before: Callable[[], object], after: Callable[[], object]) -> int:
    """Kill *verb* before each of its deeds in turn; return how many there were."""
    n = 0
    while True:
        before()
        n += 1
        came_so_far = killed_before(n, lambda: told(stage, verb))
        until(lambda: not orphans(stage))  # an executable that a killed ADD left running may still do its deed
        after()
        assert [] == leftovers(stage), f"after a kill before deed {n} of {verb}"
        if not came_so_far:
            return n - 1


def nothing() -> None:
    """Do nothing."""


def kill_add(stage: Stage) -> None:
    """ADD dies at any step, the runtime sends DEL."""
    assert every_kill(stage, "ADD", nothing, lambda: _succeeds(stage, "DEL")) > 30


def kill_add_retry(stage: Stage) -> None:
    """ADD dies at any step, the runtime tries the same sandbox again, then sends DEL."""

    def after() -> None:
        _succeeds(stage, "ADD")
        _succeeds(stage, "DEL")

    assert every_kill(stage, "ADD", nothing, after) > 30


def kill_delete(stage: Stage) -> None:
    """DEL dies at any step, the runtime repeats it."""
    assert every_kill(stage, "DEL", lambda: _succeeds(stage, "ADD"), lambda: _succeeds(stage, "DEL")) > 10


def kill_delete_reboot(stage: Stage) -> None:
    """DEL dies at any step and then the machine: the namespace is gone when DEL comes again."""

    def after() -> None:
        _empty(stage)
        namespaces.run_in(stage.settings["host"], lambda: stage.run("DEL", "p", container=CONTAINER, netns=""))

    assert every_kill(stage, "DEL", lambda: _succeeds(stage, "ADD"), after) > 10


def _empty(stage: Stage) -> None:
    with netlink.open(stage.netns) as kernel:
        for link in kernel.links():
            if link.name != "lo":
                kernel.delete_link(link.index)


def _succeeds(stage: Stage, verb: str) -> None:
    assert "" == told(stage, verb)


def _fails(stage: Stage, verb: str, words: str) -> None:
    assert words in told(stage, verb)


def _delegate_fails(name: str) -> Callable[[Stage], None]:
    def fault(stage: Stage) -> None:
        plugin = {"type": "scripted", "cniVersion": "1.0.0"}
        stage.plugins.plugin("scripted", ADD={"error": {"code": 100, "msg": "scripted no"}})
        if name != "first":
            cluster = {**stage.settings["delegates"][0]}
            cluster["plugins"] = cluster["plugins"][:1]
            stage.settings["delegates"] = [cluster]
            stage.definition("s", plugin)
            order = {"second": "s,b,m", "third": "b,s,m", "last": "b,m,s"}[name]
            stage.pod("p", order)
        _fails(stage, "ADD", "scripted no")
        assert [] == leftovers(stage)  # taken back at once, before any DEL
        _succeeds(stage, "DEL")

    return fault


def _unknown_gateway(stage: Stage) -> None:
    stage.pod("p", '[{"name":"b","default-route":["192.0.2.1"]}]')
    _fails(stage, "ADD", "192.0.2.1")


def _status_fails(stage: Stage) -> None:
    """The place where the status is written is no folder."""
    pods = stage.folder / "cni" / "pods"
    for path in sorted(pods.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    pods.rmdir()
    pods.write_text("")
    assert told(stage, "ADD")
    assert [] == leftovers(stage)
    pods.unlink()


def _pool_is_empty(stage: Stage) -> None:
    ipam = {"type": "host-local", "dataDir": str(stage.folder / "ipam"), "subnet": "10.91.0.0/30",
            "rangeStart": "10.91.0.2", "rangeEnd": "10.91.0.2"}  # fmt: skip
    stage.definition("t", {"cniVersion": "1.0.0", "type": "bridge", "bridge": "br1", "ipam": ipam})
    stage.pod("p", "b,t,t")
    _fails(stage, "ADD", "10.91.0")


def _interface_is_taken(stage: Stage) -> None:
    with netlink.open(stage.netns) as kernel:
        kernel.create_bridge("net2")
    _fails(stage, "ADD", "net2")
    with netlink.open(stage.netns) as kernel:
        kernel.delete_link(kernel.link("net2").index)


def _journal_unwritable(stage: Stage) -> None:
    (stage.folder / "cni" / "attachments").rmdir()
    (stage.folder / "cni" / "attachments").write_text("")
    _fails(stage, "ADD", "journal")
    (stage.folder / "cni" / "attachments").unlink()


def _namespace_emptied(stage: Stage) -> None:
    """The sandbox's links vanish on their own, as when the namespace was deleted; DEL comes with none."""
    _succeeds(stage, "ADD")
    _empty(stage)
    namespaces.run_in(
        stage.settings["host"], lambda: stage.run("DEL", "p", container=CONTAINER, netns="/run/netns/mpt-gone")
    )


DAMAGES = {"empty": "", "null": "null", "list": "[]", "truncated": None, "binary": "\x00\xff{", "changed": "changed"}


def _damaged(folder: str, damage: str) -> Callable[[Stage], None]:
    def fault(stage: Stage) -> None:
        _succeeds(stage, "ADD")
        for path in (stage.folder / "cni" / folder).iterdir():
            text = path.read_text()
            harm = text[: len(text) // 2] if DAMAGES[damage] is None else DAMAGES[damage]
            path.write_text(text.replace("10.88", "10.99") if damage == "changed" else str(harm))
        _succeeds(stage, "DEL")

    return fault


def _both_damaged(stage: Stage) -> None:
    """Neither journal nor results can be read: the plan is made again from the pod."""
    _succeeds(stage, "ADD")
    for folder in ("attachments", "results"):
        for path in (stage.folder / "cni" / folder).iterdir():
            path.write_text("")
    _succeeds(stage, "DEL")


def _damaged_and_definitions_gone(stage: Stage) -> None:
    """The journal is damaged and nobody knows the networks any more: the results do."""
    _succeeds(stage, "ADD")
    for path in (stage.folder / "cni" / "attachments").iterdir():
        path.write_text("")
    for path in (stage.folder / "manifests").iterdir():
        path.unlink()
    _succeeds(stage, "DEL")


FAULTS: dict[str, Callable[[Stage], None]] = {
    "kill at every step of ADD, then DEL": kill_add,
    "kill at every step of ADD, then ADD and DEL": kill_add_retry,
    "kill at every step of DEL, then DEL": kill_delete,
    "kill at every step of DEL, then a reboot": kill_delete_reboot,
    **{f"the {name} network's plugin fails": _delegate_fails(name) for name in ("first", "second", "third", "last")},
    "the default route cannot be set": _unknown_gateway,
    "the status cannot be written": _status_fails,
    "the address pool is empty": _pool_is_empty,
    "the interface name is taken": _interface_is_taken,
    "the journal cannot be written": _journal_unwritable,
    "the namespace is gone at DEL": _namespace_emptied,
    **{f"the journal is {damage}": _damaged("attachments", damage) for damage in DAMAGES},
    **{f"the results are {damage}": _damaged("results", damage) for damage in DAMAGES},
    "journal and results are damaged": _both_damaged,
    "the journal is damaged, the definitions gone": _damaged_and_definitions_gone,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_left_after_a_fault_and_delete(stage, fault):
    """Each fault, then DEL: no link, no address, no file."""
    FAULTS[fault](stage)
    stage.plugins.plugin("scripted")
    _succeeds(stage, "DEL")
    assert [] == leftovers(stage)
    assert not list(Path(stage.folder / "cni").glob("attachments/*"))


def test_a_whole_attachment_would_be_seen(stage):
    """The search for leftovers can fail: after ADD it finds links, addresses, a page and results."""
    _succeeds(stage, "ADD")
    found = leftovers(stage)
    assert {"eth0", "net1", "net2", f"{CONTAINER}@eth0", f"scripted@{CONTAINER}@eth0"} <= set(found)
    assert 2 == len([name for name in found if name.startswith("10.")])
    status = json.loads(next((stage.folder / "cni/pods").rglob("status.json")).read_text())
    assert status
