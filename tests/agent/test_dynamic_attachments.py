# SPDX-License-Identifier: Apache-2.0
"""A running pod gets what its annotation asks for, whenever and in whatever order that, and what it names, changed."""

import base64
import json
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from following import events, followed, following, interfaces, journalled, look
from running import until

from multus_py.agent.reconciling.dynamic_attachments import compare
from multus_py.cni.conflist import Conflist
from multus_py.cni.errors import CniError, Code
from multus_py.config import selection
from multus_py.config.plugin import MultusConfig
from multus_py.kernel import namespaces
from multus_py.kube.polled import Polled
from multus_py.kube.store import Device, PodRef, Unavailable
from multus_py.plan import decide
from multus_py.plan.attachment import PLATFORM, POD, REQUEST, Attachment
from multus_py.plan.networks import Sources

LATE = {"cniVersion": "1.0.0", "name": "late", "type": "bridge", "bridge": "br1"}


def has(running, *ifnames):
    """Wait until kernel and status have these interfaces."""
    wanted = sorted(ifnames)
    until(lambda: interfaces(running) == (wanted, wanted), lambda: f"{interfaces(running)} {running.log()}")


# --- through a daemon -------------------------------------------------------------------------------------------------


def test_a_daemon_over_a_folder_follows_it(running, leftovers):
    """Manifests are followed as a cluster is: more, less, and all is gone with the pod."""
    running.start(dynamicAttachments=True)
    running.call("ADD", "p")
    running.stage.pod("p", "b,m,b@more")
    has(running, "eth0", "net1", "net2", "more")
    running.stage.pod("p", "m")
    has(running, "eth0", "net2")
    running.call("DEL", "p")
    assert [] == leftovers(running)


def test_an_edit_while_the_daemon_is_away_is_followed(running):
    """What is asked for is compared with the journal at the start."""
    running.start(dynamicAttachments=True)
    running.call("ADD", "p")
    running.stop()
    running.stage.pod("p", "m,b@more")
    running.start(dynamicAttachments=True)
    has(running, "eth0", "net2", "more")
    running.call("DEL", "p")


def test_an_edit_before_it_was_switched_on_is_followed(running):
    """`dynamicAttachments` that comes with a config read again counts for edits of before, too."""
    running.start()
    running.call("ADD", "p")
    running.stage.pod("p", "b")
    running.configure(dynamicAttachments=True)
    has(running, "eth0", "net1")
    running.call("DEL", "p")


def test_a_definition_that_comes_later_is_followed(running):
    """The pod waits for it, and is told once that it does."""
    running.start(dynamicAttachments=True)
    running.call("ADD", "p")
    running.stage.pod("p", "b,m,late")
    until(lambda: "NoNetworkFound" in dict(events(running)), running.log)
    running.stage.definition("late", LATE)
    has(running, "eth0", "net1", "net2", "net3")
    assert ["NoNetworkFound"] == [reason for reason, _ in events(running, "Warning")]
    running.call("DEL", "p")


def slow_plugin(running):
    """Make a network `slow` whose ADD takes three seconds; return where it leaves `began`."""
    folder = running.stage.plugins.folder
    slow = folder / "slow"
    slow.write_text(
        f"#!/bin/sh\n[ $CNI_COMMAND != ADD ] || {{ touch {folder}/began; sleep 3; }}\nexec {folder}/scripted\n"
    )
    slow.chmod(0o755)
    running.stage.definition("slow", {"cniVersion": "1.0.0", "name": "slow", "type": "slow"})
    return folder


def test_the_newest_edit_wins(running):
    """An edit that comes while an earlier one is being worked on is worked on after it."""
    folder = slow_plugin(running)
    running.start(dynamicAttachments=True)
    running.call("ADD", "p")
    running.stage.pod("p", "b,slow")
    until((folder / "began").exists, running.log)
    running.stage.pod("p", "m")
    until(lambda: ("RemovedInterface", "Remove net2 from default/slow") in events(running), running.log)
    until(lambda: ["default/m"] == [item.name for item in journalled(running)[1:]], running.log)
    has(running, "eth0", "net1")
    running.call("DEL", "p")


def test_what_a_killed_daemon_left_half_made_is_made_anew(running, leftovers):
    """A network whose plugin never answered is no network that is there."""
    folder = slow_plugin(running)
    running.start(dynamicAttachments=True)
    running.call("ADD", "p")
    running.stage.pod("p", "b,m,slow")
    until((folder / "began").exists, running.log)
    running.stop(signal.SIGKILL)
    assert "default/slow" == journalled(running)[-1].name
    running.start(dynamicAttachments=True)
    until(lambda: ("AddedInterface", "Add net3 [] from default/slow") in events(running), running.log)
    running.call("DEL", "p")
    assert [] == leftovers(running)


def delegate(running, verb, ifname):
    """Send a `/delegate` request; return its status and body."""
    env = running.stage.call(verb, "p").environment() | {"CNI_IFNAME": ifname}
    body = {"env": env, "config": base64.b64encode(json.dumps(LATE).encode()).decode()}
    status, text = running.request("POST", "/delegate", body)
    return status, json.loads(text) if text else None


def test_nothing_is_plugged_into_a_sandbox_after_its_del(running, leftovers):
    """A `/delegate` request that comes too late makes no page anew; the sandbox's next ADD begins as any other."""
    running.start()
    running.call("ADD", "p")
    running.call("DEL", "p")
    status, error = delegate(running, "ADD", "hot0")
    assert (400, Code.UNKNOWN_CONTAINER) == (status, error["code"])
    assert [] == leftovers(running)
    running.call("ADD", "p")
    assert 200 == delegate(running, "ADD", "hot0")[0]
    running.call("DEL", "p")
    assert [] == leftovers(running)


def test_what_a_delegate_request_brought_stays(running):
    """It is not the annotation's: neither an edit nor a comparison takes it away."""
    running.start(dynamicAttachments=True)
    running.call("ADD", "p")
    assert 200 == delegate(running, "ADD", "hot0")[0]
    running.stage.pod("p", "m")
    has(running, "eth0", "net2", "hot0")
    running.call("DEL", "p")


# --- one look ---------------------------------------------------------------------------------------------------------


def test_a_deleted_definition_hinders_no_other_change(attached):
    """A network that is there needs its definition no more: it stays, and goes when it is asked for no more."""
    (attached.folder / "manifests" / "NetworkAttachmentDefinition-default-m.json").unlink()
    assert (["net3"], ["net1"]) == followed(attached, "m,s@net3")
    assert ([], ["net2"]) == followed(attached, "s")


def test_each_network_has_a_place_in_the_lane_of_adds(attached):
    """What is attached and detached for the annotation's sake is bounded with the runtime's own calls."""
    taken = []

    @contextmanager
    def place(verb):
        taken.append(verb)
        yield

    attached.stage.pod("p", "b,s")
    assert look(attached, replace(attached.stage.node(), slot=place))
    assert ["ADD", "ADD"] == taken


def test_one_network_s_failure_leaves_the_others_alone(attached):
    """What can be done is done; what failed is left to be done."""
    attached.stage.plugins.plugin("broken", ADD={"error": {"code": 108, "msg": "no"}})
    attached.stage.definition("x", {"cniVersion": "1.0.0", "name": "x", "type": "broken"})
    assert (["net2"], ["net2"]) == followed(attached, "b,none,x,s", done=False)
    assert ["NoNetworkFound", "FailedAttach"] == [reason for reason, _ in events(attached, "Warning")]
    assert ["default/b", "default/s"] == [item.name for item in journalled(attached)[1:]]


def test_a_delegate_s_defect_is_a_failure_like_others(attached, monkeypatch):
    """An error that is no CniError is told and tried again, and the other networks are attached."""
    attached.stage.pod("p", "b,m,s,late")
    attached.stage.definition("late", LATE)
    node = attached.stage.node()
    whole = type(node.chain).add

    def add(chain, attachment, call, *more):
        if attachment.name == "default/s":
            raise KeyError("mine")
        return whole(chain, attachment, call, *more)

    monkeypatch.setattr(type(node.chain), "add", add)
    assert not look(attached, node)
    assert ["default/b", "default/m", "default/late"] == [item.name for item in journalled(attached)[1:]]
    assert ("FailedAttach", "network default/s as net3: 'mine'") in events(attached)


def test_what_fails_and_cannot_be_taken_back_is_one_failure(attached):
    """However often it is tried again; the page does not grow, and the pod's DEL does not wait for it."""
    no = {"error": {"code": 108, "msg": "no"}}
    attached.stage.plugins.plugin("broken", ADD=no, DEL=no)
    attached.stage.definition("x", {"cniVersion": "1.0.0", "name": "x", "type": "broken"})
    attached.stage.pod("p", "b,m,x")
    for _ in range(3):
        assert not look(attached)
    entry = attached.stage.node().journal.read("c1", "eth0")
    assert (["default/b", "default/m"], ["default/x"]) == (
        [item.name for item in entry.attachments[1:]],
        [failure.attachment.name for failure in entry.failures],
    )


def test_a_failure_is_told_once_and_again_after_an_edit(attached):
    """Every try that fails in the same way is one Event; a new annotation begins anew."""
    attached.stage.plugins.plugin("broken", ADD={"error": {"code": 108, "msg": "no"}})
    attached.stage.definition("x", {"cniVersion": "1.0.0", "name": "x", "type": "broken"})
    follow = following(attached.stage.node())
    for networks, told in (("b,m,x", 1), ("b,x", 2)):
        attached.stage.pod("p", networks)
        for _ in range(3):
            assert not namespaces.run_in(attached.host, lambda: follow.process(("default", "p")))
        assert told == len(events(attached, "Warning"))


def test_the_event_of_a_plugged_network_has_its_addresses(attached):
    """It reads as that of a network that came with ADD."""
    added = [message for reason, message in events(attached) if reason == "AddedInterface"]
    assert "Add net1 [10.89.0.2/16] from default/b" in added
    followed(attached, "b,m,b@more")
    assert ("AddedInterface", "Add more [10.89.0.3/16] from default/b") == events(attached)[-1]


class Interrupted:
    """A store that does something just before a definition is read, or that cannot publish for a time."""

    def __init__(self, store, before=lambda name: None):
        self.store, self.before, self.mute = store, before, False

    def __getattr__(self, name):
        return getattr(self.store, name)

    def definition(self, namespace, name):
        self.before(name)
        return self.store.definition(namespace, name)

    def publish_status(self, pod, text):
        if self.mute:
            raise Unavailable("the API server is away")
        self.store.publish_status(pod, text)


def test_a_del_in_between_has_the_last_word(running, leftovers):
    """What is left of a change when the sandbox's DEL comes is not done: no page is made anew."""
    namespaces.run_in(running.host, lambda: running.stage.run("ADD", "p"))
    running.stage.pod("p", "b,m,s,b@more")
    node = running.stage.node()
    deleted = []

    def before(name):
        if name == "s" and not deleted:
            deleted.append(running.stage.run("DEL", "p"))

    assert look(running, replace(node, store=Interrupted(node.store, before)))
    assert [None] == deleted
    assert [] == leftovers(running)
    assert [] == events(running)


def test_a_status_that_could_not_be_told_is_told_later(attached):
    """A detached network is in nobody's status for longer than the API server is away."""
    attached.stage.pod("p", "b")
    node = attached.stage.node()
    store = Interrupted(node.store)
    follow = following(replace(node, store=store))
    store.mute = True
    for _ in range(2):
        assert not namespaces.run_in(attached.host, lambda: follow.process(("default", "p")))
        assert (["eth0", "net1"], ["eth0", "net1", "net2"]) == interfaces(attached)
    store.mute = False
    assert namespaces.run_in(attached.host, lambda: follow.process(("default", "p")))
    assert (["eth0", "net1"],) * 2 == interfaces(attached)


def test_a_pod_that_is_gone_is_forgotten(attached):
    """Nothing is kept of what failed for it."""
    attached.stage.pod("p", "b,m,none")
    follow = following(attached.stage.node())
    assert not namespaces.run_in(attached.host, lambda: follow.process(("default", "p")))
    assert [("default", "p")] == list(follow._failing)
    (attached.folder / "manifests" / "Pod-default-p.json").unlink()
    assert follow.process(("default", "p"))
    assert {} == follow._failing
    attached.stage.pod("p", "b,m")


def test_an_annotation_that_cannot_be_read_is_told(attached):
    """The pod keeps what it has."""
    assert ([], []) == followed(attached, "b,,m", done=False)
    reason, message = events(attached)[-1]
    assert ("FailedAttach", True) == (reason, "an empty item" in message)


def test_a_page_that_is_held_is_come_back_to(attached):
    """While an ADD or DEL works on the sandbox nothing is compared, and nothing is told."""
    attached.stage.pod("p", "b")
    before = events(attached)
    with attached.stage.node().journal.lock_sandbox("c1", "eth0"):
        assert not look(attached)
    assert before == events(attached)
    assert look(attached)


def test_all_pods_are_compared_by_one_reading(attached):
    """Of the pods on a node only those that differ are looked at."""
    node = attached.stage.node()
    folder = attached.folder / "manifests"
    follow = following(replace(node, store=Polled(folder, node.config.cni_dir / "pods")))
    attached.stage.pod("q", "b")
    assert follow.process(("", ""))
    assert 0 == len(follow.queue)
    for networks in ("b", "b,,m"):  # the second cannot be read, which the look tells
        attached.stage.pod("p", networks)
        assert follow.process(("", ""))
        assert 1 == len(follow.queue)
        follow.queue.drop(("default", "p"))


@pytest.mark.parametrize("ends", [{"deleted": True}, {"phase": "Succeeded"}, {"uid": "another"}])
def test_a_pod_that_ends_is_left_alone(attached, ends):
    """One that is told to end, has ended, or was made anew under the name gets and loses nothing."""
    attached.stage.pod("p", "b")
    node = attached.stage.node()
    (page,) = node.journal.sandboxes()
    with node.journal.lock_sandbox(*page) as open_page:
        open_page.write(replace(open_page.entry, pod=replace(open_page.entry.pod, uid="u1")))
    pod = replace(node.store.pod(PodRef("default", "p")), **{"uid": "u1", **ends})
    store = Interrupted(node.store)
    store.pod = lambda ref: pod
    assert look(attached, replace(node, store=store))
    assert (["eth0", "net1", "net2"],) * 2 == interfaces(attached)


# --- comparing --------------------------------------------------------------------------------------------------------


def attachment(name, ifname, origin=POD, **more):
    """Return an attachment as the journal has it."""
    conf = Conflist("n", "1.0.0", ({"type": "bridge", **more.pop("plugin", {})},))
    return Attachment(name, conf, ifname, primary=ifname == "eth0", origin=origin, **more)


FIRST = attachment("cluster", "eth0", PLATFORM, capabilities={"portMappings": [{"hostPort": 1}]})


def compared(there, asked, **config):
    """Return which networks are plugged and which interfaces unplugged."""
    text = asked if isinstance(asked, str) else json.dumps(asked)
    change = compare([FIRST, *there], selection.parse(text, "default"), MultusConfig("mp", "1.0.0", **config))
    return [choice.interface or choice.name for choice in change.plug], [item.ifname for item in change.unplug]


SAME = ([], [])


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ([attachment("default/a", "net4")], "a"),
        ([attachment("default/a", "net4"), attachment("default/a", "net5")], "a,a@net4"),
        ([attachment("default/a", "net1", capabilities={"mac": "02:00:00:00:00:01"})],
         [{"name": "a", "mac": "02:00:00:00:00:01"}]),
        # Earlier builds gave the runtime's wishes to every network.
        ([attachment("default/a", "net1", capabilities={"portMappings": [{"hostPort": 1}]})], "a"),
        ([attachment("default/a", "net1", device=Device("r.io/x", "0000:01:00.1"),
                     capabilities={"deviceID": "0000:01:00.1"})], "a"),
        ([attachment("default/a", "net1", device=Device("r.io/x", "7", ("main",)), capabilities={"deviceID": "7"})],
         [{"name": "a", "resourceName": "r.io/x", "container": "main"}]),
        ([attachment("default/a", "net1", plugin={"args": {"cni": {"one": 1, "own": 2}}})],
         [{"name": "a", "cni-args": {"one": 1}}]),
        ([attachment("other", "net1", PLATFORM), attachment("default/x", "hot0", REQUEST)], ""),
    ],
)  # fmt: skip
def test_what_is_asked_for_as_before_stays(there, asked):
    """Its number, the runtime's wishes, and a device that the definition brought make no difference."""
    assert SAME == compared(there, asked)


@pytest.mark.parametrize(
    ("has", "asked"),
    [
        ({}, {"mac": "02:00:00:00:00:01"}),
        ({"capabilities": {"bandwidth": {"ingressRate": 1}}}, {}),
        ({"capabilities": {"ips": ["10.0.0.1"]}}, {"ips": ["10.0.0.2"]}),
        ({}, {"default-route": ["10.0.0.1"]}),
        ({}, {"interface": "data"}),
        ({}, {"cni-args": {"one": 1}}),
        ({"plugin": {"args": {"cni": {"one": 1}}}}, {"cni-args": {"one": 2}}),
        ({}, {"resourceName": "r.io/x"}),
        ({"device": Device("r.io/x", "7")}, {"resourceName": "r.io/y"}),
        ({"device": Device("r.io/x", "7")}, {"deviceID": "8", "resourceName": "r.io/x"}),
    ],
)
def test_what_is_asked_for_otherwise_is_made_anew(has, asked):
    """Each word of an element counts."""
    assert ([asked.get("interface", "a")], ["net1"]) == compared(
        [attachment("default/a", "net1", **has)], [{"name": "a", **asked}]
    )


def test_a_page_of_an_earlier_build_is_read_with_care(tmp_path: Path):
    """Without a word on who asked, what bears a name of the platform's config stays."""
    there = [
        attachment("kube-system/a", "net1", ""),
        attachment("file", "net2", ""),
        attachment("default/a", "net3", ""),
    ]
    assert ([], ["net3"]) == compared(there, "", multus_namespace="kube-system", default_networks=("a",))


def test_a_new_network_gets_a_device_that_no_other_has(running):
    """Of what the pod was given, what its networks have is not given twice."""
    running.stage.definition("d", LATE, **{"k8s.v1.cni.cncf.io/resourceName": "r.io/x"})
    node = running.stage.node()
    pod = node.store.pod(PodRef("default", "p"))
    given = [lambda: [Device("r.io/x", "0000:01:00.1"), Device("r.io/x", "0000:01:00.2")]]
    (choice,) = selection.parse("d@net2", "default")
    there = [attachment("default/d", "net1", device=Device("r.io/x", "0000:01:00.1"))]
    sources = Sources(node.config, node.store)
    call = running.stage.call("ADD", "p")
    found = decide.additional_attachment(there, choice, call, pod, sources=sources, device_sources=given)
    assert ("net2", "0000:01:00.2", POD) == (found.ifname, found.device.id, found.origin)
    with pytest.raises(CniError, match="there is none for it"):
        decide.additional_attachment([*there, found], choice, call, pod, sources=sources, device_sources=given)
