# SPDX-License-Identifier: Apache-2.0
"""What the bridge delegate promises beyond the reference plugin at hand: newer keys, taking back, CHECK, DEL."""

import errno
import ipaddress
from pathlib import Path
from typing import Any

import plugin_run
import pytest
import witness
from namespaces import Site, namespace

from multus_py.cni.errors import CniError, Code
from multus_py.delegates import bridge
from multus_py.kernel import namespaces, records
from multus_py.kernel.errors import NetlinkError
from multus_py.kernel.netlink import Netlink


def config(folder: Path | None = None, **more: Any) -> dict[str, Any]:
    """Return a config with one range of each family when there is a *folder* for them."""
    ipam = {
        "type": "host-local",
        "dataDir": str(folder),
        "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]],
    }
    body = {"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "mptbr0", **more}
    return {**body, "ipam": ipam} if folder else body


def add(place: Site, body: dict[str, Any], container: str = "c1") -> dict[str, Any]:
    """Add and return the result."""
    result = plugin_run.native(plugin_run.call("ADD", body, place, container), place)
    assert result
    return result


def delete(place: Site, body: dict[str, Any], container: str = "c1") -> None:
    """Delete."""
    plugin_run.native(plugin_run.call("DEL", body, place, container), place)


def port(host: Netlink) -> records.Link:
    """Return the only port of the bridge."""
    (found,) = [link for link in host.links() if link.master]
    return found


def test_an_isolated_port_is_isolated(place: Site, host: Netlink) -> None:
    """portIsolation sets the port's option, and only then."""
    add(place, config(portIsolation=True))
    assert port(host).isolated
    delete(place, config(portIsolation=True))
    add(place, config())
    assert not port(host).isolated


def test_detection_of_duplicates_is_off_unless_asked_for(place: Site, pod: Netlink, tmp_path: Path) -> None:
    """enabledad waits until the pod's IPv6 address is known to be unique; without it the address is there at once."""
    for wanted, body in (("0", config(tmp_path)), ("1", config(tmp_path, enabledad=True))):
        add(place, body)
        assert namespaces.run_in(place.pod, lambda: namespaces.read_sysctl("net/ipv6/conf/net1/accept_dad")) == wanted
        held = [item for item in pod.addresses(family=6) if str(item.interface) == f"fd09::{2 + int(wanted)}/64"]
        assert [item.flags & records.TENTATIVE for item in held] == [0]
        delete(place, body)


def test_the_pods_interface_stays_down_when_it_is_disabled(place: Site, pod: Netlink) -> None:
    """disableContainerInterface leaves the pod's end down, and refuses addresses."""
    add(place, config(disableContainerInterface=True))
    assert not pod.link("net1").up
    with pytest.raises(CniError, match="cannot use IPAM when DisableContainerInterface flag is set"):
        add(place, config(Path("/nonexistent"), disableContainerInterface=True))


@pytest.mark.parametrize(
    ("trunk", "ranges"),
    [
        ([{"id": 7}], ((7, 7),)),
        ([{"minID": 10, "maxID": 12}], ((10, 12),)),
        ([{"minID": 10, "maxID": 12, "id": 4094}, {"id": 1}], ((10, 12), (4094, 4094), (1, 1))),
    ],
)
def test_a_trunk_is_read(trunk: list[dict[str, int]], ranges: tuple[tuple[int, int], ...], place: Site) -> None:
    """vlanTrunk holds single ids and ranges."""
    assert bridge.parse(plugin_run.call("ADD", config(vlanTrunk=trunk), place)).trunk == ranges


@pytest.mark.parametrize(
    ("trunk", "why"),
    [
        ([{"id": 0}], "incorrect trunk id parameter"),
        ([{"id": 4095}], "incorrect trunk id parameter"),
        ([{"minID": 5, "maxID": 4}], "minID is greater than maxID"),
        ([{"minID": 5}], "minID and maxID should be configured simultaneously"),
        ([{"maxID": 5}], "minID and maxID should be configured simultaneously"),
        ([{"minID": 0, "maxID": 5}], "incorrect trunk minID parameter"),
        ([{"minID": 1, "maxID": 5000}], "incorrect trunk maxID parameter"),
        ([{}], "names no VLAN"),
        ([7], "a list of objects"),
    ],
)
def test_a_wrong_trunk_is_refused_with_its_place(trunk: list[Any], why: str, place: Site) -> None:
    """A mistake in vlanTrunk names the entry and what is wrong with it."""
    with pytest.raises(CniError, match=why) as caught:
        bridge.parse(plugin_run.call("ADD", config(vlanTrunk=trunk), place))
    assert caught.value.code == Code.INVALID_CONFIG
    assert "vlanTrunk" in caught.value.msg


def _filters(host: Netlink) -> bool:
    host.create_bridge("mptprobe")
    try:
        host.set_vlan_filtering(host.link("mptprobe").index, True)
    except NetlinkError as refusal:
        assert refusal.errno == errno.EOPNOTSUPP
        return False
    return True


@pytest.mark.parametrize("keep", [False, True])
def test_vlans_reach_the_port_or_the_kernel_is_named(keep: bool, place: Site, host: Netlink, tmp_path: Path) -> None:
    """vlan and vlanTrunk set up port and gateway; a kernel without them is named and nothing is left."""
    body = config(
        tmp_path, vlan=100, vlanTrunk=[{"minID": 200, "maxID": 202}], isGateway=True, preserveDefaultVlan=keep
    )
    if not _filters(host):
        with pytest.raises(CniError, match="EOPNOTSUPP") as caught:
            add(place, body)
        assert "kernel" in caught.value.details
        assert host.find_link("mptbr0") is None
        assert witness.reservations(tmp_path / "net") == {}
        return
    result = add(place, body)
    assert result["interfaces"][3]["name"] == "mptbr0.100"
    default = [1] if keep else []
    assert [vlan.vid for vlan in host.vlans(host.link(result["interfaces"][1]["name"]).index)] == [
        *default,
        100,
        200,
        201,
        202,
    ]
    gateway = host.link("mptbr0.100")
    assert ipaddress.ip_interface("10.9.0.1/24") in [address.interface for address in host.addresses(gateway.index)]
    assert [vlan.vid for vlan in host.vlans(gateway.parent)] == [*default, 100]


def test_a_failing_ipam_leaves_nothing(place: Site, host: Netlink, pod: Netlink, tmp_path: Path) -> None:
    """When IPAM refuses, the pair is gone from both ends and no address stays reserved."""
    body = config(tmp_path, runtimeConfig={"ips": ["10.9.0.50", "10.77.0.1"]})
    with pytest.raises(CniError, match=r"failed to allocate all requested IPs: 10\.77\.0\.1"):
        add(place, body)
    assert pod.find_link("net1") is None
    assert [link.name for link in host.links() if link.kind == "veth"] == []
    assert witness.reservations(tmp_path / "net") == {}


def test_a_failure_after_ipam_gives_the_addresses_back(
    place: Site, host: Netlink, pod: Netlink, tmp_path: Path
) -> None:
    """When the gateway's address cannot be set, the pair and both reservations are taken back."""
    host.create_bridge("mptbr0")
    host.add_address(host.link("mptbr0").index, ipaddress.ip_interface("10.9.0.99/24"))
    with pytest.raises(CniError, match="already has an IP address different from") as caught:
        add(place, config(tmp_path, isGateway=True))
    assert "forceAddress" in caught.value.details
    assert pod.find_link("net1") is None
    assert [link.name for link in host.links() if link.kind == "veth"] == []
    assert {name for name in witness.reservations(tmp_path / "net") if "reserved" not in name} == set()


def test_a_name_in_use_in_the_pod_is_refused_and_left_alone(place: Site, pod: Netlink) -> None:
    """An interface that the pod has already is not touched."""
    pod.create_bridge("net1")
    with pytest.raises(CniError, match="net1 exists already"):
        add(place, config())
    assert pod.link("net1").kind == "bridge"


def test_a_gateway_bridge_that_lost_its_ports_serves_again(place: Site, host: Netlink, tmp_path: Path) -> None:
    """A bridge without ports and hardware address gets its gateway address all the same, and keeps one MAC then."""
    add(place, config())
    delete(place, config())
    assert host.link("mptbr0").mac == "00:00:00:00:00:00"
    result = add(place, config(tmp_path, isGateway=True))
    mac = host.link("mptbr0").mac
    assert result["interfaces"][0]["mac"] == mac != "00:00:00:00:00:00"
    with namespace() as second:
        add(Site(place.host, second), config(tmp_path, isGateway=True), "c2")
        assert host.link("mptbr0").mac == mac


def test_the_gateway_answers_the_pod(place: Site, tmp_path: Path) -> None:
    """A pod reaches its gateway over IPv4 and IPv6, each by the default route."""
    import subprocess

    body = config(tmp_path, isDefaultGateway=True, enabledad=True)
    add(place, body)
    for target in ("10.9.0.1", "fd09::1"):
        words = ["ping", "-c", "1", "-W", "3", target]
        namespaces.run_in(place.pod, lambda words=words: subprocess.run(words, check=True, capture_output=True))


def test_delete_is_repeatable_and_survives_whatever_is_gone(place: Site, pod: Netlink, tmp_path: Path) -> None:
    """DEL succeeds twice, with the namespace gone, with no namespace named, and frees the addresses each time."""
    body = config(tmp_path)
    with namespace() as path:
        gone = Site(place.host, path)
        add(gone, body)
        delete(gone, body)
        delete(gone, body)
        assert [name for name in witness.reservations(tmp_path / "net") if "reserved" not in name] == []
        add(gone, body)
    delete(gone, body)
    assert [name for name in witness.reservations(tmp_path / "net") if "reserved" not in name] == []
    add(place, body)
    delete(Site(place.host, ""), body)
    assert [name for name in witness.reservations(tmp_path / "net") if "reserved" not in name] == []
    assert pod.find_link("net1") is not None


def test_delete_frees_the_address_although_the_link_cannot_go(place: Site, tmp_path: Path) -> None:
    """A namespace that cannot be opened is an error of DEL, and the address is free all the same."""
    body = config(tmp_path)
    add(place, body)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(CniError, match="delete net1"):
        delete(Site(place.host, str(loop)), body)
    assert [name for name in witness.reservations(tmp_path / "net") if "reserved" not in name] == []


@pytest.mark.parametrize("damage", ["down", "link", "address", "route", "port", "mac", "reservation"])
def test_check_sees_every_damage(damage: str, place: Site, host: Netlink, pod: Netlink, tmp_path: Path) -> None:
    """CHECK passes on what ADD made and names what somebody changed since."""
    body = config(tmp_path, isDefaultGateway=True)
    body["prevResult"] = add(place, body)
    check = plugin_run.call("CHECK", body, place)
    plugin_run.native(check, place)
    index = pod.link("net1").index
    deeds = {
        "down": lambda: pod.set_link(index, up=False),
        "link": lambda: pod.delete_link(index),
        "address": lambda: pod.delete_address(index, ipaddress.ip_interface("10.9.0.2/24")),
        "route": lambda: pod.delete_route(pod.default_routes(4)[0]),
        "port": lambda: host.set_link(port(host).index, master=0),
        "mac": lambda: pod.set_link(index, mac="02:00:00:00:00:77"),
        "reservation": lambda: [file.unlink() for file in (tmp_path / "net").glob("[1f]*")],
    }
    deeds[damage]()
    with pytest.raises(CniError) as caught:
        plugin_run.native(check, place)
    assert "net1" in caught.value.msg or "c1" in caught.value.msg


def test_check_without_prevresult_is_refused(place: Site) -> None:
    """CHECK has nothing to compare with when the runtime sends no prevResult."""
    add(place, config())
    with pytest.raises(CniError, match="prevResult is missing"):
        plugin_run.native(plugin_run.call("CHECK", config(), place), place)


def test_firewall_keys_are_not_for_us(place: Site) -> None:
    """A config that needs a firewall is refused rather than half done."""
    for key in ("ipMasq", "macspoofchk"):
        with pytest.raises(CniError, match="need a firewall"):
            add(place, config(**{key: True}))


def test_pods_attach_at_once_to_a_bridge_that_is_not_there_yet(place: Site, host: Netlink, tmp_path: Path) -> None:
    """Several first pods at the same time make one bridge, and each gets its own address."""
    import threading
    from contextlib import ExitStack

    body = config(tmp_path, isGateway=True)
    results: list[Any] = []
    with ExitStack() as stack:
        places = [Site(place.host, stack.enter_context(namespace())) for _ in range(8)]

        def attach(n: int) -> None:
            results.append(add(places[n], body, f"c{n}")["ips"][0]["address"])

        threads = [threading.Thread(target=attach, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(results)) == 8
        assert len([link for link in host.links() if link.master == host.link("mptbr0").index]) == 8


def test_status_asks_the_ipam(place: Site, tmp_path: Path) -> None:
    """STATUS passes for a usable pool and fails with code 50 for one that cannot be written."""
    plugin_run.native(plugin_run.call("STATUS", config(tmp_path), place), place)
    (tmp_path / "file").touch()
    with pytest.raises(CniError) as caught:
        plugin_run.native(plugin_run.call("STATUS", config(tmp_path / "file"), place), place)
    assert caught.value.code == Code.NOT_AVAILABLE
