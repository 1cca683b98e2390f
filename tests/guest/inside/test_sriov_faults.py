# SPDX-License-Identifier: Apache-2.0
"""Whatever dies or gets lost on the way: every function comes home as it was, and nobody's function is touched."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nic
import pytest
from killing import killed_before
from pods import Pod, Pods
from stage import namespace
from test_sriov import element

from multus_py.cni import result as results
from multus_py.cni.call import Call, cni_args
from multus_py.cni.errors import CniError, Code
from multus_py.kernel import namespaces
from multus_py.verbs.plugins import Plugins

STRIDE = 4  # every fourth step of the way: the others differ from it by one message to the kernel


def attached(card: nic.Nic, pods: Pods) -> tuple[Pod, str]:
    """Attach a pod to a function with attributes of its own; return both."""
    device = card.ports[0].functions[1]
    pods.network("net", "10.77.9.0/24", vlan=99, trust="on", spoofchk="off", max_tx_rate=50)
    pod = pods.pod(element("net", device, mac="02:00:00:00:77:01"))
    pod.run("ADD")
    assert 99 == card.ports[0].told(device)["vlan_list"][0]["vlan"]
    assert 1 == len(pod.addresses())
    return pod, device


def namespace_deleted(card: nic.Nic, pods: Pods, pod: Pod, device: str) -> None:
    """The namespace is gone when DEL comes; the runtime still names it."""
    pods.bury(pod)
    pod.run("DEL")


def namespace_deleted_and_forgotten(card: nic.Nic, pods: Pods, pod: Pod, device: str) -> None:
    """The namespace is gone, and the runtime has none to name."""
    pods.bury(pod)
    pod.run("DEL", netns="")


def namespace_not_named(card: nic.Nic, pods: Pods, pod: Pod, device: str) -> None:
    """CNI_NETNS is empty while the namespace lives."""
    pod.run("DEL", netns="")


def namespace_held_for_a_while(card: nic.Nic, pods: Pods, pod: Pod, device: str) -> None:
    """The namespace's name is gone, a process in it lives a little longer than DEL's beginning."""

    holder = namespaces.run_in(pod.netns, lambda: os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "2"))
    pods.bury(pod)
    try:
        pod.run("DEL", netns="")
    finally:
        os.waitpid(holder, 0)


def lease_lost(card: nic.Nic, pods: Pods, pod: Pod, device: str) -> None:
    """The folder of leases is gone: the mark on the interface tells whose it is and what it was called."""
    shutil.rmtree(pods.folder / "sriov")
    pod.run("DEL")


def lease_lost_and_namespace_deleted(card: nic.Nic, pods: Pods, pod: Pod, device: str) -> None:
    """The folder of leases and the namespace are gone."""
    shutil.rmtree(pods.folder / "sriov")
    pods.bury(pod)
    nic.until(lambda: bool(nic.interface(device)))
    pod.run("DEL", netns="")


def lease_emptied(card: nic.Nic, pods: Pods, pod: Pod, device: str) -> None:
    """The lease is an empty file, as a full disk leaves it."""
    (pods.folder / "sriov/leases" / device).write_text("")
    pod.run("DEL")


def renamed_inside(card: nic.Nic, pods: Pods, pod: Pod, device: str) -> None:
    """The pod gave its interface another name."""
    nic.run("ip", "link", "set", "net1", "down", netns=pod.netns)
    nic.run("ip", "link", "set", "net1", "name", "mine0", netns=pod.netns)
    pod.run("DEL")


def deleted_twice(card: nic.Nic, pods: Pods, pod: Pod, device: str) -> None:
    """DEL comes again."""
    pod.run("DEL")
    pod.run("DEL")


LOSSES: list[Callable[[nic.Nic, Pods, Pod, str], None]] = [
    namespace_deleted, namespace_deleted_and_forgotten, namespace_not_named, namespace_held_for_a_while, lease_lost,
    lease_lost_and_namespace_deleted, lease_emptied, renamed_inside, deleted_twice,
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_function_comes_home_after(
    loss: Callable[[nic.Nic, Pods, Pod, str], None], card: nic.Nic, pods: Pods
) -> None:
    """After each loss and DEL the function is home with its name and attributes, the address free, no lease left."""
    pod, device = attached(card, pods)
    loss(card, pods, pod, device)
    assert [] == pods.leases()
    assert [] == pod.addresses()
    after = card.look()
    if loss in (lease_lost, lease_lost_and_namespace_deleted, lease_emptied):
        # The hardware address that it had is lost with the lease: it keeps the pod's, on both sides.
        name = next(name for name, link in card.before.items() if link["parentdev"] == device)
        restore_address(card.ports[0], device, name, card.before[name]["address"])
        after = card.look()
    assert card.before == after


def restore_address(port: nic.Port, device: str, name: str, mac: str) -> None:
    """Give a function its earlier hardware address."""
    number = str(port.functions.index(device))
    nic.run("ip", "link", "set", port.name, "vf", number, "mac", mac)
    nic.run("ip", "link", "set", name, "up")
    nic.run("ip", "link", "set", name, "down")
    assert mac == nic.links()[name]["address"]


def test_an_owner_that_vanished_is_replaced(card: nic.Nic, pods: Pods) -> None:
    """A function whose owner's namespace is gone is put in order and leased anew; the late DEL then changes nothing."""
    gone, device = attached(card, pods)
    pods.bury(gone)
    pods.network("other", "10.77.8.0/24")
    fresh = pods.pod(element("other", device))
    fresh.run("ADD")
    told = card.ports[0].told(device)
    assert (False, True, 0) == (told["trust"], told["spoofchk"], told["rate"]["max_tx"])
    assert "vlan" not in told["vlan_list"][0]
    gone.run("DEL", netns="")
    assert device == nic.links(fresh.netns)["net1"]["parentdev"]
    assert [device] == pods.leases()
    fresh.run("CHECK")
    fresh.run("DEL")
    assert card.before == card.look()


def test_a_namespace_that_is_held_keeps_the_lease(card: nic.Nic, pods: Pods) -> None:
    """While something holds the dead namespace, DEL says so and the function stays leased; DEL again then ends it."""

    pod, device = attached(card, pods)
    holder = namespaces.run_in(pod.netns, lambda: os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600"))
    try:
        pods.bury(pod)
        with pytest.raises(CniError, match="did not come home") as caught:
            pod.run("DEL", netns="")
        assert Code.TRY_AGAIN == caught.value.code
        assert [device] == pods.leases()
        assert [] == pod.addresses()  # what can be released is
    finally:
        os.kill(holder, 9)
        os.waitpid(holder, 0)
    pod.run("DEL", netns="")
    assert [] == pods.leases()
    assert card.before == card.look()


def test_a_reloaded_port_driver_leaves_functions_usable(card: nic.Nic, pods: Pods) -> None:
    """The port's driver goes and comes while a pod has a function: DEL succeeds, and the new function can be used."""
    pod, device = attached(card, pods)
    card.ports[0].reload()
    pod.run("DEL")
    assert [] == pods.leases()
    assert [] == pod.addresses()
    told = card.ports[0].told(device)
    assert (False, True) == (told["trust"], told["spoofchk"])
    assert "vlan" not in told["vlan_list"][0]
    again = pods.pod(element("net", device))
    again.run("ADD")
    assert device == nic.links(again.netns)["net1"]["parentdev"]
    again.run("DEL")
    assert nic.interface(device)
    card.ports[0].make_functions()
    card.before = card.look()  # all functions are new ones, with addresses of their own


def test_a_function_that_is_gone_can_be_deleted(card: nic.Nic, pods: Pods) -> None:
    """The port has no functions any more: DEL releases the address and the lease."""
    pod, device = attached(card, pods)
    port = card.ports[0]
    (Path("/sys/bus/pci/devices") / port.address / "sriov_numvfs").write_text("0")
    try:
        pod.run("DEL")
        assert [] == pods.leases()
        assert [] == pod.addresses()
        again = pods.pod(element("net", device))
        with pytest.raises(CniError, match=f"there is no PCI device {device}"):
            again.run("ADD")
    finally:
        port.make_functions()
        card.before = card.look()


# --- kills -----------------------------------------------------------------------------------------------------------


def call(pods: Pods, verb: str, container: str, netns: str, config: dict[str, Any]) -> Call:
    """Return the call for net1 of a container, straight to the delegate."""
    return Call(verb, container, netns, "net1", cni_args(""), ("/usr/lib/cni",), {"name": "net", **config})


def succeeds(asked: Call) -> dict[str, Any] | None:
    """Run the delegate."""
    return Plugins().run("sriov", asked)


KILLS = {
    "ADD, then DEL": ("ADD", False), "ADD, then ADD and DEL": ("ADD", True), "DEL, then DEL": ("DEL", False),
    "DEL, then the namespace goes": ("DEL", True),
}  # fmt: skip


@pytest.mark.parametrize("kill", KILLS)
def test_a_kill_at_any_step_leaves_nothing(kill: str, card: nic.Nic, pods: Pods) -> None:
    """ADD or DEL dies before any of its deeds: what comes after brings the function home as it was, without a lease."""
    verb, more = KILLS[kill]
    device = card.ports[0].functions[2]
    # host-local refuses a second ADD without a DEL between, as it should: then the function alone is looked at.
    subnet = "" if kill == "ADD, then ADD and DEL" else "10.77.6.0/24"
    config = pods.sriov(subnet, deviceID=device, vlan=66, trust="on", mac="02:00:00:00:77:66")
    steps = 0
    for n in range(random.randint(1, STRIDE), 1000, STRIDE):
        with namespace() as netns:
            add, delete = (call(pods, one, f"kill{n}", netns, config) for one in ("ADD", "DEL"))
            if verb == "DEL":
                succeeds(add)
            came_so_far = killed_before(n, partial(succeeds, add if verb == "ADD" else delete))
            if verb == "ADD" and more:
                succeeds(add)
                assert device == nic.links(netns)["net1"]["parentdev"]
            if not (verb == "DEL" and more):
                succeeds(delete)
        if verb == "DEL" and more:
            succeeds(delete)
        assert [] == pods.leases(), f"after a kill before deed {n}"
        assert [] == list((pods.folder / "ipam").rglob("10.*"))
        assert card.before == card.look(), f"after a kill before deed {n}"
        steps = n
        if not came_so_far:
            break
    assert steps > 15


PODS, SECONDS = 12, 12.0


def test_pods_that_compete_never_share_a_function(card: nic.Nic, pods: Pods, tmp_path: Path) -> None:
    """Twelve pods fight for seven functions, some die half-way: never two owners, never a change of one in use."""
    (tmp_path / "held").mkdir()
    children = [os.fork() or _compete(n, card, pods, tmp_path) for n in range(PODS)]
    for child in children:
        os.waitpid(child, 0)
    rounds = [json.loads((tmp_path / f"round{n}").read_text()) for n in range(PODS)]
    assert [] == [trouble for one in rounds for trouble in one["troubles"]]
    assert sum(one["held"] for one in rounds) >= len(card.ports[0].functions)  # a busy machine emulates few more
    assert sum(one["killed"] for one in rounds) >= 3
    assert sum(one["refused"] for one in rounds) >= PODS
    assert [] == pods.leases()
    assert card.before == card.look()


def _compete(n: int, card: nic.Nic, pods: Pods, folder: Path) -> int:
    """Attach and detach until the time is over; ends the process. What went wrong is written down for the parent."""
    told: dict[str, Any] = {"troubles": [], "held": 0, "killed": 0, "refused": 0}
    try:
        chance = random.Random(n)
        end = time.monotonic() + SECONDS
        turn = 0
        while time.monotonic() < end:
            turn += 1
            with namespace() as netns:
                _turn(f"pod{n}-{turn}", n, netns, chance, card, pods, folder, told)
    except BaseException as trouble:  # noqa: BLE001  it is the parent's to judge
        told["troubles"].append(f"pod {n}: {type(trouble).__name__}: {trouble}")
    finally:
        (folder / f"round{n}").write_text(json.dumps(told))
        os._exit(0)


def _turn(
    name: str, n: int, netns: str, chance: random.Random, card: nic.Nic, pods: Pods, folder: Path, told: dict[str, Any]
) -> None:
    """Attach once, perhaps die on the way; hold the function for a moment, see that it is ours alone, detach."""
    device = chance.choice(card.ports[0].functions)
    mac = f"02:00:00:00:88:{n:02x}"
    config = pods.sriov(deviceID=device, vlan=1000 + n, mac=mac)
    add, delete = (call(pods, verb, name, netns, config) for verb in ("ADD", "DEL"))
    if chance.random() < 0.3 and killed_before(chance.randint(1, 60), lambda: succeeds(add)):
        told["killed"] += 1
        succeeds(delete)
        return
    try:
        result = succeeds(add)
    except CniError as refusal:
        if refusal.code != Code.TRY_AGAIN:
            raise
        told["refused"] += 1
        succeeds(delete)
        return
    assert result and device == results.read(result, "1.1.0").interfaces[0].pci_id
    mark = folder / "held" / device
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # FileExistsError: two owners
    time.sleep(chance.random())
    seen = card.ports[0].told(device)
    assert (1000 + n, mac) == (seen["vlan_list"][0].get("vlan"), seen["address"]), f"{device} was changed: {seen}"
    assert device == nic.links(netns)["net1"]["parentdev"]
    told["held"] += 1
    mark.unlink()
    if chance.random() < 0.3 and killed_before(chance.randint(1, 40), lambda: succeeds(delete)):
        told["killed"] += 1
    succeeds(delete)
