# SPDX-License-Identifier: Apache-2.0
"""What the macvlan delegate promises beyond the reference plugin at hand: newer keys, taking back, CHECK, DEL."""

import errno
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plugin_run
import pytest
import witness
from namespaces import Site, namespace

from multus_py.cni.errors import CniError, Code
from multus_py.kernel import netlink, records
from multus_py.kernel.errors import NetlinkError
from multus_py.kernel.netlink import Netlink


@pytest.fixture(autouse=True)
def uplink(host: Netlink) -> Iterator[None]:
    """Put a running device there that can be the master."""
    _device(host)
    yield


def _device(kernel: Netlink) -> None:
    kernel.create_veth("mptup", "mptdown")
    for name in ("mptup", "mptdown"):
        kernel.set_link(kernel.link(name).index, up=True)
    kernel.await_running("mptup", 2)


def config(folder: Path | None = None, subnet: str = "10.9.0.0/24", **more: Any) -> dict[str, Any]:
    """Return a config with one range when there is a *folder* for it."""
    body = {"cniVersion": "1.0.0", "name": "net", "type": "macvlan", "master": "mptup", **more}
    ipam = {"type": "host-local", "dataDir": str(folder), "ranges": [[{"subnet": subnet}]]}
    return {**body, "ipam": ipam} if folder else body


def add(place: Site, body: dict[str, Any]) -> dict[str, Any]:
    """Add and return the result."""
    result = plugin_run.native(plugin_run.call("ADD", body, place), place)
    assert result
    return result


def delete(place: Site, body: dict[str, Any]) -> None:
    """Delete."""
    plugin_run.native(plugin_run.call("DEL", body, place), place)


def test_the_broadcast_queue_has_the_asked_length(place: Site, pod: Netlink) -> None:
    """bcqueuelen reaches the kernel."""
    add(place, config(bcqueuelen=4321))
    assert pod.link("net1").macvlan_queue == 4321


def test_the_master_may_be_an_interface_of_the_pod(place: Site, pod: Netlink, tmp_path: Path) -> None:
    """linkInContainer stacks the interface on one that the pod has, and DEL takes it away again."""
    _device(pod)
    body = config(tmp_path, linkInContainer=True)
    body["prevResult"] = add(place, body)
    assert pod.link("net1").parent == pod.link("mptup").index
    assert pod.link("net1").parent_netns is None
    plugin_run.native(plugin_run.call("CHECK", body, place), place)
    delete(place, body)
    assert pod.find_link("net1") is None
    assert pod.find_link("mptup") is not None


def test_a_failing_ipam_leaves_no_interface(place: Site, pod: Netlink, tmp_path: Path) -> None:
    """When IPAM refuses, the interface is taken back (the reference plugin leaves it)."""
    with pytest.raises(CniError, match="failed to allocate all requested IPs"):
        add(place, config(tmp_path, runtimeConfig={"ips": ["10.77.0.1"]}))
    assert [link.name for link in pod.links() if link.kind == "macvlan"] == []
    assert witness.reservations(tmp_path / "net") == {}


def test_a_name_in_use_in_the_pod_is_refused_and_left_alone(place: Site, pod: Netlink) -> None:
    """An interface that the pod has already is not touched, and none is left under another name."""
    pod.create_bridge("net1")
    with pytest.raises(CniError):
        add(place, config())
    assert pod.link("net1").kind == "bridge"
    assert [link.name for link in pod.links() if link.kind == "macvlan"] == []


def test_an_address_waits_until_it_is_unique(place: Site, pod: Netlink, tmp_path: Path) -> None:
    """ADD returns when the pod's IPv6 address is usable, not before."""
    add(place, config(tmp_path, "fd09::/64"))
    (held,) = [item for item in pod.addresses(family=6) if str(item.interface) == "fd09::2/64"]
    assert not held.flags & records.TENTATIVE


def test_an_address_that_another_host_has_is_refused(place: Site, host: Netlink, pod: Netlink, tmp_path: Path) -> None:
    """Duplicate detection makes ADD fail with code 11, and the reservation is given back."""
    host.add_address(host.link("mptdown").index, ipaddress.ip_interface("fd09::2/64"), flags=records.NODAD)
    with pytest.raises(CniError, match="in use by somebody else") as caught:
        add(place, config(tmp_path, "fd09::/64"))
    assert caught.value.code == Code.TRY_AGAIN
    assert pod.find_link("net1") is None
    assert {name for name in witness.reservations(tmp_path / "net") if "reserved" not in name} == set()


def test_an_interface_that_was_renamed_is_taken_back(
    place: Site, host: Netlink, pod: Netlink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older kernels want another name when the host has its own: what fails after that removes it all the same."""
    create = Netlink.create_macvlan

    def refuse_busy(kernel: Netlink, name: str, *words: Any, **more: Any) -> None:
        if name == "net1":
            raise NetlinkError.of("make macvlan net1", OSError(errno.EEXIST, ""))
        create(kernel, name, *words, **more)

    monkeypatch.setattr(Netlink, "create_macvlan", refuse_busy)
    host.add_address(host.link("mptdown").index, ipaddress.ip_interface("fd09::2/64"), flags=records.NODAD)
    with pytest.raises(CniError, match="in use by somebody else"):
        add(place, config(tmp_path, "fd09::/64"))
    assert [link.name for link in pod.links() if link.kind == "macvlan"] == []


def test_a_master_without_carrier_does_not_hold_add_up(
    place: Site, host: Netlink, pod: Netlink, tmp_path: Path
) -> None:
    """Detection cannot begin without a carrier: ADD does not wait for it."""
    import time

    host.set_link(host.link("mptdown").index, up=False)
    began = time.monotonic()
    add(place, config(tmp_path, "fd09::/64"))
    assert time.monotonic() - began < 2
    assert pod.link("net1").up


def test_delete_is_repeatable_and_survives_whatever_is_gone(place: Site, tmp_path: Path) -> None:
    """DEL succeeds twice, with the namespace gone and with the master gone, and frees the address each time."""
    body = config(tmp_path)
    with namespace() as path:
        gone = Site(place.host, path)
        add(gone, body)
        delete(gone, body)
        delete(gone, body)
        add(gone, body)
    delete(gone, body)
    assert [name for name in witness.reservations(tmp_path / "net") if "reserved" not in name] == []
    add(place, body)
    with netlink.open(place.host) as kernel:
        kernel.delete_link(kernel.link("mptup").index)
    delete(place, body)
    assert [name for name in witness.reservations(tmp_path / "net") if "reserved" not in name] == []


@pytest.mark.parametrize("damage", ["mode", "master", "kind", "address"])
def test_check_sees_every_damage(damage: str, place: Site, host: Netlink, pod: Netlink, tmp_path: Path) -> None:
    """CHECK passes on what ADD made and fails on a mode, master, kind or address that is not its own any more."""
    body = config(tmp_path)
    body["prevResult"] = add(place, body)
    plugin_run.native(plugin_run.call("CHECK", body, place), place)
    made = pod.link("net1")
    if damage == "mode":
        body["mode"] = "private"
    elif damage == "master":
        body["master"] = "mptdown"
    elif damage == "kind":
        pod.delete_link(made.index)
        pod.create_bridge("net1")
    else:
        pod.delete_address(made.index, ipaddress.ip_interface("10.9.0.2/24"))
    with pytest.raises(CniError):
        plugin_run.native(plugin_run.call("CHECK", body, place), place)


def test_status_says_that_the_master_is_missing(place: Site) -> None:
    """STATUS is code 50 without the master, and passes with it."""
    plugin_run.native(plugin_run.call("STATUS", config(), place), place)
    with pytest.raises(CniError, match="mptnone") as caught:
        plugin_run.native(plugin_run.call("STATUS", config(master="mptnone"), place), place)
    assert caught.value.code == Code.NOT_AVAILABLE
