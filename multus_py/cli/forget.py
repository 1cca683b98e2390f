# SPDX-License-Identifier: Apache-2.0
"""`multus-py forget`: drop what the journal keeps of a sandbox, after showing what may stay reserved for ever."""

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
Drop the journal page and the kept results of a sandbox whose plugins never confirm its DEL, and show what they may
still hold: addresses, devices, rules. Nothing is called. Of a sandbox that lives only what failed and could not be
taken back is dropped; with --force all of it, and its interfaces are then nobody's.

`multus-py status` and `multus-py doctor` list what stays, with the reason."""
_EPILOG = """\
examples:
  multus-py forget 3f1a9c0d2b7e
  multus-py forget 3f1a9c0d2b7e --dry-run --json

exit status: 0 dropped, or with --dry-run shown; 1 no such sandbox, more than one, or it lives; 2 wrong usage"""


@dataclass(frozen=True)
class Leak:
    """What one network may still hold. *reason* is what its DEL said last, "" when it was not tried."""

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
    parser.add_argument("--dry-run", action="store_true", help="show, and drop nothing")
    parser.add_argument("--force", action="store_true", help="drop a sandbox that lives, too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Show what may leak, then drop it."""
    from multus_py.state.journal import Journal
    from multus_py.state.result_cache import ResultCache

    book, cache = Journal(args.cni_dir / "attachments"), ResultCache(args.cni_dir / "results")
    container_id, ifname = _named(book, args.sandbox)
    with book.lock_sandbox(container_id, ifname, wait=False) as page:
        gone = _is_gone(page, cache, container_id)
        if not (gone or args.force or (page.entry and page.entry.failures)):
            raise CniError(
                Code.INVALID_CONFIG,
                f"sandbox {container_id} ({ifname}) lives: nothing is dropped",
                "its DEL detaches it; --force drops what is known of it all the same",
            )
        whole = gone or args.force
        leaks = tuple(_leaks(page, cache, container_id, whole=whole))
        _show(leaks, f"{container_id}@{ifname}", args)
        if not args.dry_run:
            _drop(page, cache, container_id, whole=whole)
    return 0


def _is_gone(page: "SandboxFile", cache: "ResultCache", container_id: str) -> bool:
    """Tell whether nothing of the sandbox can live: by its page, by the results where that cannot be read."""
    from multus_py.state.journal_entry import is_namespace_gone

    if page.entry:
        return not page.entry.attachments or page.entry.is_gone()
    return all(map(is_namespace_gone, cache.namespaces(container_id)))


def _named(book: "Journal", sandbox: str) -> tuple[str, str]:
    """Return the one sandbox that is meant."""
    wanted, _, ifname = sandbox.partition("@")
    there = [one for one in book.sandboxes() if ifname in ("", one[1])]
    found = [one for one in there if one[0] == wanted] or [one for one in there if wanted and one[0].startswith(wanted)]
    if len(found) != 1:
        why = f"means {len(found)}: {', '.join('@'.join(one) for one in found)}" if found else "is not there"
        raise CniError(
            Code.UNKNOWN_CONTAINER,
            f"sandbox {sandbox!r} {why}, in {book.folder}",
            "`multus-py doctor` lists what stays; CONTAINER@INTERFACE names one",
        )
    return found[0]


def _leaks(page: "SandboxFile", cache: "ResultCache", container_id: str, *, whole: bool) -> Iterator[Leak]:
    entry = page.entry
    there = _attachments(page, cache, container_id) if whole else ()
    yield from (_leak(one, "", cache, container_id) for one in there)
    yield from (_leak(one.attachment, one.reason, cache, container_id) for one in (entry.failures if entry else ()))


def _attachments(page: "SandboxFile", cache: "ResultCache", container_id: str) -> Sequence["Attachment"]:
    """Return what is attached as far as anybody knows: a page that cannot be read has results beside it."""
    known = page.entry.attachments if page.entry else ()
    return (*known, *cache.attachments(container_id, "", known))


def _leak(attachment: "Attachment", reason: str, cache: "ResultCache", container_id: str) -> Leak:
    from multus_py.cni import result as results

    kept = cache.result(attachment, container_id)
    try:
        ips = results.read(kept, attachment.conflist.version).ips if kept else ()
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


def _drop(page: "SandboxFile", cache: "ResultCache", container_id: str, *, whole: bool) -> None:
    if not whole and page.entry:
        page.write(replace(page.entry, failures=()))
        return
    failed = [failure.attachment for failure in page.entry.failures] if page.entry else []
    for attachment in (*_attachments(page, cache, container_id), *failed):
        cache.remove(attachment, container_id)
    page.clear()
