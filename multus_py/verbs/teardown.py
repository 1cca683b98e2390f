# SPDX-License-Identifier: Apache-2.0
"""Detach sandboxes: run every DEL whatever fails, collect the errors, drop a record only when its DEL succeeded.

The DEL of a plugin whose ADD completed has to succeed: its error fails the sandbox's. The error of one whose ADD
failed, or may not have completed, is stored as a `Failure` and retried, and the runtime does not wait for it. A plugin
whose ADD was not begun is not run. An error of any type in one step does not prevent the next.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, combined_error, try_step
from multus_py.kernel import namespaces, netlink, removal
from multus_py.plan import decide, device_info
from multus_py.plan.attachment import Attachment, pod_ref
from multus_py.state import takeover
from multus_py.state.journal import SandboxFile
from multus_py.state.journal_entry import (
    Entry,
    Failure,
    Progress,
    boot_id,
    complete_progress,
    is_namespace_gone,
    uncertain_progress,
    uptime,
)
from multus_py.verbs.node import Node

log = logging.getLogger("multus_py")

RecordedAttachment = tuple[Attachment, Progress]
_REASON_LIMIT = 1000  # characters of an error in a failure


def detach_sandbox(file: SandboxFile, call: Call, node: Node) -> tuple[Failure, ...]:
    """Detach all that is recorded of the sandbox of *file*, newest first; return the failures to retry.

    A completed attachment that could not be detached stays in the file, and the errors of all such are raised together.
    The file is cleared when nothing is left.
    """
    call = _with_valid_netns(file, call)
    recorded, before = recorded_attachments(file, call, node), file.entry or _empty_entry(call, node)
    if file.damaged:
        file.save_damaged_copy()
    remaining, failures, errors = _detach_all(recorded, call, node)
    old = _retry(before.failures, [attachment.ifname for attachment in remaining], call, node)
    _write_remaining(file, replace(before, attachments=tuple(reversed(remaining)), failures=(*old, *failures)))
    if errors:
        raise combined_error(f"sandbox {call.container_id}: left behind, to be tried again", errors)
    takeover.remove(node.config.cni_dir, call.container_id)
    return (*old, *failures)


def _with_valid_netns(file: SandboxFile, call: Call) -> Call:
    """Return *call* without a namespace that cannot be the sandbox's: interfaces of that name there are not its own.

    Namespaces end with the boot, and `/proc/<pid>/ns/net` then leads to another one. In our own namespace ADD attaches
    nothing unless CNI_NETNS_OVERRIDE allows it: an unrecorded sandbox has no interfaces there.
    """
    if file.entry:
        of_another_boot = file.entry.boot not in ("", boot_id())
        return replace(call, netns="") if of_another_boot else call
    return replace(call, netns="") if not call.same_netns_allowed and namespaces.is_own(call.netns) else call


def retry_failures(file: SandboxFile, call: Call, node: Node) -> None:
    """Retry the failures of a running sandbox."""
    if file.entry and file.entry.failures:
        in_use = [attachment.ifname for attachment in file.entry.attachments]
        _write_remaining(file, replace(file.entry, failures=_retry(file.entry.failures, in_use, call, node)))


def detach_unrecorded(attachments: Iterable[Attachment], call: Call, node: Node) -> None:
    """Detach attachments that have cached results and no journal file."""
    _, _, errors = _detach_all([(item, complete_progress(item)) for item in attachments], call, node)
    if errors:
        raise combined_error(f"sandbox {call.container_id}: left behind, to be tried again", errors)


def detach_network(
    attachment: Attachment, progress: Progress, call: Call, node: Node, others: Sequence[Attachment] | None = None
) -> Failure | None:
    """Run DEL for one attachment; return its failure when ADD did not complete, raise when it did.

    *others* are all attachments of the sandbox; with them, an interface that was renamed in the pod is looked for.
    """
    if others is not None:
        _restore_name(attachment, [other.ifname for other in others], call, node)
    if node.chain.cache.has(attachment, call.container_id):
        progress = complete_progress(attachment)
    elif not call.netns or is_namespace_gone(call.netns):
        # Neither namespace nor result: nothing proves that it completed.
        progress = Progress(progress.begun, 0)
    errors = _delete(attachment, progress.begun, call, node)
    if required := [error for n, error in sorted(errors.items()) if n < progress.done]:
        raise combined_error(str(attachment), required) if len(required) > 1 else required[0]
    if not errors:
        return None
    log.warning(
        "sandbox %s: %s is not known to have completed ADD, and its DEL fails: %s",
        call.container_id,
        attachment,
        _joined(errors),
    )
    return Failure(attachment, progress.begun, _joined(errors), since=time.time())


def _delete(attachment: Attachment, begun: int, call: Call, node: Node) -> dict[int, CniError]:
    """Run DEL of the plugins that were begun; return the errors by index."""
    errors = node.chain.delete(attachment, call, begun)
    if not errors:  # last: a plugin's DEL may read the device information
        device_info.remove(attachment.capabilities, node.config.device_info_dir)
    return errors


def _joined(errors: Mapping[int, CniError]) -> str:
    return " / ".join(str(error) for error in errors.values())[:_REASON_LIMIT]


def _detach_all(
    recorded: Sequence[RecordedAttachment], call: Call, node: Node
) -> tuple[list[Attachment], list[Failure], list[CniError]]:
    """Detach all, newest first; return the attachments that remain, the failures to retry, the errors of the former."""
    native = [item.ifname for item, progress in recorded if progress.begun and node.chain.owns_interface(item, call)]
    _remove_links(native, call.netns)
    attachments = [item for item, _ in recorded]
    remaining, failures, errors = [], [], []
    for attachment, progress in reversed(recorded):
        outcome: list[Failure | None] = []
        if error := try_step(lambda: outcome.append(detach_network(attachment, progress, call, node, attachments))):  # noqa: B023
            remaining.append(attachment)
            errors.append(error)
        failures += [failure for failure in outcome if failure]
    return remaining, failures, errors


def _retry(before: Iterable[Failure], in_use: Sequence[str], call: Call, node: Node) -> tuple[Failure, ...]:
    """Retry failures, except final ones and those whose interface name is *in_use*; return what still fails."""
    left = []
    for failure in before:
        if failure.is_final or failure.attachment.ifname in in_use:
            left.append(failure)
            continue
        outcome: dict[int, CniError] = {}
        if error := try_step(lambda: outcome.update(_delete(failure.attachment, failure.begun, call, node))):  # noqa: B023
            outcome[0] = error
        if outcome:
            left.append(replace(failure, reason=_joined(outcome), tries=failure.tries + 1))
            if left[-1].is_final:
                log.warning("sandbox %s: %s is given up after %d tries, `multus-py forget` drops it: %s",
                            call.container_id, failure.attachment, left[-1].tries, left[-1].reason)  # fmt: skip
    return tuple(left)


def _write_remaining(file: SandboxFile, entry: Entry) -> None:
    """Write what remains of a sandbox, or clear the file; when the write fails, the file keeps the entry before.

    An unreadable file stays as it is: it may record more than was found without it, and is read again later.
    """
    if file.unreadable:
        return
    if not entry.attachments and not entry.failures:
        file.clear()
    elif entry != file.entry and (error := try_step(lambda: file.write(entry))):
        log.warning("sandbox %s: cannot write what remains of it: %s", entry.container_id, error)


def _empty_entry(call: Call, node: Node) -> Entry:
    """Return an entry for a sandbox that has no readable one."""
    return Entry(
        node.config.name, call.container_id, call.ifname, call.netns, (), pod_ref(call), boot_id(),
        since=uptime(),
    )  # fmt: skip


def _remove_links(ifnames: Sequence[str], netns: str) -> None:
    """Remove interfaces as one group, which takes as long as one of them."""
    if len(ifnames) < 2 or not netns:
        return
    if error := try_step(lambda: removal.remove_links(netns, ifnames)):
        log.debug("%s: not removed as a group: %s", netns, error)  # the DEL of each delegate follows and fails


def _restore_name(attachment: Attachment, names: Sequence[str], call: Call, node: Node) -> None:
    """Rename an interface that was renamed in the pod back to the name that its executable looks for."""
    if not call.netns or node.chain.owns_interface(attachment, call):
        return
    if error := try_step(lambda: _rename(attachment, names, call, node)):
        log.debug("%s: %s", attachment, error)  # the plugin's DEL follows and fails


def _rename(attachment: Attachment, names: Sequence[str], call: Call, node: Node) -> None:
    """Rename the only interface with the MAC address of the result, unless its name is one of *names*.

    Interfaces may share an address (ipvlan; a VLAN and its parent); one without an address, as `lo`, has zeros.
    """
    result = node.chain.cached_result(attachment, call)
    interfaces = result.interfaces if result else ()
    mac = next((item.mac.lower() for item in interfaces if item.name == attachment.ifname and item.sandbox), "")
    with netlink.open(call.netns) as kernel:
        if not mac.strip("0:") or kernel.find_link(attachment.ifname):
            return
        found = [link for link in kernel.links() if link.mac == mac]
        if len(found) == 1 and found[0].name not in names:
            kernel.set_link(found[0].index, up=False)
            kernel.set_link(found[0].index, name=attachment.ifname)
            log.info("%s was renamed to %s in the pod and has its name again", attachment, found[0].name)


def recorded_attachments(file: SandboxFile, call: Call, node: Node) -> list[RecordedAttachment]:
    """Return what is recorded of a sandbox, oldest first: in the journal, a delegates file, the cached results.

    A sandbox without any record may have been attached by another program: then it is what ADD would attach now, only
    the cluster's networks. When its journal file is damaged, the pod's networks, too.
    """
    entry = file.entry
    recorded = [(item, entry.progress_of(item)) for item in entry.attachments] if entry else []
    cached = node.chain.cache.attachments(call.container_id, call.ifname, [item for item, _ in recorded])
    found = [*takeover.read_attachments(node.config.cni_dir, call, cached), *cached]
    if file.damaged or not (entry or found):
        found += _expected_attachments(call, node, with_pod=file.damaged)
    seen = {item.ifname for item, _ in recorded}
    for attachment in found:
        if attachment.ifname not in seen:
            seen.add(attachment.ifname)
            recorded.append((attachment, uncertain_progress(attachment)))
    return recorded


def _expected_attachments(call: Call, node: Node, *, with_pod: bool) -> list[Attachment]:
    """Return what ADD would attach now, without what it would refuse."""
    expected: list[Attachment] = []

    def plan() -> None:
        ref = pod_ref(call)
        pod = node.store.pod(ref) if with_pod and ref and node.store else None
        if pod and ref and ref.uid and pod.uid and ref.uid != pod.uid and not pod.is_static:
            pod = None  # another pod of the same name: its networks are not the sandbox's
        expected.extend(decide.sandbox_attachments(call, node.config, pod, node.store))

    if error := try_step(plan):
        log.warning("sandbox %s: cannot plan again: %s", call.container_id, error)
    return [item for item in expected if not try_step(lambda: node.chain.refuse_unfit(item, call))]  # noqa: B023
