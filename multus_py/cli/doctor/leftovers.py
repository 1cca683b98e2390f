# SPDX-License-Identifier: Apache-2.0
"""Leftovers on disk: journal entries of removed sandboxes, damaged journal files, DELs that were not replayed."""

import time
from collections.abc import Iterator
from pathlib import Path

from multus_py.cli.doctor.node import ExaminedNode
from multus_py.cli.doctor.node_finding import Level, NodeFinding
from multus_py.state import journal, journal_entry
from multus_py.state.journal_entry import Entry
from multus_py.state.spool import Spool

_LATE = 300  # seconds after which a DEL in the spool is late: a daemon replays it within one or two


def findings(node: ExaminedNode) -> Iterator[NodeFinding]:
    """Yield the findings about the journal and the spool."""
    yield from _journal(node)
    yield from _spool(node)


def _journal(node: ExaminedNode) -> Iterator[NodeFinding]:
    folder = node.at(node.settings.cni_dir / "attachments")
    entries: list[Entry] = []
    for container_id, ifname in journal.Journal(folder).sandboxes():
        path = folder / f"{container_id}@{ifname}"
        try:
            # Read without its lock: an ADD must not wait for doctor.
            entries.append(journal_entry.decode(path.read_bytes()))
        except FileNotFoundError:
            continue  # its DEL succeeded meanwhile
        except journal_entry.DamagedEntry as error:
            advice = "its DEL makes up for it from the kept results; then the page goes"
            yield NodeFinding(Level.WARNING, "journal", f"{path.name}: {error.msg}", advice)
    attached = [entry for entry in entries if entry.attachments]
    gone = [entry for entry in attached if entry.is_gone(node.root)]
    for entry in gone:
        advice = (
            "the daemon takes it down in its next round, or the runtime's GC does; when it stays, the daemon's log "
            f"says why, and `multus-py forget {entry.container_id}` drops it"
        )
        yield NodeFinding(Level.WARNING, "journal", f"{_description(entry)} is gone, its attachments are kept", advice)
    yield from (finding for entry in entries for finding in _failures(entry))
    yield NodeFinding(Level.OK, "journal", f"{len(attached) - len(gone)} sandboxes are attached")


def _description(entry: Entry) -> str:
    return f"sandbox {entry.container_id}" + (f" of pod {entry.pod}" if entry.pod else "")


def _failures(entry: Entry) -> Iterator[NodeFinding]:
    """Yield the networks whose ADD failed and that cannot be cleaned up."""
    for failure in entry.failures:
        fact = f"{_description(entry)}: {failure.attachment} never came to be, and its DEL fails: {failure.reason}"
        ends = f"`multus-py forget {entry.container_id}` shows what may leak and drops it"
        advice = f"given up after {failure.tries} tries: {ends}" if failure.is_final else f"it is tried again; {ends}"
        yield NodeFinding(Level.WARNING, "journal", fact, advice)


def _spool(node: ExaminedNode) -> Iterator[NodeFinding]:
    folder = node.at(node.daemon.spool_dir)
    waiting = [path for path in _files(folder) if path.suffix == ".json"]
    if damaged := [path.name for path in _files(folder) if path.name.endswith(".damaged")]:
        advice = "read what they say, release it by hand, remove them"
        yield NodeFinding(Level.WARNING, "spool", f"DELs that cannot be read: {', '.join(damaged)}", advice)
    late = [path for path in waiting if time.time() - path.stat().st_mtime > _LATE]
    if late:
        fact = f"{len(late)} of {len(Spool(folder))} DELs wait for longer than {_LATE // 60} minutes"
        yield NodeFinding(Level.WARNING, "spool", fact, "start the daemon; if it runs, its log says why they fail")
    else:
        yield NodeFinding(Level.OK, "spool", f"{len(waiting)} DELs wait to be replayed")


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
