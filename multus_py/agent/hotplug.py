# SPDX-License-Identifier: Apache-2.0
"""Networks of a pod that runs already: one more, one less, journalled like those that came with ADD."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from multus_py import attach, device_info, gateway, plan, selection, teardown
from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code, tried
from multus_py.cni.result import Result
from multus_py.journal import Entry, Failure, Page, Progress, boot, complete, uncertain, uptime
from multus_py.kube.store import Pod
from multus_py.node import Node
from multus_py.plan import Attachment

PRIMARY = "eth0"  # the interface of a sandbox that nothing is known of yet
_NUMBERED = re.compile(r"net[0-9]+\Z")


@contextmanager
def sandbox(call: Call, node: Node) -> Iterator[tuple[Page, Entry]]:
    """Open the journal page of the sandbox that *call* is about, whatever its own interface is called.

    A sandbox that another program attached gets a page: what is known of it elsewhere, so that its DEL stays whole.
    """
    known = [ifname for container_id, ifname in node.journal.sandboxes() if container_id == call.container_id]
    with node.journal.page(call.container_id, known[0] if known else PRIMARY) as page:
        if page.entry:
            yield page, page.entry
            return
        whole = replace(call, ifname=PRIMARY)
        there = [one for one, _ in teardown.known(page, whole, node)]
        yield page, Entry(
            node.config.name, call.container_id, PRIMARY, call.netns, tuple(there), plan.pod_ref(call), boot(),
            progress={one.ifname: uncertain(one) for one in there}, since=uptime(),
        )  # fmt: skip


def plug(attachment: Attachment, call: Call, node: Node, pod: Pod | None) -> Result:
    """Attach one more network; on an error it is taken back and the page is as it was.

    A default route that it asks for moves to it: connections of the pod over the one before may end.
    """
    with sandbox(call, node) as (page, entry):
        if any(other.ifname == attachment.ifname for other in entry.attachments):
            raise CniError(Code.INVALID_CONFIG, f"the sandbox has an interface {attachment.ifname} already")
        node.chain.refuse_unfit(attachment, call)
        attach.refuse_taken_names(call.netns, [attachment])
        grown = replace(entry, attachments=(*entry.attachments, attachment), netns=call.netns)
        with node.journal.attaching():
            page.write(grown)
            try:
                told = _attach(page, grown.attachments, call, node)
                results.write(told[-1][1], call.version)  # before anybody is told: an old version cannot say all
                attach.publish(told, call.netns, node, pod)
            except BaseException as error:
                if trouble := tried(lambda: _take_back(page, entry, call, node)):
                    error.add_note(f"and could not be taken back yet, the pod's DEL will: {trouble}")
                raise
    return told[-1][1]


def _attach(page: Page, attachments: Sequence[Attachment], call: Call, node: Node) -> list[attach.Told]:
    """Attach the last of *attachments*, the others are there; return all with their results."""
    *before, new = attachments
    attach.beside(page, before, new, call, node)
    page.done(new, *complete(new))
    return attach.settle(attach.kept(attachments, call, node), gateway.claims([new]), call, node)


def _take_back(page: Page, before: Entry, call: Call, node: Node) -> None:
    """Detach the network that could not be plugged; the page is as it was *before*, and knows what failed."""
    if page.entry:
        attachment = page.entry.attachments[-1]
        failure, _ = _detach(attachment, page.entry.reached(attachment), before, call, node)
        page.write(_failed(before, failure))


def _failed(entry: Entry, failure: Failure | None) -> Entry:
    return replace(entry, failures=(*entry.failures, failure)) if failure else entry


def unplug(ifname: str, call: Call, node: Node, pod: Pod | None) -> bool:
    """Detach the network with the interface *ifname*; False when the journal knows none."""
    with sandbox(call, node) as (page, entry):
        found = next((item for item in entry.attachments if item.ifname == ifname and not item.primary), None)
        if found is None:
            return False
        call = replace(call, netns=call.netns or entry.netns)
        left = replace(entry, attachments=tuple(item for item in entry.attachments if item is not found))
        failure, told = _detach(found, entry.reached(found), left, call, node)
        page.write(_failed(left, failure))
        attach.publish(told, call.netns, node, pod)
    return True


def _detach(
    attachment: Attachment, progress: Progress, left: Entry, call: Call, node: Node
) -> tuple[Failure | None, list[attach.Told]]:
    """Detach one network and give back the default routes that it claimed; return what is *left* with its results."""
    failure = teardown.detach(attachment, progress, call, node)
    kept = attach.kept(left.attachments, call, node)
    return failure, attach.give_back(kept, gateway.claims([attachment]), call, node)


def wanted(call: Call, asked: Mapping[str, Any], node: Node, pod: Pod | None) -> Attachment:
    """Return the attachment that a `/delegate` request describes: the delegate's own config, and the wishes *asked*.

    The request has no word for a device or a default route, multus-cni's neither: the config names its device itself,
    and an annotation that is followed has both.
    """
    conf = plan.Sources(node.config, node.store).conflist(call.config, "delegate request")
    wishes = {key: value for key, value in asked.items() if key in ("ips", "mac", "cni-args") and value}
    element = {"name": "delegate", "interface": call.ifname, **wishes}
    (choice,) = selection.parse(json.dumps([element]), "default", "interfaceAttributes")
    return plan.one_more(
        conf, replace(choice, name=conf.name, namespace=pod.namespace if pod else ""), call, node.config, pod
    )


@dataclass(frozen=True)
class Change:
    """What a new annotation means for the networks that are there."""

    plug: tuple[Attachment, ...]
    unplug: tuple[Attachment, ...]


def compare(
    there: Sequence[Attachment], asked: Sequence[Attachment], rename: Callable[[Attachment, str], Attachment]
) -> Change:
    """Return what has to be attached and detached; a network that is asked for as before stays, whatever its number.

    The cluster's networks are in both lists and stay. New ones get the first free net<N>, or the name they ask for.
    """
    left = list(there)
    new = []
    for one in asked:
        same = [item for item in left if _wish(item) == _wish(one)]
        exact = next((item for item in same if item.ifname == one.ifname), None)
        numbered = next((item for item in same if _NUMBERED.match(item.ifname) and _NUMBERED.match(one.ifname)), None)
        if kept := exact or numbered:
            left.remove(kept)
        else:
            new.append(one)
    gone = tuple(item for item in left if not item.primary)
    taken = {item.ifname for item in there if item not in gone}
    return Change(plug=tuple(_named(new, taken, rename)), unplug=gone)


def _wish(attachment: Attachment) -> tuple[Any, ...]:
    args = tuple(pair for pair in attachment.args if pair[0] in ("MAC", "IP"))
    wishes = {key: value for key, value in attachment.capabilities.items() if key != device_info.CAPABILITY}
    return attachment.name, args, wishes, attachment.default_route, attachment.device, attachment.primary


def _named(
    new: Sequence[Attachment], taken: set[str], rename: Callable[[Attachment, str], Attachment]
) -> Iterator[Attachment]:
    """Yield the new attachments, those with a number renumbered to what is free."""
    used = taken | {item.ifname for item in new if not _NUMBERED.match(item.ifname)}
    for item in new:
        if item.ifname in used and _NUMBERED.match(item.ifname):
            free = next(n for n in range(1, len(used) + 2) if f"net{n}" not in used)
            item = rename(item, f"net{free}")  # noqa: PLW2901  the same one under a free name
        used.add(item.ifname)
        yield item


def follow(pod: Pod, node: Node, call_of: Any) -> Change:
    """Make the networks of a running pod what its annotation asks for now; return what was changed."""
    done = Change((), ())
    for container_id, ifname in node.journal.sandboxes():
        with node.journal.page(container_id, ifname) as page:
            entry = page.entry
        if entry is None or entry.pod is None or (entry.pod.namespace, entry.pod.name) != (pod.namespace, pod.name):
            continue
        if entry.pod.uid and pod.uid and entry.pod.uid != pod.uid and not pod.is_static:
            continue
        call = call_of(entry)
        given = attach.device_sources(call, node, pod)
        asked = plan.attachments(call, node.config, pod, node.store, given)
        change = compare(entry.attachments, asked, partial(plan.renamed, call=call, config=node.config))
        for attachment in reversed(change.unplug):
            unplug(attachment.ifname, call, node, pod)
        for attachment in change.plug:
            plug(attachment, call, node, pod)
        done = Change(done.plug + change.plug, done.unplug + change.unplug)
    return done
