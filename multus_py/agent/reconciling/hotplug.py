# SPDX-License-Identifier: Apache-2.0
"""Networks of a pod that runs already: one more, one less, journalled like those that came with ADD."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code, try_step
from multus_py.cni.result import Result
from multus_py.config import selection
from multus_py.kube.store import Pod
from multus_py.plan import decide
from multus_py.plan.attachment import OTHER, Attachment, pod_ref
from multus_py.plan.networks import Sources
from multus_py.state.journal import SandboxFile
from multus_py.state.journal_entry import (
    Entry,
    Failure,
    Progress,
    boot_id,
    complete_progress,
    uncertain_progress,
    uptime,
)
from multus_py.verbs import attach, default_route, teardown
from multus_py.verbs.node import Node

PRIMARY = "eth0"  # the interface of a sandbox that nothing is known of yet


class Gone(CniError):
    """A sandbox that is not on record: its DEL came, or nobody we know attached it."""


def never() -> bool:
    """Take up no sandbox that has no page: who compared it with its page knows that the DEL came meanwhile."""
    return False


@contextmanager
def sandbox(call: Call, node: Node, adopt: Callable[[], bool]) -> Iterator[tuple[SandboxFile, Entry]]:
    """Open the journal page of the sandbox that *call* is about, whatever its own interface is called.

    One that another program attached gets a page, if *adopt* says so once no DEL can be at work: what is known of it
    elsewhere, so that its DEL stays whole. Else it is `Gone`.
    """
    known = [ifname for container_id, ifname in node.journal.sandboxes() if container_id == call.container_id]
    ifname = known[0] if known else PRIMARY
    with node.journal.lock_sandbox(call.container_id, ifname) as page, node.slot(call.verb):
        # A page without attachments tells of failures alone: what the sandbox had is detached.
        if not (page.entry and page.entry.attachments) and not adopt():
            raise Gone(
                Code.UNKNOWN_CONTAINER,
                f"sandbox {call.container_id} has no networks any more",
                "its DEL came before: nothing can be attached to it",
            )
        if page.entry:
            yield page, page.entry
            return
        whole = replace(call, ifname=PRIMARY)
        there = [replace(one, origin=OTHER) for one, _ in teardown.recorded_attachments(page, whole, node)]
        yield page, Entry(
            node.config.name, call.container_id, PRIMARY, call.netns, tuple(there), pod_ref(call), boot_id(),
            progress={one.ifname: uncertain_progress(one) for one in there}, since=uptime(), path=call.path,
        )  # fmt: skip


def plug(attachment: Attachment, call: Call, node: Node, pod: Pod | None, adopt: Callable[[], bool] = never) -> Result:
    """Attach one more network; on an error it is taken back and the page is as it was.

    A default route that it asks for moves to it: connections of the pod over the one before may end.
    """
    with sandbox(call, node, adopt) as (page, entry):
        if any(other.ifname == attachment.ifname for other in entry.attachments):
            raise CniError(Code.INVALID_CONFIG, f"the sandbox has an interface {attachment.ifname} already")
        node.chain.refuse_unfit(attachment, call)
        attach.refuse_taken_names(call.netns, [attachment])
        grown = replace(entry, attachments=(*entry.attachments, attachment), netns=call.netns)
        with node.journal.lock_for_attach():
            page.write(grown)
            try:
                told = _attach(page, grown.attachments, call, node)
                results.write(told[-1][1], call.version)  # before anybody is told: an old version cannot say all
                attach.publish_status(told, call.netns, node, pod)
            except BaseException as error:
                if trouble := try_step(lambda: _take_back(page, entry, call, node)):
                    error.add_note(f"and could not be taken back yet, the pod's DEL will: {trouble}")
                raise
    return told[-1][1]


def _attach(
    page: SandboxFile, attachments: Sequence[Attachment], call: Call, node: Node
) -> list[attach.AttachedNetwork]:
    """Attach the last of *attachments*, the others are there; return all with their results."""
    *before, new = attachments
    attach.attach_networks(page, [new], call, node, existing=before)
    page.set_progress(new, *complete_progress(new))
    claimed = default_route.claims(attachments)  # a default route that comes with the new one yields to those before it
    return attach.apply_default_routes(attach.cached_results(attachments, call, node), claimed, call, node)


def _take_back(page: SandboxFile, before: Entry, call: Call, node: Node) -> None:
    """Detach the network that could not be plugged; the page is as it was *before*, and knows what failed."""
    if page.entry:
        attachment = page.entry.attachments[-1]
        failure, _ = _detach(attachment, page.entry.progress_of(attachment), before, call, node)
        page.write(_failed(before, failure))


def _failed(entry: Entry, failure: Failure | None) -> Entry:
    """Return *entry* with a failure more; one network that fails again and again is one failure."""
    if failure is None:
        return entry
    which = (failure.attachment.name, failure.attachment.ifname)
    others = [one for one in entry.failures if (one.attachment.name, one.attachment.ifname) != which]
    return replace(entry, failures=(*others, failure))


def unplug(ifname: str, call: Call, node: Node, pod: Pod | None, adopt: Callable[[], bool] = never) -> bool:
    """Detach the network with the interface *ifname*; False when the journal knows none."""
    with sandbox(call, node, adopt) as (page, entry):
        found = next((item for item in entry.attachments if item.ifname == ifname and not item.primary), None)
        if found is None:
            return False
        call = replace(call, netns=call.netns or entry.netns)
        left = _without(found, entry)
        failure, told = _detach(found, entry.progress_of(found), left, call, node)
        page.write(_failed(left, failure))
        attach.publish_status(told, call.netns, node, pod)
    return True


def _without(attachment: Attachment, entry: Entry) -> Entry:
    return replace(
        entry,
        attachments=tuple(item for item in entry.attachments if item is not attachment),
        progress={ifname: come for ifname, come in entry.progress.items() if ifname != attachment.ifname},
    )


def _detach(
    attachment: Attachment, progress: Progress, left: Entry, call: Call, node: Node
) -> tuple[Failure | None, list[attach.AttachedNetwork]]:
    """Detach one network and give back the default routes that it claimed; return what is *left* with its results."""
    failure = teardown.detach_network(attachment, progress, call, node, left.attachments)
    kept = attach.cached_results(left.attachments, call, node)
    return failure, attach.restore_default_routes(kept, default_route.claims([attachment]), call, node)


def requested_attachment(call: Call, asked: Mapping[str, Any], node: Node, pod: Pod | None) -> Attachment:
    """Return the attachment that a `/delegate` request describes: the delegate's own config, and the wishes *asked*.

    The request has no word for a device or a default route, multus-cni's neither: the config names its device itself,
    and an annotation that is followed has both.
    """
    conf = Sources(node.config, node.store).conflist(call.config, "delegate request")
    wishes = {key: value for key, value in asked.items() if key in ("ips", "mac", "cni-args") and value}
    element = {"name": "delegate", "interface": call.ifname, **wishes}
    (choice,) = selection.parse(json.dumps([element]), "default", "interfaceAttributes")
    return decide.requested_attachment(
        conf, replace(choice, name=conf.name, namespace=pod.namespace if pod else ""), call, node.config, pod
    )
