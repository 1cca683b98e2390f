# SPDX-License-Identifier: Apache-2.0
"""Taking down, with any journal entry and delegates that raise anything: all is tried, what failed remains."""

import itertools
import json
import shutil
from binascii import crc32
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hostile import ERRORS, VALUES, Faulty, near, rounds
from hypothesis import given
from hypothesis import strategies as st
from stage import Stage

from multus_py.agent.reconciling import reconciler
from multus_py.cni import conflist
from multus_py.cni.errors import try_step
from multus_py.plan.attachment import Attachment
from multus_py.state.journal_entry import Entry, Failure, Progress, boot_id
from multus_py.state.spool import Spool, Tombstone
from multus_py.verbs import teardown
from multus_py.verbs.node import Node

_CONTAINERS = (f"c{n}" for n in itertools.count())
DELS = st.none() | st.sampled_from(sorted(ERRORS))
CHAINS = st.lists(DELS, min_size=1, max_size=3)  # what DEL of each plugin raises


@pytest.fixture
def stage(tmp_path: Path, faulty: Faulty) -> Stage:
    """Return a node whose one plugin raises what its config says."""
    return Stage(tmp_path, "", {"delegates": [{"cniVersion": "1.0.0", "name": "d", "type": "faulty"}]})


def _attachment(ifname: str, chain: list[str | None]) -> Attachment:
    plugins = [
        {"type": "faulty", "mark": f"{ifname}.{n}", "raises": {"DEL": error} if error else {}}
        for n, error in enumerate(chain)
    ]
    body = {"cniVersion": "1.0.0", "name": f"n-{ifname}", "plugins": plugins}
    return Attachment(f"default/{ifname}", conflist.parse(body), ifname, primary=ifname == "eth0")


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Draw what the journal may hold of a sandbox whose namespace is gone: any progress, any failures."""
    attachments = tuple(_attachment(f"net{n}", chain) for n, chain in enumerate(draw(st.lists(CHAINS, max_size=4))))
    progress = {}
    for one in attachments:
        begun = draw(st.integers(0, len(one.conflist.plugins)))
        progress[one.ifname] = Progress(begun, draw(st.integers(0, begun)))
    failures = tuple(
        Failure(_attachment(f"old{n}", chain), draw(st.integers(0, len(chain))), "r", draw(st.integers(1, 12)))
        for n, chain in enumerate(draw(st.lists(CHAINS, max_size=3)))
    )
    container = next(_CONTAINERS)
    return Entry("mp", container, "eth0", "/run/netns/mpt-gone", attachments, None, boot_id(), progress, failures)


def _fails(attachment: Attachment, plugins: range) -> bool:
    return any(attachment.conflist.plugins[n]["raises"] for n in plugins)


@dataclass(frozen=True)
class Left:
    """What has to be left of a sandbox: attachments that somebody waits for, failures that nobody does."""

    owed: tuple[str, ...]
    failed: tuple[str, ...]
    asked: tuple[str, ...]  # the marks of the plugins that are asked

    def agrees(self, entry: Entry | None) -> bool:
        """Tell whether a page says just that."""
        if entry is None:
            return not (self.owed or self.failed)
        owed = tuple(one.ifname for one in entry.attachments)
        return (owed, tuple(one.attachment.ifname for one in entry.failures)) == (self.owed, self.failed)


def _model(entry: Entry, kept: frozenset[str], *, lives: bool) -> Left:
    """Say what DEL has to leave; *kept* are the interfaces that a result is kept for."""
    owed, failed, asked = [], [], []
    for one in entry.attachments:
        whole = one.ifname in kept
        begun = len(one.conflist.plugins) if whole else entry.progress_of(one).begun
        done = begun if whole else entry.progress_of(one).done if lives else 0
        asked += [plugin["mark"] for plugin in one.conflist.plugins[:begun]]
        if _fails(one, range(done)):
            owed.append(one.ifname)
        elif _fails(one, range(begun)):
            failed.insert(0, one.ifname)
    again = [one for one in entry.failures if not one.is_final]
    asked += [plugin["mark"] for one in again for plugin in one.attachment.conflist.plugins[: one.begun]]
    old = [one.attachment.ifname for one in entry.failures if one.is_final or _fails(one.attachment, range(one.begun))]
    return Left(tuple(owed), (*old, *failed), tuple(sorted(asked)))


def _keep_results(entry: Entry, kept: frozenset[str], node: Node) -> None:
    for one in entry.attachments:
        if one.ifname in kept:
            node.chain.cache.store(one, entry.container_id, entry.netns, {"cniVersion": "1.0.0"})


KEPT = st.frozensets(st.sampled_from(("net0", "net1", "net2", "net3")))


@given(entry=entries(), kept=KEPT, lives=st.booleans())
@rounds(120)
def test_what_remains_is_what_failed(
    stage: Stage, faulty: Faulty, entry: Entry, kept: frozenset[str], lives: bool
) -> None:
    """Every plugin that was begun is asked whatever the others raise; what came to be and failed stays, and is told."""
    faulty.asked.clear()
    node, left = stage.node(), _model(entry, kept, lives=lives)
    _keep_results(entry, kept, node)
    call = stage.call("DEL", container=entry.container_id, netns="/proc/self/ns/net" if lives else "")
    with node.journal.lock_sandbox(entry.container_id, entry.ifname) as page:
        page.write(entry)
        trouble = try_step(lambda: teardown.detach_sandbox(page, call, node))
        there = page.entry
        page.clear()
    assert tuple(sorted(mark for _, mark in faulty.asked)) == left.asked
    assert bool(trouble) == bool(left.owed)
    assert left.agrees(there)
    shutil.rmtree(node.chain.cache.folder, ignore_errors=True)


@given(several=st.lists(entries(), min_size=1, max_size=3), kept=KEPT)
@rounds(60)
def test_the_reconciler_finishes_its_round(stage: Stage, several: list[Entry], kept: frozenset[str]) -> None:
    """One round releases every sandbox as far as it goes, whatever a delegate raises, and ends without an error."""
    node = stage.node()
    for entry in several:
        _keep_results(entry, kept, node)
        with node.journal.lock_sandbox(entry.container_id, entry.ifname) as page:
            page.write(entry)
    looker = reconciler.Reconciler(Spool(stage.folder / "spool"), lambda tombstone: None, lambda what: None)
    looker.release_dead(node)
    for entry in several:
        left = _model(entry, kept if entry.attachments else frozenset(), lives=False)
        before = not entry.attachments and all(one.is_final for one in entry.failures)  # not looked at
        with node.journal.lock_sandbox(entry.container_id, "eth0") as page:
            assert left.agrees(page.entry) or (before and page.entry == entry)
            page.clear()
    shutil.rmtree(node.chain.cache.folder, ignore_errors=True)


ENTRY: dict[str, Any] = {
    "format": 2, "network": "mp", "containerId": "c", "ifName": "eth0", "netns": "/run/netns/mpt-gone", "boot": "",
    "since": 1.0,
    "pod": {"namespace": "default", "name": "p", "uid": "u"},
    "attachments": [{
        "name": "default/a", "single": False, "ifName": "eth0", "primary": True, "args": [["K8S_POD_NAME", "p"]],
        "config": {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "faulty", "raises": {}, "mark": "m"}]},
        "capabilities": {"mac": "02:00:00:00:00:01"}, "defaultRoute": ["10.0.0.1"],
        "device": {"resource": "a/b", "id": "x", "containers": ["c"], "claims": []},
    }],
    "progress": {"eth0": [1, 1]},
    "failures": [{"begun": 1, "reason": "r", "tries": 2, "since": 1.0, "attachment": {
        "name": "default/b", "single": True, "ifName": "net1", "primary": False, "args": [], "capabilities": {},
        "config": {"cniVersion": "1.0.0", "name": "o", "plugins": [{"type": "faulty"}]}, "defaultRoute": None,
    }}],
}  # fmt: skip
LINE = near(ENTRY, most=2) | near({"progress": {"eth0": [1, 0]}}) | VALUES


def _sealed(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return b"3 %08x %s\n" % (crc32(body), body)


@given(lines=st.lists(LINE, min_size=1, max_size=2), torn=st.binary(max_size=9))
@rounds(150)
def test_a_sealed_page_of_any_shape_is_read_or_damaged(stage: Stage, lines: list[Any], torn: bytes) -> None:
    """A page whose seals are right and whose words are not is taken down as any other: CniError, or done."""
    node = stage.node()
    path = node.journal.folder / "c@eth0"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(_sealed, lines)) + torn)
    looker = reconciler.Reconciler(Spool(stage.folder / "spool"), lambda tombstone: None, lambda what: None)
    looker.report_missing(node, [])
    looker.release_dead(node)
    path.write_bytes(b"".join(map(_sealed, lines)) + torn)
    with node.journal.lock_sandbox("c", "eth0") as page:
        entry = page.entry
        trouble = try_step(lambda: teardown.detach_sandbox(page, stage.call("DEL", container="c"), node))
        assert trouble is None or "internal error" not in trouble.msg, trouble
    assert not (
        entry and trouble is None and entry.attachments and path.exists() and node.journal.read("c", "eth0").attachments
    )
    path.unlink(missing_ok=True)


TOMBSTONE = {"env": {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_PATH": "/x"},
             "config": "eyJjbmlWZXJzaW9uIjoiMS4wLjAiLCJuYW1lIjoibiIsInR5cGUiOiJtdWx0dXMtcHkifQ==", "time": 1.0,
             "boot": "b",
             "since": 2.0}  # fmt: skip


@given(files=st.lists(st.binary(max_size=60) | near(TOMBSTONE).map(lambda body: json.dumps(body).encode()),
    min_size=1, max_size=3),
       error=DELS)  # fmt: skip
@rounds(150)
def test_any_tombstone_is_replayed_or_set_aside(stage: Stage, files: list[bytes], error: str | None) -> None:
    """Whatever a tombstone holds and whatever its DEL meets, all of the spool is gone through."""
    folder = stage.folder / "spool"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for n, text in enumerate(files):
        (folder / f"{n}.json").write_bytes(text)
    replayed: list[Tombstone] = []

    def replay(tombstone: Tombstone) -> None:
        replayed.append(tombstone)
        node = stage.node()
        call = replace(stage.call("DEL", container="c"), args=())
        tombstone.is_older(node.journal, call)
        if error and not isinstance(ERRORS[error], SystemExit):
            raise ERRORS[error]

    looker = reconciler.Reconciler(Spool(folder), replay, lambda what: None)
    looker.replay_all()
    left = {path.name for path in folder.iterdir()}
    kept = {tombstone.path.name for tombstone in replayed} if error and error != "SystemExit" else set()
    assert left == kept | {
        f"{n}.json.damaged" for n in range(len(files)) if f"{n}.json" not in {one.path.name for one in replayed}
    }
