# SPDX-License-Identifier: Apache-2.0
"""Taking down: finish whatever can be finished, gather the errors, forget only what every delegate confirmed.

A plugin whose ADD came to be has to confirm: its error is the sandbox's. One whose ADD failed, or is not known to have
come to be, is asked, too, and nobody waits for it: what it says is kept as a `Failure`, to be tried again. One whose
ADD never began is not asked. Any error may come out of a step, and none keeps the next one from being tried.
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

Known = tuple[Attachment, Progress]  # an attachment, and how far its ADD came
_REASON_KEPT = 1000  # characters of an error that are kept with a failure


def detach_sandbox(page: SandboxFile, call: Call, node: Node) -> tuple[Failure, ...]:
    """Detach all that is known of the sandbox on *page*, newest first; return what failed and nobody waits for.

    What came to be and could not be detached stays on the page, and its errors are raised together. The page is cleared
    when nothing is left.
    """
    call = _in_its_namespace(page, call)
    there, before = recorded_attachments(page, call, node), page.entry or _unknown(call, node)
    if page.damaged:
        page.save_damaged_copy()
    stays, failures, troubles = _detached(there, call, node)
    old = _again(before.failures, [one.ifname for one in stays], call, node)
    _keep(page, replace(before, attachments=tuple(reversed(stays)), failures=(*old, *failures)))
    if troubles:
        raise combined_error(f"sandbox {call.container_id}: left behind, to be tried again", troubles)
    takeover.remove(node.config.cni_dir, call.container_id)
    return (*old, *failures)


def _in_its_namespace(page: SandboxFile, call: Call) -> Call:
    """Return *call* without a namespace that cannot be the sandbox's: what has its interfaces' names there is not its.

    No namespace outlives its boot, and `/proc/<pid>/ns/net` then leads to somebody else's. In our own namespace ADD
    attaches nothing, unless it is told to: of a sandbox that nobody knows, nothing in there is ours.
    """
    if page.entry:
        of_another_boot = page.entry.boot not in ("", boot_id())
        return replace(call, netns="") if of_another_boot else call
    return replace(call, netns="") if not call.same_netns_allowed and namespaces.is_own(call.netns) else call


def retry_failures(page: SandboxFile, call: Call, node: Node) -> None:
    """Try once more to take back what failed in a sandbox that goes on."""
    if page.entry and page.entry.failures:
        living = [one.ifname for one in page.entry.attachments]
        _keep(page, replace(page.entry, failures=_again(page.entry.failures, living, call, node)))


def detach_unrecorded(there: Iterable[Attachment], call: Call, node: Node) -> None:
    """Detach what only kept results tell of."""
    _, _, troubles = _detached([(one, complete_progress(one)) for one in there], call, node)
    if troubles:
        raise combined_error(f"sandbox {call.container_id}: left behind, to be tried again", troubles)


def detach_network(
    attachment: Attachment, progress: Progress, call: Call, node: Node, beside: Sequence[Attachment] | None = None
) -> Failure | None:
    """Run DEL for one attachment; return the failure when it never came to be, raise when it did.

    *beside* is what else the sandbox has; an interface that was renamed is looked for when that is known.
    """
    if beside is not None:
        _name_back(attachment, [one.ifname for one in beside], call, node)
    if node.chain.cache.has(attachment, call.container_id):
        progress = complete_progress(attachment)
    elif not call.netns or is_namespace_gone(call.netns):
        # Neither namespace nor result: nobody can wait for what nobody can prove.
        progress = Progress(progress.begun, 0)
    troubles = _ask(attachment, progress.begun, call, node)
    if owed := [trouble for n, trouble in sorted(troubles.items()) if n < progress.done]:
        raise combined_error(str(attachment), owed) if len(owed) > 1 else owed[0]
    if not troubles:
        return None
    log.warning(
        "sandbox %s: %s is not known to have come to be, and its DEL fails: %s",
        call.container_id,
        attachment,
        _all(troubles),
    )
    return Failure(attachment, progress.begun, _all(troubles), since=time.time())


def _ask(attachment: Attachment, begun: int, call: Call, node: Node) -> dict[int, CniError]:
    """Run DEL of the plugins that were begun; return what failed, by place."""
    troubles = node.chain.delete(attachment, call, begun)
    if not troubles:  # last: a plugin's DEL may read what was told about its device
        device_info.remove(attachment.capabilities, node.config.device_info_dir)
    return troubles


def _all(troubles: Mapping[int, CniError]) -> str:
    return " / ".join(str(trouble) for trouble in troubles.values())[:_REASON_KEPT]


def _detached(there: Sequence[Known], call: Call, node: Node) -> tuple[list[Attachment], list[Failure], list[CniError]]:
    """Detach all, newest first; return what stays, what failed and is not waited for, and the errors of what stays."""
    native = [one.ifname for one, progress in there if progress.begun and node.chain.owns_interface(one, call)]
    _remove_at_once(native, call.netns)
    all_ = [one for one, _ in there]
    stays, failed, troubles = [], [], []
    for attachment, progress in reversed(there):
        outcome: list[Failure | None] = []
        if trouble := try_step(lambda: outcome.append(detach_network(attachment, progress, call, node, all_))):  # noqa: B023
            stays.append(attachment)
            troubles.append(trouble)
        failed += [failure for failure in outcome if failure]
    return stays, failed, troubles


def _again(before: Iterable[Failure], living: Sequence[str], call: Call, node: Node) -> tuple[Failure, ...]:
    """Try failures again, but for those that are final or whose interface is another's now; return what still fails."""
    left = []
    for failure in before:
        if failure.is_final or failure.attachment.ifname in living:
            left.append(failure)
            continue
        outcome: dict[int, CniError] = {}
        if trouble := try_step(lambda: outcome.update(_ask(failure.attachment, failure.begun, call, node))):  # noqa: B023
            outcome[0] = trouble
        if outcome:
            left.append(replace(failure, reason=_all(outcome), tries=failure.tries + 1))
            if left[-1].is_final:
                log.warning("sandbox %s: %s is given up after %d tries, `multus-py forget` drops it: %s",
                            call.container_id, failure.attachment, left[-1].tries, left[-1].reason)  # fmt: skip
    return tuple(left)


def _keep(page: SandboxFile, entry: Entry) -> None:
    """Write down what is left of a sandbox, or clear the page; what cannot be written stays as it was: that is more.

    So does a page that the disk did not give: it may know more than we found without it, and is looked at again.
    """
    if page.unreadable:
        return
    if not entry.attachments and not entry.failures:
        page.clear()
    elif entry != page.entry and (trouble := try_step(lambda: page.write(entry))):
        log.warning("sandbox %s: what is left of it cannot be written down: %s", entry.container_id, trouble)


def _unknown(call: Call, node: Node) -> Entry:
    """Return the entry of a sandbox that has no readable one."""
    return Entry(
        node.config.name, call.container_id, call.ifname, call.netns, (), pod_ref(call), boot_id(),
        since=uptime(),
    )  # fmt: skip


def _remove_at_once(ifnames: Sequence[str], netns: str) -> None:
    """Remove interfaces as one group: that takes no longer than one alone."""
    if len(ifnames) < 2 or not netns:
        return
    if trouble := try_step(lambda: removal.remove_links(netns, ifnames)):
        log.debug("%s: not removed at once: %s", netns, trouble)  # each delegate's own DEL follows and tells


def _name_back(attachment: Attachment, names: Sequence[str], call: Call, node: Node) -> None:
    """Give an interface that was renamed in the pod the name again by which its executable looks for it."""
    if not call.netns or node.chain.owns_interface(attachment, call):
        return
    if trouble := try_step(lambda: _rename(attachment, names, call, node)):
        log.debug("%s: %s", attachment, trouble)  # the plugin's own DEL follows and tells


def _rename(attachment: Attachment, names: Sequence[str], call: Call, node: Node) -> None:
    """Rename the one interface with the hardware address of the result, unless it has one of *names*.

    Interfaces share an address (ipvlan, a VLAN and what it is on), and what has none, as `lo`, has zeros.
    """
    result = node.chain.cached_result(attachment, call)
    there = result.interfaces if result else ()
    mac = next((one.mac.lower() for one in there if one.name == attachment.ifname and one.sandbox), "")
    with netlink.open(call.netns) as kernel:
        if not mac.strip("0:") or kernel.find_link(attachment.ifname):
            return
        found = [link for link in kernel.links() if link.mac == mac]
        if len(found) == 1 and found[0].name not in names:
            kernel.set_link(found[0].index, up=False)
            kernel.set_link(found[0].index, name=attachment.ifname)
            log.info("%s was renamed to %s in the pod and has its name again", attachment, found[0].name)


def recorded_attachments(page: SandboxFile, call: Call, node: Node) -> list[Known]:
    """Return what is known of a sandbox, oldest first: from the journal, a delegates file, the kept results.

    What is known nowhere may have been attached without us: then it is what ADD would attach now, the cluster's
    networks alone. Where there was a page that cannot be trusted, the pod's own, too.
    """
    entry = page.entry
    there = [(one, entry.progress_of(one)) for one in entry.attachments] if entry else []
    kept = node.chain.cache.attachments(call.container_id, call.ifname, [one for one, _ in there])
    found = [*takeover.read_attachments(node.config.cni_dir, call, kept), *kept]
    if page.damaged or not (entry or found):
        found += _planned_again(call, node, with_pod=page.damaged)
    seen = {one.ifname for one, _ in there}
    for attachment in found:
        if attachment.ifname not in seen:
            seen.add(attachment.ifname)
            there.append((attachment, uncertain_progress(attachment)))
    return there


def _planned_again(call: Call, node: Node, *, with_pod: bool) -> list[Attachment]:
    """Return what ADD would attach now, as far as it would not be refused."""
    planned: list[Attachment] = []

    def plan_again() -> None:
        ref = pod_ref(call)
        pod = node.store.pod(ref) if with_pod and ref and node.store else None
        if pod and ref and ref.uid and pod.uid and ref.uid != pod.uid and not pod.is_static:
            pod = None  # another one of the same name: what it asks for the sandbox never had
        planned.extend(decide.sandbox_attachments(call, node.config, pod, node.store))

    if trouble := try_step(plan_again):
        log.warning("sandbox %s: cannot plan again: %s", call.container_id, trouble)
    return [one for one in planned if not try_step(lambda: node.chain.refuse_unfit(one, call))]  # noqa: B023
