# SPDX-License-Identifier: Apache-2.0
"""Attach and detach single networks of a running pod; the journal has them like those of ADD."""

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

PRIMARY = "eth0"  # the interface of a sandbox that is not recorded yet


class UnknownSandbox(CniError):
    """A sandbox that is not recorded: its DEL came, or another program attached it."""


def never() -> bool:
    """Adopt no sandbox without a journal entry: it had one before, so its DEL came meanwhile."""
    return False


@contextmanager
def sandbox(call: Call, node: Node, adopt: Callable[[], bool]) -> Iterator[tuple[SandboxFile, Entry]]:
    """Lock the sandbox of *call*, whatever the name of its first interface is, and return its journal file and entry.

    One that another program attached gets an entry of what is recorded of it elsewhere, when *adopt* returns True under
    the lock. Else it is `UnknownSandbox`.
    """
    known = [ifname for container_id, ifname in node.journal.sandboxes() if container_id == call.container_id]
    ifname = known[0] if known else PRIMARY
    with node.journal.lock_sandbox(call.container_id, ifname) as file, node.slot(call.verb):
        # An entry without attachments has failures alone: the sandbox was detached.
        if not (file.entry and file.entry.attachments) and not adopt():
            raise UnknownSandbox(
                Code.UNKNOWN_CONTAINER,
                f"sandbox {call.container_id} has no networks any more",
                "its DEL came before: nothing can be attached to it",
            )
        if file.entry:
            yield file, file.entry
            return
        whole = replace(call, ifname=PRIMARY)
        existing = [replace(one, origin=OTHER) for one, _ in teardown.recorded_attachments(file, whole, node)]
        yield file, Entry(
            node.config.name, call.container_id, PRIMARY, call.netns, tuple(existing), pod_ref(call), boot_id(),
            progress={one.ifname: uncertain_progress(one) for one in existing}, since=uptime(), path=call.path,
        )  # fmt: skip


def plug(attachment: Attachment, call: Call, node: Node, pod: Pod | None, adopt: Callable[[], bool] = never) -> Result:
    """Attach one network; on an error it is rolled back and the entry is as before.

    A default route that it requests moves to it: connections of the pod over the previous one may end.
    """
    with sandbox(call, node, adopt) as (file, entry):
        if any(other.ifname == attachment.ifname for other in entry.attachments):
            raise CniError(Code.INVALID_CONFIG, f"the sandbox has an interface {attachment.ifname} already")
        node.chain.refuse_unfit(attachment, call)
        attach.refuse_taken_names(call.netns, [attachment])
        grown = replace(entry, attachments=(*entry.attachments, attachment), netns=call.netns)
        with node.journal.lock_for_attach():
            file.write(grown)
            try:
                attached = _attach(file, grown.attachments, call, node)
                results.write(attached[-1][1], call.version)  # before it is published: an old version may not hold it
                attach.publish_status(attached, call.netns, node, pod)
            except BaseException as error:
                if problem := try_step(lambda: _roll_back(file, entry, call, node)):
                    error.add_note(f"and could not be rolled back yet, the pod's DEL will: {problem}")
                raise
    return attached[-1][1]


def _attach(
    file: SandboxFile, attachments: Sequence[Attachment], call: Call, node: Node
) -> list[attach.AttachedNetwork]:
    """Attach the last of *attachments*, the others exist; return all with their results."""
    *before, new = attachments
    attach.attach_networks(file, [new], call, node, existing=before)
    file.set_progress(new, *complete_progress(new))
    claimed = default_route.claims(attachments)  # a default route that comes with the new one yields to those before it
    return attach.apply_default_routes(attach.cached_results(attachments, call, node), claimed, call, node)


def _roll_back(file: SandboxFile, before: Entry, call: Call, node: Node) -> None:
    """Detach the network that could not be attached, and write the entry *before* with what failed."""
    if file.entry:
        attachment = file.entry.attachments[-1]
        failure, _ = _detach(attachment, file.entry.progress_of(attachment), before, call, node)
        file.write(_failed(before, failure))


def _failed(entry: Entry, failure: Failure | None) -> Entry:
    """Return *entry* with the failure added; repeated failures of one network are one."""
    if failure is None:
        return entry
    which = (failure.attachment.name, failure.attachment.ifname)
    others = [one for one in entry.failures if (one.attachment.name, one.attachment.ifname) != which]
    return replace(entry, failures=(*others, failure))


def unplug(ifname: str, call: Call, node: Node, pod: Pod | None, adopt: Callable[[], bool] = never) -> bool:
    """Detach the network with the interface *ifname*; False when the journal has none."""
    with sandbox(call, node, adopt) as (file, entry):
        found = next((item for item in entry.attachments if item.ifname == ifname and not item.primary), None)
        if found is None:
            return False
        call = replace(call, netns=call.netns or entry.netns)
        left = _without(found, entry)
        failure, attached = _detach(found, entry.progress_of(found), left, call, node)
        file.write(_failed(left, failure))
        attach.publish_status(attached, call.netns, node, pod)
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
    """Detach one network and restore the default routes that it claimed; return what is *left* with its results."""
    failure = teardown.detach_network(attachment, progress, call, node, left.attachments)
    cached = attach.cached_results(left.attachments, call, node)
    return failure, attach.restore_default_routes(cached, default_route.claims([attachment]), call, node)


def requested_attachment(call: Call, asked: Mapping[str, Any], node: Node, pod: Pod | None) -> Attachment:
    """Return the attachment that a `/delegate` request describes: the delegate's config and the attributes *asked*.

    The request has no field for a device or a default route, as with multus-cni: the config names its device, and the
    annotation has both.
    """
    conf = Sources(node.config, node.store).conflist(call.config, "delegate request")
    attributes = {key: value for key, value in asked.items() if key in ("ips", "mac", "cni-args") and value}
    element = {"name": "delegate", "interface": call.ifname, **attributes}
    (choice,) = selection.parse(json.dumps([element]), "default", "interfaceAttributes")
    return decide.requested_attachment(
        conf, replace(choice, name=conf.name, namespace=pod.namespace if pod else ""), call, node.config, pod
    )
