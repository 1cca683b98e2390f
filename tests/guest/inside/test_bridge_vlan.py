# SPDX-License-Identifier: Apache-2.0
"""The native bridge's VLAN keys on a kernel that filters VLANs: beside Debian's executable, and as documented."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nic
import plugin_run
import pytest
import witness
from namespaces import Site, namespace

RUNNERS = {"native": plugin_run.native, "executable": plugin_run.executable}


@pytest.fixture(autouse=True)
def modules() -> None:
    """Load what a bridge needs."""
    nic.run("modprobe", "-a", "bridge", "veth")


@pytest.fixture
def pods() -> Iterator[list[Site]]:
    """Return four pods on one host."""
    with ExitStack() as stack:
        host = stack.enter_context(namespace())
        yield [Site(host, stack.enter_context(namespace())) for _ in range(4)]


def config(folder: Path, **keys: Any) -> dict[str, Any]:
    """Return a bridge config with addresses from one range."""
    ipam = {"type": "host-local", "dataDir": str(folder), "ranges": [[{"subnet": "10.9.0.0/24"}]]}
    return {"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "mptbr0", "ipam": ipam, **keys}


def add(place: Site, body: dict[str, Any], kind: str = "native", container: str = "c1") -> dict[str, Any]:
    """Add net1 and return the result."""
    result = RUNNERS[kind](plugin_run.call("ADD", body, place, container), place)
    assert result
    return result


def vlans(host: str) -> dict[str, list[dict[str, Any]]]:
    """Return the VLANs of every port, by the port's name, as iproute2 tells them."""
    told = json.loads(nic.run("bridge", "-j", "vlan", "show", netns=host))
    return {port["ifname"]: port["vlans"] for port in told}


def plain(host: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the same without names that are drawn at random."""
    return sorted(((witness.plain(name), found) for name, found in vlans(host).items()), key=str)


@pytest.mark.parametrize("gateway", [False, True])
def test_a_vlan_is_as_the_executable_sets_it(gateway: bool, tmp_path: Path) -> None:
    """vlan makes the same ports, VLANs, addresses and result as Debian's release, which keeps the default VLAN."""
    seen = {}
    for kind, run in RUNNERS.items():
        with ExitStack() as stack:
            place = Site(stack.enter_context(namespace()), stack.enter_context(namespace()))
            body = config(tmp_path / kind, vlan=100, isGateway=gateway)
            body |= {"preserveDefaultVlan": True} if kind == "native" else {}
            result = add(place, body, kind)
            told = [(witness.plain(one["name"]), bool(one.get("sandbox"))) for one in result["interfaces"]]
            bridge = nic.links(place.host)["mptbr0"]["linkinfo"]["info_data"]["vlan_filtering"]
            holders = sorted(
                (link["ifname"], item["local"])
                for link in witness.ip(place.host, "addr")
                for item in link["addr_info"]
                if item["family"] == "inet" and link["ifname"] != "lo"
            )
            seen[kind] = (plain(place.host), told, result["ips"], bridge, holders)
            run(plugin_run.call("DEL", {**body, "prevResult": result}, place), place)
            seen[kind] += (plain(place.host),)
    assert seen["executable"] == seen["native"]
    assert any(vlan["vlan"] == 100 for _, found in seen["native"][0] for vlan in found)


def test_pods_talk_inside_their_vlan_only(pods: list[Site], tmp_path: Path) -> None:
    """Two pods of VLAN 100 and their gateway reach each other, a pod of VLAN 200 does not reach them."""
    given = [
        add(place, config(tmp_path, vlan=vid, isGateway=vid == 100), container=f"c{vid}-{n}")["ips"][0]["address"]
        for n, (place, vid) in enumerate(zip(pods, (100, 100, 200), strict=False))
    ]
    first, second, third = (address.partition("/")[0] for address in given)
    assert nic.reaches(pods[0].pod, second)
    assert nic.reaches(pods[1].pod, "10.9.0.1")
    assert not nic.reaches(pods[0].pod, third, tries=1)
    assert not nic.reaches(pods[2].pod, first, tries=1)


def test_a_trunk_carries_its_vlans_tagged(pods: list[Site], tmp_path: Path) -> None:
    """vlanTrunk's ranges and ids reach the port, tagged; an interface of such a VLAN in the pod reaches a pod in it."""
    trunk = [{"minID": 200, "maxID": 202}, {"id": 300}]
    port = add(pods[0], config(tmp_path, vlan=100, vlanTrunk=trunk))["interfaces"][1]["name"]
    access = {"vlan": 100, "flags": ["PVID", "Egress Untagged"]}
    assert [access, {"vlan": 200, "vlanEnd": 202}, {"vlan": 300}] == joined(vlans(pods[0].host)[port])
    other = add(pods[1], config(tmp_path, vlan=201), container="c2")["ips"][0]["address"]
    nic.run("modprobe", "8021q")
    nic.run("ip", "link", "add", "link", "net1", "name", "v201", "type", "vlan", "id", "201", netns=pods[0].pod)
    nic.run("ip", "addr", "flush", "dev", "net1", netns=pods[0].pod)
    nic.run("ip", "addr", "add", "10.9.0.99/24", "dev", "v201", netns=pods[0].pod)
    nic.run("ip", "link", "set", "v201", "up", netns=pods[0].pod)
    assert nic.reaches(pods[0].pod, other.partition("/")[0])


def joined(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return VLANs with runs of plain ones as ranges, however iproute2 writes them."""
    merged: list[dict[str, Any]] = []
    for vlan in found:
        last = merged[-1] if merged else {}
        if not vlan.get("flags") and last and not last.get("flags"):
            end = last.get("vlanEnd", last["vlan"])
            if vlan["vlan"] == end + 1:
                merged[-1] = {"vlan": last["vlan"], "vlanEnd": vlan.get("vlanEnd", vlan["vlan"])}
                continue
        merged.append({key: value for key, value in vlan.items() if value})
    return merged


@pytest.mark.parametrize("keep", [False, True])
def test_the_default_vlan_goes_unless_it_is_to_stay(keep: bool, pods: list[Site], tmp_path: Path) -> None:
    """VLAN 1 is taken off the pod's port, and left there with preserveDefaultVlan."""
    body = config(tmp_path, vlan=100, preserveDefaultVlan=keep)
    port = add(pods[0], body)["interfaces"][1]["name"]
    assert ([1, 100] if keep else [100]) == [vlan["vlan"] for vlan in vlans(pods[0].host)[port]]
    body = config(tmp_path, vlanTrunk=[{"id": 7}], preserveDefaultVlan=keep)
    port = add(pods[1], body, container="c2")["interfaces"][1]["name"]
    assert ([1, 7] if keep else [7]) == [vlan["vlan"] for vlan in vlans(pods[1].host)[port]]


def test_without_vlan_keys_a_filtering_bridge_keeps_its_default(pods: list[Site], tmp_path: Path) -> None:
    """A pod without VLAN keys on a bridge that filters is in its default VLAN, as with Debian's executable."""
    add(pods[0], config(tmp_path, vlan=100))
    ports = [
        add(pods[n], config(tmp_path), kind, container=f"c{n + 1}")["interfaces"][1]["name"]
        for n, kind in enumerate(RUNNERS, 1)
    ]
    native, executable = (vlans(pods[0].host)[port] for port in ports)
    assert [{"vlan": 1, "flags": ["PVID", "Egress Untagged"]}] == native == executable
