# SPDX-License-Identifier: Apache-2.0
"""What the sriov delegate decides without a NIC: its config, what it refuses, and DEL where there is nothing."""

import ipaddress
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from namespaces import Site

from multus_py.cni.call import Call, cni_args
from multus_py.cni.delegate import Request
from multus_py.cni.errors import CniError, Code
from multus_py.delegates import announce
from multus_py.delegates.sriov import delegate
from multus_py.kernel import namespaces, netlink, records
from multus_py.kernel.virtual_functions import VirtualFunction

DEVICE = "0000:fe:10.0"


def call(verb: str = "ADD", args: str = "", netns: str = "/run/netns/mptnone", **keys: Any) -> Call:
    """Return a call for net1."""
    body = {"cniVersion": "1.1.0", "name": "net", "type": "sriov", **keys}
    return Call(verb, "c1", netns, "net1", cni_args(args), (), body)


def nobody(kind: str, asked: Call) -> None:
    """Refuse to be asked: no IPAM is in these configs."""
    raise AssertionError(kind)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vlan": 4095}, "vlan id 4095 invalid"),
    ({"vlan": -1}, "'vlan'"),
    ({"vlan": 5, "vlanQoS": 8}, "vlan QoS PCP 8 invalid"),
    ({"vlanQoS": 1}, "non-zero vlan id must be configured for vlanQoS"),
    ({"vlanProto": "802.1AD"}, "non-zero vlan id must be configured for vlanProto 802.1ad"),
    ({"vlan": 5, "vlanProto": "802.1x"}, "vlan Proto '802.1x' invalid"),
    ({"trust": "yes"}, "'trust'"),
    ({"spoofchk": True}, "'spoofchk'"),
    ({"link_state": "up"}, "invalid link_state value 'up'"),
    ({"min_tx_rate": 2, "max_tx_rate": 1}, "min_tx_rate 2 is greater than max_tx_rate 1"),
    ({"max_tx_rate": 2**32}, "'max_tx_rate'"),
    ({"mac": "02:00"}, "sriov: 'mac': '02:00' is not a hardware address"),
    ({"mac": "33:33:00:00:00:01"}, "sriov: 'mac': 33:33:00:00:00:01 is a multicast address"),
    ({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}, "runtimeConfig: 'mac': 00:00:00:00:00:00 is zero"),
    ({"deviceID": "eth0"}, "deviceID 'eth0' is not a PCI address"),
    ({"deviceID": "../../../etc"}, "is not a PCI address"),
]


@pytest.mark.parametrize(("keys", "words"), REFUSED)
def test_what_cannot_be_is_refused_with_its_key(keys: dict[str, Any], words: str) -> None:
    """A wrong value is code 7 and says which key is wrong, before anything is touched."""
    with pytest.raises(CniError) as caught:
        delegate.parse(call(**{"deviceID": DEVICE, **keys}))
    assert Code.INVALID_CONFIG == caught.value.code
    assert words in caught.value.msg


def test_what_is_not_mentioned_stays_as_it_is() -> None:
    """Only the VLAN has a default; a rate that is not mentioned keeps the function's own."""
    now = VirtualFunction(0, rates=(5, 50), trust=True)
    quiet = delegate.parse(call(deviceID=DEVICE)).wanted(now)
    assert {"trust": None, "spoofchk": None, "link_state": None} == {
        key: quiet[key] for key in ("trust", "spoofchk", "link_state")
    }
    assert ((0, 0, 0x8100), (5, 50)) == (quiet["vlan"], quiet["rates"])
    loud = delegate.parse(
        call(
            deviceID=DEVICE,
            vlan=7,
            vlanQoS=3,
            vlanProto="802.1AD",
            trust="off",
            spoofchk="on",
            link_state="auto",
            max_tx_rate=0,
        )
    ).wanted(now)
    assert {
        "trust": False,
        "spoofchk": True,
        "link_state": "auto",
        "vlan": (7, 3, 0x88A8),
        "rates": (5, 0),
    } == loud


def test_the_runtime_chooses_device_and_address_first() -> None:
    """runtimeConfig comes before the config's keys and before CNI_ARGS; the address is read whatever its case."""
    config = {"deviceID": "0000:01:10.0", "pciBusID": "0000:03:10.0", "mac": "02:00:00:00:00:01"}
    runtime = {"deviceID": "0000:0A:10.1", "mac": "02:00:00:00:00:03"}
    asked = delegate.parse(call(args="MAC=02:00:00:00:00:02", runtimeConfig=runtime, **config))
    assert ("0000:0a:10.1", "02:00:00:00:00:03") == (asked.device, asked.mac)
    asked = delegate.parse(call(args="MAC=02:00:00:00:00:02", **config))
    assert ("0000:01:10.0", "02:00:00:00:00:02") == (asked.device, asked.mac)
    assert "0000:03:10.0" == delegate.parse(call(pciBusID="0000:03:10.0")).device


@pytest.mark.parametrize(
    ("keys", "words"), [({}, "VF pci addr is required"), ({"deviceID": DEVICE}, f"there is no PCI device {DEVICE}")]
)
def test_add_without_a_device_says_so(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    """ADD names what is missing: a deviceID, or the device."""
    with pytest.raises(CniError, match=words):
        delegate.add(Request(call(dataDir=str(tmp_path), **keys), nobody))
    assert not list(tmp_path.glob("leases/*"))


def test_delete_of_what_is_not_there_succeeds(tmp_path: Path) -> None:
    """DEL without a lease, a device or a namespace is done."""
    for netns in ("", "/run/netns/mptnone"):
        delegate.delete(Request(call("DEL", netns=netns, dataDir=str(tmp_path), deviceID=DEVICE), nobody))
        delegate.delete(Request(call("DEL", netns=netns, dataDir=str(tmp_path)), nobody))


def test_status_needs_no_device() -> None:
    """STATUS is asked before a device is chosen; a config that cannot be is refused all the same."""
    delegate.status(Request(call("STATUS"), nobody))
    with pytest.raises(CniError):
        delegate.status(Request(call("STATUS", vlan=9999), nobody))


def test_check_without_a_lease_fails(tmp_path: Path) -> None:
    """CHECK of a function that the attachment does not hold says so."""
    body = {"dataDir": str(tmp_path), "deviceID": DEVICE, "prevResult": {"cniVersion": "1.1.0"}}
    with pytest.raises(CniError, match=f"has no lease of {DEVICE}"):
        delegate.check(Request(call("CHECK", **body), nobody))


def test_announcements_are_understood_by_a_neighbour(place: Site) -> None:
    """A kernel that knows an address elsewhere takes the announced hardware address at once, for both families."""
    with netlink.open(place.host) as host:
        host.create_veth("mpta", "mptb", peer_netns=place.pod)
        namespaces.run_in(place.host, lambda: namespaces.write_sysctl("net/ipv4/conf/mpta/arp_accept", "1"))
        namespaces.run_in(place.host, lambda: namespaces.write_sysctl("net/ipv6/conf/mpta/accept_untracked_na", "1"))
        index = host.link("mpta").index
        host.add_address(index, ipaddress.ip_interface("10.9.0.1/24"))
        host.add_address(index, ipaddress.ip_interface("fd09::1/64"), flags=records.NODAD)
        with netlink.open(place.pod) as pod:
            pod.set_link(pod.link("mptb").index, up=True)
            mac = pod.link("mptb").mac
        host.await_running(index, 2)
        known = [ipaddress.ip_address("10.9.0.9"), ipaddress.ip_address("fd09::9")]
        for address in known:
            words = ("replace", str(address), "lladdr", "02:00:00:00:00:99", "nud", "stale", "dev", "mpta")
            namespaces.run_in(place.host, lambda words=words: running_ip(*words))
        namespaces.run_in(place.pod, lambda: announce.announce("mptb", mac, known))
        found = {entry.address: entry.mac for entry in host.neighbours(index)}
    assert [mac, mac] == [found.get(address) for address in known]


def running_ip(*words: str) -> None:
    """Run `ip neigh`."""
    import subprocess

    subprocess.run(["ip", "neigh", *words], check=True)


def test_an_announcement_is_the_frame_of_its_rfc() -> None:
    """ARP: sender and target are the address. NA: all nodes, override flag, hop limit 255, checksum."""
    mac = bytes.fromhex("020000000001")
    arp = announce.arp(mac, ipaddress.IPv4Address("10.9.0.9"))
    assert b"\xff" * 6 + mac + b"\x08\x06" == arp[:14]
    assert (1, 0x0800, 6, 4, 1) == struct.unpack_from("!HHBBH", arp, 14)
    assert socket.inet_aton("10.9.0.9") == arp[28:32] == arp[38:42]
    address = ipaddress.IPv6Address("fd09::9")
    frame = announce.advertisement(mac, address)
    assert bytes.fromhex("333300000001") == frame[:6]
    packet = frame[14:]
    assert (255, address.packed, 136, 0x20) == (packet[7], packet[8:24], packet[40], packet[44])
    summed = packet[8:40] + struct.pack("!II", len(packet) - 40, 58) + packet[40:]
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    assert 0xFFFF == (total & 0xFFFF) + (total >> 16)


def test_the_schema_knows_what_meta_plugins_write() -> None:
    """multus-cni writes deviceID and pciBusID into the config: neither sends it to an executable."""
    from multus_py.config.delegate_schema import unknown

    config = json.loads(
        '{"type": "sriov", "deviceID": "0000:01:10.0", "pciBusID": "0000:01:10.0", "logLevel": "debug"}'
    )
    assert [] == unknown(config, delegate.SCHEMA)
    assert ["rdmaIsolation"] == unknown({**config, "rdmaIsolation": True}, delegate.SCHEMA)
