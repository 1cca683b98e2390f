# SPDX-License-Identifier: Apache-2.0
"""The kernel's door: every verb does what it says, and every refusal names the deed, the object and the reason."""

import errno
import ipaddress
import json
import os
import resource
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from namespaces import Site, namespace

from multus_py.kernel import namespaces, netlink, records, removal, wire
from multus_py.kernel.errors import NetlinkError, NoNamespace
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.records import Hop, Link, Route

V4 = ipaddress.ip_interface("192.0.2.7/24")
V6 = ipaddress.ip_interface("2001:db8::7/64")
DEFAULT = ipaddress.ip_network("0.0.0.0/0")
DEFAULT6 = ipaddress.ip_network("::/0")


def pair(host: Netlink, place: Site, **more: Any) -> None:
    """Make mpta on the host and mptb in the pod."""
    host.create_veth("mpta", "mptb", peer_netns=place.pod, **more)


def up(kernel: Netlink, name: str) -> Link:
    """Set a link up and return it."""
    kernel.set_link(kernel.link(name).index, up=True)
    return kernel.link(name)


def test_open_binds_the_socket_to_the_namespace_and_leaves_the_caller_where_it_was(place: Site) -> None:
    """A socket opened in a namespace stays there while the calling thread never leaves its own."""
    here = Path("/proc/thread-self/ns/net").stat().st_ino
    with netlink.open(place.pod) as kernel:
        assert [link.name for link in kernel.links() if link.name.startswith("eth")] == []
        assert Path("/proc/thread-self/ns/net").stat().st_ino == here
        kernel.create_bridge("mptonly")
        assert kernel.find_link("mptonly") is not None
    with netlink.open() as own:
        assert own.find_link("mptonly") is None


def test_a_missing_namespace_and_a_file_that_is_none_are_told_as_such(tmp_path: Path) -> None:
    """A path that leads to no namespace is NoNamespace, whatever lies there."""
    plain = tmp_path / "file"
    plain.touch()
    for path in (tmp_path / "nothing", plain):
        with pytest.raises(NoNamespace) as caught:
            netlink.open(str(path))
        assert str(path) in caught.value.msg


def test_sockets_and_descriptors_are_closed(place: Site) -> None:
    """Opening and refusing leave no descriptor behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        netlink.open(place.pod).close()
        with pytest.raises(NoNamespace):
            netlink.open("/run/netns/mptnone")
        with netlink.open(place.host) as kernel, pytest.raises(NetlinkError):
            kernel.create_veth("lo", "lo", peer_netns=place.pod)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_visit_returns_what_the_errand_returns_and_raises_what_it_raises(place: Site) -> None:
    """An errand's value and its exception both come home."""
    assert namespaces.run_in(place.pod, lambda: namespaces.is_own(place.pod)) is True
    with pytest.raises(ZeroDivisionError):
        namespaces.run_in(place.pod, lambda: 1 // 0)
    assert namespaces.run_in(None, threading.get_ident) == threading.get_ident()


def test_many_threads_visit_at_once() -> None:
    """Threads that enter different namespaces at the same time do not mix them up."""
    with namespace() as one, namespace() as two:
        for path in (one, two):
            with netlink.open(path) as kernel:
                kernel.create_bridge(f"b{path[-8:]}")
        seen: list[bool] = []

        def look(path: str) -> None:
            with netlink.open(path) as kernel:
                seen.append([link.name for link in kernel.links() if link.kind == "bridge"] == [f"b{path[-8:]}"])

        threads = [threading.Thread(target=look, args=(path,)) for path in (one, two) * 20]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [True] * 40


def test_a_namespace_is_made_once_and_removed_as_often_as_asked(tmp_path: Path) -> None:
    """Making a namespace twice is refused, removing it twice is not, and a plain file left at the path goes too."""
    path = str(tmp_path / "sub" / "ns")
    namespaces.create(path)
    try:
        assert not namespaces.is_own(path)
        with pytest.raises(NetlinkError) as caught:
            namespaces.create(path)
        assert caught.value.errno == errno.EEXIST
        with netlink.open(path) as kernel:
            assert [link.up for link in kernel.links() if link.name == "lo"] == [False]
    finally:
        namespaces.remove(path)
    assert not Path(path).exists()
    namespaces.remove(path)
    Path(path).touch()
    namespaces.remove(path)
    assert not Path(path).exists()


def test_same_namespace_knows_its_own() -> None:
    """Our own namespace is recognised by any path to it, a missing one is not ours."""
    assert namespaces.is_own("/proc/self/ns/net")
    assert not namespaces.is_own("/run/netns/mptnone")


def test_a_missing_link_is_none_or_an_error_with_its_errno(host: Netlink) -> None:
    """find_link says None where link raises ENODEV with the name in the message."""
    assert host.find_link("mptnone") is None
    with pytest.raises(NetlinkError) as caught:
        host.link("mptnone")
    assert caught.value.errno == errno.ENODEV
    assert "mptnone" in caught.value.msg
    assert "ENODEV" in caught.value.msg
    assert caught.value.with_context("attach").errno == errno.ENODEV


def test_a_veth_pair_has_what_was_asked(host: Netlink, pod: Netlink, place: Site) -> None:
    """Names, MTU, hardware address, master and namespaces of a pair are those that were asked for."""
    host.create_bridge("mptbr")
    bridge = host.link("mptbr")
    pair(host, place, mtu=1400, peer_mac="02:00:00:00:00:09", master=bridge.index)
    mine, other = host.link("mpta"), pod.link("mptb")
    assert (mine.kind, mine.mtu, mine.master, mine.up) == ("veth", 1400, bridge.index, True)
    assert (other.kind, other.mtu, other.mac, other.up) == ("veth", 1400, "02:00:00:00:00:09", False)
    assert (mine.parent, other.parent) == (other.index, mine.index)
    assert mine.parent_netns is not None


def test_iproute2_reads_what_we_wrote(host: Netlink, place: Site) -> None:
    """An independent reader finds the bridge port options and the alias that we set."""
    host.create_bridge("mptbr", mtu=1300)
    pair(host, place, master=host.link("mptbr").index)
    index = host.link("mpta").index
    host.set_port(index, hairpin=True, isolated=True)
    host.set_link(index, alias="of a pod", promisc=True)
    told = namespaces.run_in(
        place.host,
        lambda: subprocess.run(["ip", "-d", "link", "show", "mpta"], capture_output=True, text=True, check=True),
    ).stdout
    assert "hairpin on" in told
    assert "isolated on" in told
    assert "alias of a pod" in told
    assert "PROMISC" in told
    mine = host.link("mpta")
    assert (mine.hairpin, mine.isolated, mine.alias) == (True, True, "of a pod")
    host.set_port(index, hairpin=False)
    assert (host.link("mpta").hairpin, host.link("mpta").isolated) == (False, True)


def test_a_pair_has_one_queue_each_way(host: Netlink, place: Site) -> None:
    """No room for one a processor: cutting that down to one makes the kernel wait while nobody else can do anything."""
    pair(host, place)
    for netns, name in ((place.host, "mpta"), (place.pod, "mptb")):
        command = ["nsenter", f"--net={netns}", "ip", "-details", "-json", "link", "show", name]
        told = subprocess.run(command, capture_output=True, check=True)
        (link,) = json.loads(told.stdout)
        assert (link["num_tx_queues"], link["num_rx_queues"]) == (1, 1)


def test_links_are_renamed_moved_and_released(host: Netlink, pod: Netlink, place: Site) -> None:
    """A link changes its name, master and namespace, and only what is mentioned."""
    host.create_bridge("mptbr")
    host.create_veth("mpta", "mptb")
    index = host.link("mptb").index
    host.set_link(index, name="mptc", master=host.link("mptbr").index, mac="02:00:00:00:00:0a", mtu=1200)
    assert host.link("mptc").master == host.link("mptbr").index
    host.set_link(index, master=0)
    moved = host.link("mptc")
    assert (moved.master, moved.mac, moved.mtu) == (0, "02:00:00:00:00:0a", 1200)
    host.set_link(index, netns=place.pod)
    assert host.find_link("mptc") is None
    assert pod.link("mptc").mac == "02:00:00:00:00:0a"


@pytest.mark.parametrize("mode", records.MACVLAN_MODES)
def test_a_macvlan_is_made_in_its_namespace(mode: str, host: Netlink, pod: Netlink, place: Site) -> None:
    """A macvlan appears in the pod with its mode, queue, MTU and parent."""
    host.create_veth("mpta", "mptb")
    parent = host.link("mpta")
    host.create_macvlan("mptm", parent.index, mode, netns=place.pod, mtu=1280, mac="02:00:00:00:00:0b", queue=77)
    made = pod.link("mptm")
    assert (made.kind, made.macvlan_mode, made.parent, made.mtu) == ("macvlan", mode, parent.index, 1280)
    assert made.macvlan_queue == 77
    assert mode == "passthru" or made.mac == "02:00:00:00:00:0b"


def test_alternative_names_find_a_link(host: Netlink, place: Site) -> None:
    """A link answers to an alternative name that is longer than an interface name may be."""
    host.create_bridge("mptbr")
    long = "mpt-a-name-beyond-fifteen-bytes"
    namespaces.run_in(
        place.host,
        lambda: subprocess.run(["ip", "link", "property", "add", "dev", "mptbr", "altname", long], check=True),
    )
    assert host.link(long).name == "mptbr"
    assert host.link("mptbr").altnames == (long,)


def test_links_go_alone_and_together(host: Netlink) -> None:
    """A group of links goes at once and others stay; what is gone already is ENODEV."""
    for n in range(6):
        host.create_veth(f"mpta{n}", f"mptb{n}")
    host.delete_link(host.link("mpta0").index)
    assert host.find_link("mptb0") is None
    host.delete_links([host.link(f"mpta{n}").index for n in range(1, 5)])
    left = {link.name for link in host.links() if link.name != "lo"}
    assert left == {"mpta5", "mptb5"}
    with pytest.raises(NetlinkError) as caught:
        host.delete_link(999999)
    assert caught.value.errno == errno.ENODEV


def test_removed_links_are_gone_when_it_is_said(host: Netlink, pod: Netlink, place: Site) -> None:
    """Nobody sees a removed link or its other end, in either namespace; what is not there is no error."""
    for _ in range(5):
        for n in range(3):
            host.create_veth(f"mpta{n}", f"mptb{n}", peer_netns=place.pod)
        removal.remove_links(place.pod, ["mptb0", "mptb2", "mptnone"])
        assert pod.link_names() == {"lo", "mptb1"}
        assert host.link_names() == {"lo", "mpta1"}
        removal.remove_links(place.pod, ["mptb1"])
        assert (pod.link_names(), host.link_names()) == ({"lo"}, {"lo"})
    removal.remove_links(place.pod, ["mptb1"])
    with pytest.raises(NoNamespace):
        removal.remove_links("/run/netns/mpt-none", ["mptb1"])


def test_a_link_that_cannot_be_removed_is_told(host: Netlink, pod: Netlink, place: Site) -> None:
    """A refusal is an error, and the others of the group stay as they were."""
    pair(host, place)
    with pytest.raises(NetlinkError, match=r"delete interface lo.*lets nobody remove"):
        removal.remove_links(place.pod, ["lo"])
    with pytest.raises(NetlinkError, match=r"delete a group of interfaces \(.*lo.*\)"):
        removal.remove_links(place.pod, ["lo", "mptb"])
    assert pod.link_names() == {"lo", "mptb"}


def test_addresses_are_added_listed_and_taken(host: Netlink) -> None:
    """Addresses of both families come back as they were given; a second time is EEXIST, a second removal too much."""
    host.create_veth("mpta", "mptb")
    index = host.link("mpta").index
    host.add_address(index, V4)
    host.add_address(index, V6, flags=records.NODAD)
    assert {address.interface for address in host.addresses(index)} == {V4, V6}
    assert [address.interface for address in host.addresses(index, 6)] == [V6]
    assert host.addresses(host.link("mptb").index) == []
    with pytest.raises(NetlinkError) as caught:
        host.add_address(index, V4)
    assert caught.value.errno == errno.EEXIST
    host.delete_address(index, V4)
    assert [address.interface for address in host.addresses(index)] == [V6]
    with pytest.raises(NetlinkError) as caught:
        host.delete_address(index, V4)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_waiting_for_addresses_ends_with_the_detection(host: Netlink, pod: Netlink, place: Site) -> None:
    """await_addresses returns when IPv6 has found no duplicate, and says no when the time is over before."""
    pair(host, place)
    index = up(pod, "mptb").index
    pod.add_address(index, V6)
    assert not pod.await_addresses(index, [V6], 0.01)
    assert pod.await_addresses(index, [V6], 5)
    (held,) = [address for address in pod.addresses(index, 6) if address.interface == V6]
    assert not held.flags & records.TENTATIVE


def test_waiting_for_a_link_ends_when_its_peer_is_up(host: Netlink, pod: Netlink, place: Site) -> None:
    """await_running returns the link as it is when the time is over, and running as soon as it runs."""
    pair(host, place)
    assert host.await_running("mpta", 0.01).operstate != records.OPER_UP
    timer = threading.Timer(0.05, lambda: pod.set_link(pod.link("mptb").index, up=True))
    timer.start()
    assert host.await_running("mpta", 5).operstate == records.OPER_UP
    timer.join()
    assert host.link("mpta").name == "mpta"


def test_routes_keep_their_words(host: Netlink) -> None:
    """Gateway, priority, table, scope, MTU and segment size of a route come back as they were given."""
    host.create_veth("mpta", "mptb")
    up(host, "mptb")
    index = up(host, "mpta").index
    host.add_address(index, V4)
    host.add_address(index, V6, flags=records.NODAD)
    wanted = [
        Route(
            ipaddress.ip_network("10.1.0.0/16"),
            ipaddress.ip_address("192.0.2.1"),
            index,
            7,
            1000,
            mtu=1300,
            advmss=1200,
        ),
        Route(ipaddress.ip_network("10.2.0.0/16"), None, index, scope=records.SCOPE_LINK, table=1000),
        Route(ipaddress.ip_network("2001:db8:1::/48"), ipaddress.ip_address("2001:db8::1"), index, 9, 1000, mtu=1290),
        Route(ipaddress.ip_network("10.3.0.0/16"), ipaddress.ip_address("2001:db8::1"), index, table=1000),
    ]
    for route in wanted:
        host.add_route(route)
    assert sorted(host.routes(table=1000), key=str) == sorted(wanted, key=str)
    with pytest.raises(NetlinkError) as caught:
        host.add_route(wanted[0])
    assert caught.value.errno == errno.EEXIST
    assert "10.1.0.0/16" in caught.value.msg
    for route in wanted:
        host.delete_route(route)
    assert host.routes(table=1000) == []
    with pytest.raises(NetlinkError) as caught:
        host.delete_route(wanted[0])
    assert caught.value.errno == errno.ESRCH


def test_the_default_route_moves_and_other_routes_stay(host: Netlink) -> None:
    """Default routes are listed, deleted and replaced per family; a route to 0.0.0.0/1 is none of them."""
    for name in ("mpta", "mptc"):
        host.create_veth(name, f"{name}p")
        up(host, f"{name}p")
        up(host, name)
    first, second = host.link("mpta").index, host.link("mptc").index
    host.add_address(first, V4)
    host.add_address(second, ipaddress.ip_interface("198.51.100.7/24"))
    half = Route(ipaddress.ip_network("0.0.0.0/1"), ipaddress.ip_address("192.0.2.1"), first)
    low = Route(DEFAULT, ipaddress.ip_address("192.0.2.1"), first)
    high = Route(DEFAULT, ipaddress.ip_address("192.0.2.2"), first, priority=50)
    for route in (half, low, high):
        host.add_route(route)
    assert set(host.default_routes(4)) == {low, high}
    for route in host.default_routes(4):
        host.delete_route(route)
    wanted = Route(DEFAULT, ipaddress.ip_address("198.51.100.1"), second)
    host.replace_route(wanted)
    host.replace_route(wanted)
    assert host.default_routes(4) == [wanted]
    assert half in host.routes(4)
    assert host.default_routes(6) == []


def test_a_route_with_several_ways_is_read_and_deleted(host: Netlink) -> None:
    """The ways of a multipath route are listed as hops, and the route can be deleted as it was read."""
    for n, name in enumerate(("mpta", "mptc")):
        host.create_veth(name, f"{name}p")
        up(host, f"{name}p")
        host.add_address(up(host, name).index, ipaddress.ip_interface(f"10.0.{n}.2/24"))
    hops = tuple(
        Hop(host.link(name).index, ipaddress.ip_address(f"10.0.{n}.1")) for n, name in enumerate(("mpta", "mptc"))
    )
    host.add_route(Route(DEFAULT, hops=hops))
    (found,) = host.default_routes(4)
    assert (found.hops, found.gateway) == (hops, None)
    host.delete_route(found)
    assert host.default_routes(4) == []


def test_neighbours_are_listed(host: Netlink, place: Site) -> None:
    """The neighbour table of a link comes with addresses of hosts and hardware."""
    host.create_veth("mpta", "mptb")
    index = up(host, "mpta").index
    words = ["ip", "neigh", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:0c", "dev", "mpta", "nud", "permanent"]
    namespaces.run_in(place.host, lambda: subprocess.run(words, check=True))
    told = [(item.address, item.mac) for item in host.neighbours(index, 4)]
    assert told == [(ipaddress.ip_address("192.0.2.9"), "02:00:00:00:00:0c")]


def test_vlans_of_a_port_or_a_clear_refusal(host: Netlink, place: Site) -> None:
    """A port carries the VLANs it was given; a kernel that cannot filter them says so by name."""
    host.create_bridge("mptbr")
    pair(host, place, master=host.link("mptbr").index)
    port = host.link("mpta").index
    try:
        host.set_vlan_filtering(host.link("mptbr").index, True)
    except NetlinkError as refusal:
        assert refusal.errno == errno.EOPNOTSUPP
        assert "EOPNOTSUPP" in refusal.msg
        assert "kernel" in refusal.details
        assert host.vlans(port) == []
        return
    host.delete_vlan(port, 1)
    host.add_vlans(port, 10, 10, records.VLAN_PVID | records.VLAN_UNTAGGED)
    host.add_vlans(port, 20, 23)
    assert [vlan.vid for vlan in host.vlans(port)] == [10, 20, 21, 22, 23]
    assert host.link("mptbr").vlan_filtering


def test_sysctls_belong_to_the_namespace_of_the_thread(place: Site) -> None:
    """A setting written during a visit is written there and nowhere else; a missing one is said to be missing."""
    name = "net/ipv4/conf/lo/arp_notify"
    before = namespaces.read_sysctl(name)
    assert namespaces.run_in(place.pod, lambda: namespaces.write_sysctl(name, "1"))
    assert namespaces.run_in(place.pod, lambda: namespaces.read_sysctl(name)) == "1"
    assert namespaces.read_sysctl(name) == before
    assert namespaces.read_sysctl("net/ipv4/mptnone") is None
    assert not namespaces.write_sysctl("net/ipv4/mptnone", "1")
    with pytest.raises(NetlinkError, match="EINVAL"):
        namespaces.run_in(place.pod, lambda: namespaces.write_sysctl(name, "nonsense"))


def test_a_busy_kernel_lists_many_links_whole(host: Netlink, place: Site) -> None:
    """A list that takes several answers of the kernel is whole, also while links come and go."""
    for n in range(60):
        host.create_veth(f"mpta{n}", f"mptb{n}")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            host_two.create_bridge("mptchurn")
            host_two.delete_link(host_two.link("mptchurn").index)

    with netlink.open(place.host) as host_two:
        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for _ in range(10):
                names = {link.name for link in host.links()}
                assert {f"mpta{n}" for n in range(60)} | {f"mptb{n}" for n in range(60)} <= names
        finally:
            stop.set()
            thread.join()


def test_a_list_that_always_changes_is_told_as_such(host: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    """After eight tries the error says what happened, and that it is worth another try: code 11, never "Success"."""
    monkeypatch.setattr(wire, "_DUMP_INTERRUPTED", 0x2)  # NLM_F_MULTI: as if the kernel said it of every list
    with pytest.raises(
        NetlinkError, match=r"cannot list interfaces: .*changed while it was read, 8 times over"
    ) as caught:
        host.links()
    assert (caught.value.code, caught.value.errno) == (11, errno.EINTR)
    monkeypatch.undo()
    assert "lo" in {link.name for link in host.links()}


def test_an_error_without_a_number_is_told_in_its_words() -> None:
    """Whatever an error says is told, and what has no number is not called a success."""
    assert NetlinkError.of("do it", OSError("out of luck")).msg == "cannot do it: out of luck"


def test_events_that_find_no_room_are_a_reason_to_look(host: Netlink, place: Site) -> None:
    """When more events come than the socket holds (ENOBUFS), waiting goes on, and questions are answered meanwhile."""
    host._socket._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel makes 2 KiB of it
    looks = 0

    def flood() -> None:
        with netlink.open(place.host) as other:
            for _ in range(20):
                other.create_bridge("mptmany")
                other.delete_link(other.link("mptmany").index)

    def settled() -> bool:
        nonlocal looks
        looks += 1
        if looks > 1:  # we are told of events from now on
            flood()
        assert "lo" in {link.name for link in host.links()}
        assert host.find_link("lo") is not None
        if looks > 1:
            flood()
        return looks == 4

    assert host._socket.await_change(wire.GROUP_LINK, 10, settled)
    assert host.find_link("mptnone") is None


def test_waiting_takes_any_descriptor(place: Site) -> None:
    """A process with more than a thousand open files waits for the kernel as any other."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, before[1]))
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        with netlink.open(place.host) as kernel:
            assert not kernel.await_gone({"lo"}, 0.01)
    finally:
        for one in many:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_netlink_is_imported_without_pyroute2() -> None:
    """A netlink socket does not import pyroute2."""
    script = "import sys, multus_py.kernel.netlink; sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_random_bytes_never_hang_the_reader() -> None:
    """Attributes of damaged bytes are read to their end without an endless loop or an exception."""
    for size in range(64):
        data = secrets.token_bytes(size)
        assert set(wire.attributes(data)) == {kind for kind, _ in wire.pairs(data)}
    assert wire.attributes(b"\0" * 16) == {}


NET, VIA = ipaddress.ip_interface("10.1.0.2/24"), ipaddress.ip_address("10.9.9.9")
AWAY = ipaddress.ip_network("192.0.2.0/24")
REFUSALS: list[tuple[Callable[[Netlink, int], object], str, str]] = [
    (
        lambda kernel, n: kernel.create_macvlan("m", n, "bridge", mac="01:00:5e:00:00:01"),
        r"make macvlan m \(mode bridge, mac 01:00:5e:00:00:01\) on interface outer: .*EADDRNOTAVAIL",
        "neither multicast",
    ),
    (
        lambda kernel, n: kernel.create_veth("v", "w", peer_mac="01:00:5e:00:00:01"),
        r"make veth pair v and w \(mac 01:00:5e:00:00:01\): .*EADDRNOTAVAIL",
        "neither multicast nor zero",
    ),
    (lambda kernel, n: kernel.create_veth("v", "w", mtu=20), r"v and w \(mtu 20\)", "is the MTU one"),
    (
        lambda kernel, n: kernel.create_bridge("outer", mtu=1400),
        r"make bridge outer \(mtu 1400\): .*EEXIST",
        "has this name",
    ),
    (
        lambda kernel, n: kernel.set_link(n, mac="01:00:5e:00:00:01"),
        r"change interface outer \(mac 01:00",
        "neither multicast",
    ),
    (lambda kernel, n: kernel.set_link(n, name="lo"), r"change interface outer \(name lo\): .*EEXIST", "has this name"),
    (lambda kernel, n: kernel.set_link(n, mtu=20, up=True), r"change interface outer \(up on, mtu 20\): ", "MTU"),
    (lambda kernel, n: kernel.set_link(n, master=1), r"change interface outer \(master lo\): ", ""),
    (
        lambda kernel, n: kernel.set_link(4242, master=0),
        r"change interface number 4242 \(master none\): .*ENODEV",
        "not there",
    ),
    (lambda kernel, n: kernel.set_port(n, hairpin=True), r"change bridge port interface outer \(hairpin on\): ", ""),
    (
        lambda kernel, n: kernel.add_altname(n, "lo"),
        "add the alternative name lo on interface outer: .*EEXIST",
        "this name",
    ),
    (
        lambda kernel, n: [kernel.add_address(n, NET) for _ in range(2)],
        r"add address 10\.1\.0\.2/24 on interface outer: .*EEXIST",
        "has it already",
    ),
    (
        lambda kernel, n: kernel.delete_address(n, NET),
        "delete address .* on interface outer: .*EADDRNOTAVAIL",
        "does not have it",
    ),
    (
        lambda kernel, n: kernel.add_route(records.Route(AWAY, VIA, n)),
        r"add route 192\.0\.2\.0/24 via 10\.9\.9\.9 on interface outer: .*ENETUNREACH",
        "scope 253",
    ),
    (
        lambda kernel, n: kernel.replace_route(records.Route(AWAY, VIA, n, priority=7, table=99)),
        r"set route 192.* metric 7 on interface outer in table 99: .*ENETUNREACH",
        "no network of the interface",
    ),
    (
        lambda kernel, n: kernel.delete_route(records.Route(AWAY, ifindex=n)),
        "delete route .* on interface outer: .*ESRCH",
        "not there",
    ),
]


@pytest.mark.parametrize(("deed", "words", "advice"), REFUSALS, ids=[words for _, words, _ in REFUSALS])
def test_a_refused_deed_names_interface_and_value_and_says_what_to_do(
    deed: Callable[[Netlink, int], object], words: str, advice: str, host: Netlink
) -> None:
    """Names, never bare indexes; what was to be set; why the kernel would not; what helps."""
    host.create_veth("outer", "inner")
    index = up(host, "outer").index
    up(host, "inner")
    with pytest.raises(NetlinkError, match=words) as caught:
        deed(host, index)
    assert advice in caught.value.details
