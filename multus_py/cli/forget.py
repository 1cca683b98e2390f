# SPDX-License-Identifier: Apache-2.0
"""`multus-py forget`: remove a sandbox's journal entry, after showing what may stay reserved."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multus_py.cni.errors import CniError, Code
from multus_py.cni.text import one_line

if TYPE_CHECKING:
    from multus_py.plan.attachment import Attachment
    from multus_py.state.journal import Journal, SandboxFile
    from multus_py.state.result_cache import ResultCache

_DESCRIPTION = """\
Remove the journal entry and the cached results of a sandbox whose plugins never confirm its DEL, and show what they may
still hold: addresses, devices, rules. No plugin is run. Of a running sandbox only failed attachments that could not be
rolled back are removed; with --force everything, and no later DEL removes its interfaces.

`multus-py status` and `multus-py doctor` list such sandboxes, with the reason."""
_EPILOG = """\
examples:
  multus-py forget 3f1a9c0d2b7e
  multus-py forget 3f1a9c0d2b7e --dry-run --json

exit status: 0 removed, or with --dry-run shown; 1 no such sandbox, several, or it is running; 2 wrong usage"""


@dataclass(frozen=True)
class Leak:
    """What one network may still hold. *reason* is the last error of its DEL, "" when DEL was not tried."""

    network: str
    ifname: str
    plugins: tuple[str, ...]
    ipam: str
    addresses: tuple[str, ...]
    device: str
    reason: str


def add_parser(commands: Any) -> None:
    """Add `forget` to the commands."""
    parser = commands.add_parser(
        "forget", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sandbox", metavar="SANDBOX", help="a container id or its beginning, or CONTAINER@INTERFACE")
    parser.add_argument(
        "--cni-dir", type=Path, default=Path("/var/lib/cni/multus"), metavar="DIR", help="the plugin's cniDir"
    )
    parser.add_argument("--dry-run", action="store_true", help="show, and remove nothing")
    parser.add_argument("--force", action="store_true", help="remove a running sandbox, too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Show what may leak, then remove the records."""
    from multus_py.state.journal import Journal
    from multus_py.state.result_cache import ResultCache

    journal, cache = Journal(args.cni_dir / "attachments"), ResultCache(args.cni_dir / "results")
    container_id, ifname = _matching_sandbox(journal, args.sandbox)
    with journal.lock_sandbox(container_id, ifname, wait=False) as file:
        gone = _is_gone(file, cache, container_id)
        if not (gone or args.force or (file.entry and file.entry.failures)):
            raise CniError(
                Code.INVALID_CONFIG,
                f"sandbox {container_id} ({ifname}) lives: nothing is dropped",
                "its DEL detaches it; --force removes its records all the same",
            )
        whole = gone or args.force
        leaks = tuple(_leaks(file, cache, container_id, whole=whole))
        _show(leaks, f"{container_id}@{ifname}", args)
        if not args.dry_run:
            _remove_records(file, cache, container_id, whole=whole)
    return 0


def _is_gone(file: "SandboxFile", cache: "ResultCache", container_id: str) -> bool:
    """Tell whether the sandbox was removed: by its journal entry, or by the results where that cannot be read."""
    from multus_py.state.journal_entry import is_namespace_gone

    if file.entry:
        return not file.entry.attachments or file.entry.is_gone()
    return all(map(is_namespace_gone, cache.namespaces(container_id)))


def _matching_sandbox(journal: "Journal", sandbox: str) -> tuple[str, str]:
    """Return the container id and the interface of the one sandbox that matches."""
    container_id, _, ifname = sandbox.partition("@")
    existing = [key for key in journal.sandboxes() if ifname in ("", key[1])]
    found = [key for key in existing if key[0] == container_id]
    found = found or [key for key in existing if container_id and key[0].startswith(container_id)]
    if len(found) != 1:
        why = f"means {len(found)}: {', '.join('@'.join(key) for key in found)}" if found else "is not there"
        raise CniError(
            Code.UNKNOWN_CONTAINER,
            f"sandbox {sandbox!r} {why}, in {journal.folder}",
            "`multus-py doctor` lists what stays; CONTAINER@INTERFACE names one",
        )
    return found[0]


def _leaks(file: "SandboxFile", cache: "ResultCache", container_id: str, *, whole: bool) -> Iterator[Leak]:
    entry = file.entry
    attachments = _attachments(file, cache, container_id) if whole else ()
    yield from (_leak(attachment, "", cache, container_id) for attachment in attachments)
    failures = entry.failures if entry else ()
    yield from (_leak(failure.attachment, failure.reason, cache, container_id) for failure in failures)


def _attachments(file: "SandboxFile", cache: "ResultCache", container_id: str) -> Sequence["Attachment"]:
    """Return the recorded attachments: of the journal, and of the cached results in addition."""
    recorded = file.entry.attachments if file.entry else ()
    return (*recorded, *cache.attachments(container_id, "", recorded))


def _leak(attachment: "Attachment", reason: str, cache: "ResultCache", container_id: str) -> Leak:
    from multus_py.cni import result as results

    cached = cache.result(attachment, container_id)
    try:
        ips = results.read(cached, attachment.conflist.version).ips if cached else ()
    except CniError:
        ips = ()
    plugins = attachment.conflist.plugins
    ipam: Mapping[str, Any] = next((plugin["ipam"] for plugin in plugins if isinstance(plugin.get("ipam"), dict)), {})
    device = attachment.device.id if attachment.device else next((plugin.get("deviceID", "") for plugin in plugins), "")
    return Leak(
        attachment.name,
        attachment.ifname,
        attachment.conflist.types,
        str(ipam.get("type", "")),
        tuple(ip.address.with_prefixlen for ip in ips),
        str(device),
        reason,
    )


def _show(leaks: Sequence[Leak], sandbox: str, args: argparse.Namespace) -> None:
    if args.json:
        body = {"sandbox": sandbox, "dropped": not args.dry_run, "mayLeak": [asdict(leak) for leak in leaks]}
        print(json.dumps(body, indent=2))
        return
    print(f"sandbox {sandbox} {'would be' if args.dry_run else 'is'} forgotten; what it may still hold:")
    for leak in leaks:
        print(f"  network {one_line(leak.network)} as {leak.ifname}, plugins {', '.join(leak.plugins)}")
        held = {"addresses": " ".join(leak.addresses), "IPAM": leak.ipam, "device": leak.device, "DEL": leak.reason}
        for what, value in held.items():
            if value:
                print(f"    {what}: {one_line(value)}")
    if not leaks:
        print("  nothing that anybody knows of")


def _remove_records(file: "SandboxFile", cache: "ResultCache", container_id: str, *, whole: bool) -> None:
    if not whole and file.entry:
        file.write(replace(file.entry, failures=()))
        return
    failed = [failure.attachment for failure in file.entry.failures] if file.entry else []
    for attachment in (*_attachments(file, cache, container_id), *failed):
        cache.remove(attachment, container_id)
    file.clear()
