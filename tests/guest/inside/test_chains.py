# SPDX-License-Identifier: Apache-2.0
"""Virtual functions beside and below the real vlan, ipvlan and vrf executables, told by the whole story."""

import json
from typing import Any

import nic
import pytest
from pods import Pods
from test_sriov import element


def pool(pods: Pods, subnet: str) -> dict[str, Any]:
    """Return a host-local config."""
    return {"type": "host-local", "dataDir": str(pods.folder / "ipam"), "subnet": subnet}


def shared(pods: Pods, subnet: str, first: str) -> dict[str, Any]:
    """Return a pool that begins at *first*, for a network of the same wire under another name."""
    return {**pool(pods, subnet), "rangeStart": first}


def test_a_function_in_a_vlan_reaches_a_vlan_interface_of_the_other_port(card: nic.Nic, pods: Pods) -> None:
    """What the NIC tags for a pod's function, the vlan executable's interface on the other port hears."""
    # On a function that stayed at home: the emulated port itself does not hear tags while it has functions.
    master = nic.interface(card.ports[1].functions[6])
    nic.run("ip", "link", "set", master, "up")
    pods.network("function", "10.78.0.0/24", vlan=77)
    pods.stage.definition(
        "tagged",
        {"cniVersion": "1.0.0", "type": "vlan", "master": master, "vlanId": 77,
         "ipam": shared(pods, "10.78.0.0/24", "10.78.0.100")},
    )  # fmt: skip
    one, other = pods.pod(element("function", card.ports[0].functions[0])), pods.pod({"name": "tagged"})
    one.run("ADD")
    other.run("ADD")
    assert 77 == nic.links(other.netns)["net1"]["linkinfo"]["info_data"]["id"]
    assert nic.reaches(one.netns, "10.78.0.100")
    other.run("CHECK")
    for pod in (one, other):
        pod.run("DEL")
    assert [] == one.addresses() + other.addresses()
    nic.run("ip", "link", "set", master, "down")


def test_a_function_reaches_an_ipvlan_interface_of_the_other_port(card: nic.Nic, pods: Pods) -> None:
    """A pod with a function and a pod with the ipvlan executable's interface on the other port talk."""
    pods.network("function", "10.78.1.0/24")
    pods.stage.definition(
        "thin",
        {"cniVersion": "1.0.0", "type": "ipvlan", "master": card.ports[1].name,
         "ipam": shared(pods, "10.78.1.0/24", "10.78.1.100")},
    )  # fmt: skip
    one, other = pods.pod(element("function", card.ports[0].functions[1])), pods.pod({"name": "thin"})
    one.run("ADD")
    other.run("ADD")
    assert "ipvlan" == nic.links(other.netns)["net1"]["linkinfo"]["info_kind"]
    assert nic.reaches(one.netns, "10.78.1.100")
    other.run("CHECK")
    for pod in (other, one):
        pod.run("DEL")
    assert [] == one.addresses() + other.addresses()


@pytest.mark.parametrize("buried", [False, True])
def test_a_function_below_a_vrf_comes_home(buried: bool, card: nic.Nic, pods: Pods) -> None:
    """A chain of sriov and the vrf executable puts the function into a VRF of the pod; DEL takes both apart again."""
    plugins = [
        {**pods.sriov("10.78.2.0/24", vlan=12), "type": "sriov"},
        {"type": "vrf", "vrfname": "blue", "table": 500},
    ]
    pods.stage.definition("chain", {"cniVersion": "1.0.0", "name": "chain", "plugins": plugins})
    device = card.ports[0].functions[2]
    pod = pods.pod(element("chain", device))
    # Debian's vrf fails now and then when the kernel gives the interface its link-local address back before it does.
    nic.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1", netns=pod.netns)
    pod.run("ADD")
    inside = nic.links(pod.netns)
    assert ("blue", device) == (inside["net1"]["master"], inside["net1"]["parentdev"])
    routes = json.loads(nic.run("ip", "-j", "route", "show", "table", "500", netns=pod.netns))
    assert any(route["dst"] == "10.78.2.0/24" for route in routes)
    if buried:
        pods.bury(pod)
    pod.run("DEL")
    assert [] == pods.leases()
    assert [] == pod.addresses()
    assert card.before == card.look()
