# SPDX-License-Identifier: Apache-2.0
"""Real virtual functions in pods: what they reach, what their ports say of them, and how they come home."""

import json
from pathlib import Path
from typing import Any

import nic
import pytest
from pods import Pods

from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.verbs.plugins import Plugins


def element(name: str, device: str, **more: Any) -> dict[str, Any]:
    """Return an element of the networks annotation that asks for a device."""
    return {"name": name, "deviceID": device, **more}


def test_pods_of_one_vlan_reach_each_other_across_ports_and_no_others(card: nic.Nic, pods: Pods) -> None:
    """Two pods in VLAN 100 with fixed addresses, each on its own port, talk; a third in VLAN 200 hears neither."""
    pods.network("red", "10.77.0.0/24", vlan=100)
    pods.network("blue", "10.77.0.0/24", vlan=200)
    devices = [card.ports[0].functions[0], card.ports[1].functions[0], card.ports[1].functions[1]]
    macs = [f"02:00:00:00:77:0{n}" for n in (1, 2, 3)]
    made = [
        pods.pod(element(name, device, mac=mac))
        for name, device, mac in zip(("red", "red", "blue"), devices, macs, strict=True)
    ]
    for pod in made:
        pod.run("ADD")
        pod.run("CHECK")
    first, second, third = (pod.addresses()[0] for pod in made)
    for pod, mac, device in zip(made, macs, devices, strict=True):
        link = nic.links(pod.netns)["net1"]
        assert (mac, device, "UP") == (link["address"], link["parentdev"], link["operstate"])
    assert [100, 100, 200] == [
        port.told(device)["vlan_list"][0]["vlan"]
        for port, device in zip((card.ports[0], card.ports[1], card.ports[1]), devices, strict=True)
    ]
    assert nic.reaches(made[0].netns, second)
    assert nic.reaches(made[1].netns, first)
    assert not nic.reaches(made[0].netns, third, tries=1)
    assert not nic.reaches(made[2].netns, second, tries=1)
    assert sorted(devices) == pods.leases()
    for pod in made:
        pod.run("DEL")
    assert [] == pods.leases()
    assert card.before == card.look()


def test_attributes_reach_the_port_and_are_taken_back(card: nic.Nic, pods: Pods) -> None:
    """trust, spoofchk, max_tx_rate and the VLAN's priority are read back from the port, and are gone after DEL."""
    port, device = card.ports[0], card.ports[0].functions[2]
    pods.network("net", trust="on", spoofchk="off", max_tx_rate=200, vlan=7, vlanQoS=5, link_state="auto")
    pod = pods.pod(element("net", device))
    pod.run("ADD")
    told = port.told(device)
    assert (True, False, 200) == (told["trust"], told["spoofchk"], told["rate"]["max_tx"])
    assert {"vlan": 7, "qos": 5} == told["vlan_list"][0]
    pod.run("CHECK")
    (shown,) = pods.shown()
    place = {"pci": device, "driver": "igbvf", "pf": port.name, "vf": 2}
    assert not shown.drifted
    assert {**place, "vlan": (7, 5, 0x8100), "trust": True, "spoofchk": False, "rates": (0, 200)}.items() <= (
        shown.interfaces[1].device.items()
    )
    nic.run("ip", "link", "set", port.name, "vf", "2", "trust", "off")
    with pytest.raises(CniError, match="trust False, not True"):
        pod.run("CHECK")
    pod.run("DEL")
    assert card.before == card.look()


def test_the_result_names_the_device(card: nic.Nic, pods: Pods) -> None:
    """The result has name, hardware address, MTU, sandbox and PCI address, and the addresses belong to it."""
    device = card.ports[0].functions[1]
    pods.network("net", "10.77.1.0/24")
    pod = pods.pod(element("net", device))
    pod.run("ADD")
    result = pod.result()
    link = nic.links(pod.netns)["net1"]
    promised = {"name": "net1", "mac": link["address"], "mtu": 1500, "sandbox": pod.netns, "pciID": device}
    assert [promised] == result["interfaces"]
    assert 0 == result["ips"][0]["interface"]
    assert link["address"] == card.before[nic_name(card, device)]["address"]  # nobody asked for another one


def nic_name(card: nic.Nic, device: str) -> str:
    """Return the name that a device's interface had before the test."""
    return next(name for name, link in card.before.items() if link["parentdev"] == device)


def test_names_mtu_and_altnames_come_home(card: nic.Nic, pods: Pods) -> None:
    """An interface renamed, set up and changed in the pod comes home with its name, MTU, address, alias and altnames.

    The host has an interface with the pod's name meanwhile, so it cannot come home under that.
    """
    device = card.ports[0].functions[3]
    name = nic_name(card, device)
    nic.run("ip", "link", "property", "add", "dev", name, "altname", "mptother")
    nic.run("ip", "link", "set", name, "alias", "mine")
    looked = card.look()
    assert ["mptother"] == looked[name]["altnames"]
    nic.run("ip", "link", "add", "mptnet", "type", "dummy")
    try:
        pods.network("net", trust="on")
        pod = pods.pod(element("net", device, mac="02:00:00:00:77:09"))
        pod.run("ADD")
        inside = nic.links(pod.netns)["net1"]
        assert not inside.get("altnames")
        nic.run("ip", "link", "set", "net1", "down", netns=pod.netns)
        nic.run("ip", "link", "set", "net1", "name", "mptnet", netns=pod.netns)
        nic.run("ip", "link", "set", "mptnet", "mtu", "1400", "up", netns=pod.netns)
        pod.run("DEL")
        assert looked == card.look()
    finally:
        nic.run("ip", "link", "del", "mptnet")
        nic.run("ip", "link", "property", "del", "dev", name, "altname", "mptother")
        nic.run("ip", "link", "set", name, "alias", "")


def test_a_taken_name_at_home_does_not_keep_a_function_from_coming_home(card: nic.Nic, pods: Pods) -> None:
    """When something else has its name meanwhile, it is home and free under another one."""
    device = card.ports[0].functions[3]
    name = nic_name(card, device)
    pods.network("net")
    pod = pods.pod(element("net", device))
    pod.run("ADD")
    nic.run("ip", "link", "add", name, "type", "dummy")
    try:
        pod.run("DEL")
        assert "vf" + device.replace(":", "").replace(".", "") == nic.interface(device)
        assert [] == pods.leases()
    finally:
        nic.run("ip", "link", "del", name)
        nic.run("ip", "link", "set", nic.interface(device), "name", name)


REFUSED = {
    "min_tx_rate": ({"min_tx_rate": 100}, "min_tx_rate 100, max_tx_rate 0", "EINVAL", Code.INVALID_CONFIG),
    "link_state": ({"link_state": "enable"}, "link_state enable", "EOPNOTSUPP", Code.UNSUPPORTED_FIELD),
    "802.1ad": (
        {"vlan": 5, "vlanProto": "802.1ad"}, "vlan 5 (vlanQoS 0, vlanProto 802.1ad)", "EPROTONOSUPPORT",
        Code.UNSUPPORTED_FIELD,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_nic_refuses_is_told_and_all_is_taken_back(what: str, card: nic.Nic, pods: Pods) -> None:
    """The error names port, function, attribute and the kernel's reason; the function is as before."""
    keys, words, reason, code = REFUSED[what]
    device = card.ports[1].functions[4]
    pods.network("net", "10.77.2.0/24", trust="on", **keys)
    pod = pods.pod(element("net", device))
    with pytest.raises(CniError) as caught:
        pod.run("ADD")
    assert f"VF 4 ({device}) of {card.ports[1].name} (igb) refuses {words}" in caught.value.msg
    assert reason in caught.value.msg
    assert code == caught.value.code
    assert [] == pods.leases()
    assert [] == pod.addresses()
    assert card.before == card.look()


def test_a_function_in_use_is_refused_until_its_owner_is_deleted(card: nic.Nic, pods: Pods) -> None:
    """A second pod does not get a leased function, its DEL does not touch it; after the owner's DEL it does."""
    device = card.ports[0].functions[5]
    pods.network("net", "10.77.3.0/24", vlan=31)
    owner, other = pods.pod(element("net", device)), pods.pod(element("net", device))
    owner.run("ADD")
    with pytest.raises(CniError, match=f"{device} is already allocated to net1 of container {owner.name}") as caught:
        other.run("ADD")
    assert Code.TRY_AGAIN == caught.value.code
    other.run("DEL")
    owner.run("CHECK")
    assert device == nic.links(owner.netns)["net1"]["parentdev"]
    assert 31 == card.ports[0].told(device)["vlan_list"][0]["vlan"]
    owner.run("DEL")
    other.run("ADD")
    owner.run("DEL")
    other.run("CHECK")
    other.run("DEL")
    assert card.before == card.look()


def test_an_admin_address_does_not_stand_in_the_way(card: nic.Nic, pods: Pods) -> None:
    """A function whose port has set a hardware address, so that it may not set one itself, still gets the asked one."""
    port, device = card.ports[0], card.ports[0].functions[6]
    name, was = nic_name(card, device), card.before[nic_name(card, device)]["address"]
    nic.run("ip", "link", "set", port.name, "vf", "6", "mac", was)
    pods.network("net")
    pod = pods.pod(element("net", device, mac="02:00:00:00:77:66"))
    pod.run("ADD")
    assert "02:00:00:00:77:66" == nic.links(pod.netns)["net1"]["address"] == port.told(device)["address"]
    pod.run("DEL")
    assert was == nic.links()[name]["address"] == port.told(device)["address"]


def test_sriov_cni_and_we_respect_each_other(card: nic.Nic, pods: Pods, netns: str) -> None:
    """A function that sriov-cni's own file says is in use is refused; while we have one, that file says so."""
    device = card.ports[0].functions[0]
    pods.network("net")
    told = Path(pods.folder) / "sriov/pci" / device
    told.parent.mkdir(parents=True)
    told.write_text(netns)
    pod = pods.pod(element("net", device))
    with pytest.raises(CniError, match="already allocated"):
        pod.run("ADD")
    told.write_text("/run/netns/mpt-gone")
    pod.run("ADD")
    assert pod.netns == told.read_text()
    pod.run("DEL")
    assert not told.exists()


@pytest.mark.parametrize("told_netns", [True, False])
def test_what_sriov_cni_gave_away_comes_home(told_netns: bool, card: nic.Nic, pods: Pods) -> None:
    """DEL of an attachment that sriov-cni made reads its file; a device that has another owner by now is left alone."""
    port, device = card.ports[0], card.ports[0].functions[4]
    name = nic_name(card, device)
    pods.network("net")
    pod = pods.pod(element("net", device))
    nic.run("ip", "link", "set", port.name, "vf", "4", "vlan", "55", "trust", "on")
    nic.run("ip", "link", "set", name, "netns", Path(pod.netns).name, "name", "net1")
    state = {"HostIFName": name, "SpoofChk": True, "Trust": False, "AdminMAC": card.before[name]["address"],
             "EffectiveMAC": card.before[name]["address"], "Vlan": 0, "VlanQoS": 0, "VlanProto": 33024, "MinTxRate": 0,
             "MaxTxRate": 0, "LinkState": 0}  # fmt: skip
    folder = pods.folder / "sriov"
    (folder / "pci").mkdir(parents=True)
    kept = folder / f"{pod.name}-net1"
    kept.write_text(json.dumps({"deviceID": device, "VFID": 4, "Master": port.name, "OrigVfState": state}))
    (folder / "pci" / device).write_text(pod.netns)
    config = {"name": "net", **pods.sriov()}
    asked = Call("DEL", pod.name, pod.netns if told_netns else "", "net1", (), (), config)
    if not told_netns:
        (folder / "pci" / device).write_text("/proc/self/ns/net")  # a living namespace of somebody else
        Plugins().run("sriov", asked)
        assert device == nic.links(pod.netns)["net1"]["parentdev"]
        assert "/proc/self/ns/net" == (folder / "pci" / device).read_text()
        kept.write_text(json.dumps({"deviceID": device, "VFID": 4, "OrigVfState": state}))
        (folder / "pci" / device).write_text(pod.netns)
        pods.bury(pod)
    Plugins().run("sriov", asked)
    assert card.before == card.look()
    assert not kept.exists()
    assert not (folder / "pci" / device).exists()


def test_a_program_driven_function_stays_where_it_is(card: nic.Nic, pods: Pods) -> None:
    """Bound to vfio-pci, behind an IOMMU, it is set through its port; no interface moves, and DEL takes all back."""
    port, device = card.ports[1], card.ports[1].functions[6]
    nic.bind(device, "vfio-pci")
    try:
        group = (Path("/sys/bus/pci/devices") / device / "iommu_group").resolve().name
        assert Path(f"/dev/vfio/{group}").exists()
        bound = card.look()
        pods.network("net", "10.77.4.0/24", vlan=44, trust="on")
        pod = pods.pod(element("net", device, mac="02:00:00:00:77:44"))
        pod.run("ADD")
        expected = {"name": "net1", "mac": "02:00:00:00:77:44", "mtu": 1500, "sandbox": pod.netns, "pciID": device}
        assert [expected] == pod.result()["interfaces"]
        assert ["lo"] == list(nic.links(pod.netns))
        told = port.told(device)
        assert (44, True, "02:00:00:00:77:44") == (told["vlan_list"][0]["vlan"], told["trust"], told["address"])
        assert 1 == len(pod.addresses())
        pod.run("CHECK")
        pod.run("DEL")
        assert bound == card.look()
        assert [] == pod.addresses()
    finally:
        nic.bind(device, "igbvf")


def test_addresses_are_announced(card: nic.Nic, pods: Pods) -> None:
    """Neighbours that knew the addresses elsewhere learn the new hardware address without asking."""
    ipam = {"type": "static", "addresses": [{"address": "10.77.5.9/24"}, {"address": "fd77::9/64"}]}
    pods.stage.definition("fixed", {**pods.sriov(), "ipam": ipam})
    here, there = card.ports[0].functions[0], card.ports[1].functions[0]
    pods.network("net", "10.77.5.0/24")
    listener = pods.pod(element("net", there))
    listener.run("ADD")
    nic.run("ip", "addr", "add", "fd77::1/64", "dev", "net1", "nodad", netns=listener.netns)
    for address in ("10.77.5.9", "fd77::9"):
        nic.run("ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:99", "nud", "stale", "dev", "net1",
                netns=listener.netns)  # fmt: skip
    pods.pod(element("fixed", here, mac="02:00:00:00:77:99")).run("ADD")

    def learnt() -> bool:
        told = json.loads(nic.run("ip", "-j", "neigh", netns=listener.netns))
        found = {item["dst"]: item.get("lladdr") for item in told}
        return "02:00:00:00:77:99" == found.get("10.77.5.9") == found.get("fd77::9")

    nic.until(learnt)
