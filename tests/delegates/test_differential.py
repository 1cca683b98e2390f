# SPDX-License-Identifier: Apache-2.0
"""The native delegates and Debian's executables side by side: one config, the same kernel state, files and answer.

Every difference that is accepted is listed here with its reason; the rest must be equal.
"""

import copy
import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plugin_run
import pytest
import witness
from namespaces import Site, site

from multus_py.cni.errors import CniError
from multus_py.kernel import netlink, records
from multus_py.kernel.netlink import Netlink

pytestmark = pytest.mark.skipif(not (plugin_run.BIN / "bridge").exists(), reason="needs the reference plugins")

POOL = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}
POOL6 = {"type": "host-local", "ranges": [[{"subnet": "fd09::/64"}]]}
BOTH = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]}
BRIDGE = {"type": "bridge", "bridge": "mptbr0"}
MACVLAN = {"type": "macvlan", "master": "mptup"}


@dataclass(frozen=True)
class Case:
    """One config, what stands on the host before it, and what comes with the call."""

    name: str
    config: dict[str, Any]
    args: str = ""
    before: tuple[Callable[[Netlink], None], ...] = ()
    version: str = "1.0.0"
    fails: bool = False
    pods: int = 1
    differs: dict[str, str] = field(default_factory=dict)


def old_bridge(kernel: Netlink) -> None:
    """Put a bridge there that has its own hardware address and a small MTU."""
    kernel.create_bridge("mptbr0", mtu=1400)
    kernel.set_link(kernel.link("mptbr0").index, mac="02:00:00:00:aa:01")


def wrong_address(kernel: Netlink) -> None:
    """Give the bridge an address that is not the gateway's."""
    kernel.add_address(kernel.link("mptbr0").index, ipaddress.ip_interface("10.9.0.77/24"))


def right_address(kernel: Netlink) -> None:
    """Give the bridge the gateway's address."""
    kernel.add_address(kernel.link("mptbr0").index, ipaddress.ip_interface("10.9.0.1/24"))


def wrong_address6(kernel: Netlink) -> None:
    """Give the bridge an IPv6 address in the gateway's network."""
    kernel.add_address(kernel.link("mptbr0").index, ipaddress.ip_interface("fd09::77/64"), flags=records.NODAD)


def other_address6(kernel: Netlink) -> None:
    """Give the bridge an IPv6 address of another network."""
    kernel.add_address(kernel.link("mptbr0").index, ipaddress.ip_interface("fd77::77/64"), flags=records.NODAD)


def no_bridge(kernel: Netlink) -> None:
    """Put something else under the bridge's name."""
    kernel.create_veth("mptbr0", "mptpeer")


def uplink(kernel: Netlink) -> None:
    """Put a device there that can be a macvlan's master, running, with the host's default route."""
    kernel.create_veth("mptup", "mptdown", mtu=1450)
    for name in ("mptup", "mptdown"):
        kernel.set_link(kernel.link(name).index, up=True)
    index = kernel.link("mptup").index
    kernel.add_address(index, ipaddress.ip_interface("10.77.0.2/24"))
    kernel.add_route(records.Route(ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_address("10.77.0.1"), index))


def same_name(kernel: Netlink) -> None:
    """Use up the pod's interface name on the host."""
    kernel.create_veth("net1", "mptother")
    kernel.set_link(kernel.link("mptother").index, up=True)
    kernel.await_running("net1", 2)


def br(name: str, ipam: dict[str, Any] | None = None, **more: Any) -> Case:
    """Return a case of the bridge delegate; `_`-words are the case's own, the rest goes into the config."""
    return _case(name, BRIDGE, ipam, more)


def mv(name: str, ipam: dict[str, Any] | None = None, **more: Any) -> Case:
    """Return a case of the macvlan delegate."""
    before = (uplink, *more.pop("_before", ()))
    return _case(name, MACVLAN, ipam, {**more, "_before": before})


def _case(name: str, base: dict[str, Any], ipam: dict[str, Any] | None, more: dict[str, Any]) -> Case:
    own = {key[1:]: more.pop(key) for key in list(more) if key.startswith("_")}
    config = {**base, **{key: value for key, value in more.items() if value is not None}}
    return Case(name, {**config, "ipam": ipam} if ipam is not None else config, **own)


def static(address: str, gateway: str, *routes: str) -> dict[str, Any]:
    """Return an IPAM config with one address and routes through its gateway."""
    given = [{"address": address, "gateway": gateway}]
    return {"type": "static", "addresses": given, "routes": [{"dst": dst} for dst in routes]}


ROUTES = [{"dst": "192.168.0.0/16"}, {"dst": "172.16.0.0/12", "gw": "10.9.0.9"}]
CASES = [
    br("plain layer 2"),
    br("mtu", mtu=1300),
    br("mtu on an old bridge", mtu=1300, _before=(old_bridge,)),
    br("promiscuous", promiscMode=True),
    br("hairpin", hairpinMode=True),
    br("address", POOL),
    br("address6", POOL6),
    br("both families", BOTH),
    br("two pods", BOTH, _pods=2),
    br("gateway", POOL, isGateway=True),
    br("gateway6", POOL6, isGateway=True),
    br("gateway for both", BOTH, isGateway=True),
    br("gateway, two pods", BOTH, isGateway=True, _pods=2),
    br("default gateway", POOL, isDefaultGateway=True),
    br("default gateway for both", BOTH, isDefaultGateway=True),
    br(
        "default gateway, with its route",
        {**POOL, "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}]},
        isDefaultGateway=True,
    ),
    br("routes", {**POOL, "routes": ROUTES}),
    br("default route without its length", {**POOL, "routes": [{"dst": "0.0.0.0"}]}, isGateway=True, _fails=True),
    br("route with a netmask", {**POOL, "routes": [{"dst": "10.1.0.0/255.255.0.0"}]}, _fails=True),
    br("route without a network", {**POOL, "routes": [{"gw": "10.9.0.1"}]}, _fails=True),
    br("subnet with a netmask", {"type": "host-local", "subnet": "10.9.0.0/255.255.255.0"}, _fails=True),
    br("gateway outside", static("10.9.0.5/32", "10.8.0.1", "0.0.0.0/0"), _fails=True),
    br("gateway6 outside", static("fd09::5/64", "fd08::1", "::/0"), _fails=True),
    br("gateway6 of the link", static("fd09::5/64", "fe80::1", "::/0")),
    br("gateway's own route in its subnet", static("10.9.0.5/24", "10.9.0.1", "10.9.0.1/32", "0.0.0.0/0")),
    br("default route from ipam", {**POOL, "routes": [{"dst": "0.0.0.0/0"}]}, isGateway=True),
    br("routes of both families", {**BOTH, "routes": [{"dst": "192.168.0.0/16"}, {"dst": "fd99::/48"}]}),
    br("gateway on an old bridge", POOL, isGateway=True, _before=(old_bridge,)),
    br("gateway address is there", POOL, isGateway=True, _before=(old_bridge, right_address)),
    br("another address is there", POOL, isGateway=True, _before=(old_bridge, wrong_address), _fails=True),
    br("another address is replaced", POOL, isGateway=True, forceAddress=True, _before=(old_bridge, wrong_address)),
    br("another address6 in the same net", POOL6, isGateway=True, _before=(old_bridge, wrong_address6), _fails=True),
    br("another address6 is replaced", POOL6, isGateway=True, forceAddress=True, _before=(old_bridge, wrong_address6)),
    br("another address6 in another net", POOL6, isGateway=True, _before=(old_bridge, other_address6)),
    br("not a bridge", _before=(no_bridge,), _fails=True),
    br("hairpin and promiscuous", hairpinMode=True, promiscMode=True, _fails=True),
    br("vlan out of range", vlan=4095, _fails=True),
    br("vlan on a kernel without", vlan=10, _fails=True, _differs={"links": "a kernel that filters VLANs goes on"}),
    br("mac from CNI_ARGS", _args="MAC=02:00:00:00:00:11"),
    br("mac from args.cni", args={"cni": {"mac": "02:00:00:00:00:12"}}, _args="MAC=02:00:00:00:00:11;IgnoreUnknown=1"),
    br("mac from the runtime", runtimeConfig={"mac": "02:00:00:00:00:13"}, args={"cni": {"mac": "02:00:00:00:00:12"}}),
    br("mac of a group", _args="MAC=01:00:5e:00:00:01", _fails=True),
    br("mac of nobody", runtimeConfig={"mac": "nonsense"}, _fails=True),
    br(
        "dns of the config",
        POOL,
        dns={"nameservers": ["10.0.0.53"], "search": ["a.b"], "domain": "c", "options": ["x"]},
    ),
    br(
        "dns of ipam",
        {"type": "static", "addresses": [{"address": "10.9.0.5/24"}], "dns": {"nameservers": ["10.0.0.54"]}},
        _differs={
            "dns": "1.1.1 drops what IPAM says, later releases return it unless the config has its own; so do we"
        },
    ),
    br("no address", {"type": "static"}, _fails=True),
    br("spec 0.4.0", BOTH, isDefaultGateway=True, _version="0.4.0"),
    br("spec 0.3.1", BOTH, _version="0.3.1"),
    br("spec 0.2.0", BOTH, _version="0.2.0"),
    br("masquerade switched off", POOL, ipMasq=False, isGateway=True),
    mv("plain layer 2"),
    mv("mode private", mode="private"),
    mv("mode vepa", mode="vepa"),
    mv("mode passthru", mode="passthru"),
    mv("mode of nobody", mode="nonsense", _fails=True),
    mv("default master", master=""),
    mv("no such master", master="mptnone", _fails=True),
    mv(
        "no master at all",
        master="",
        _before=(lambda kernel: kernel.delete_route(kernel.default_routes(4)[0]),),
        _fails=True,
    ),
    mv("mtu", mtu=1300),
    mv("mtu of the master", mtu=1450),
    mv("mtu too large", mtu=1451, _fails=True),
    mv("address", POOL),
    mv("both families", BOTH),
    mv("name in use on the host", POOL, _before=(same_name,)),
    mv("routes", {**POOL, "routes": ROUTES}),
    mv("mac of the config", mac="02:00:00:00:00:21"),
    mv("mac from CNI_ARGS", mac="02:00:00:00:00:21", _args="MAC=02:00:00:00:00:22"),
    mv("mac from the runtime", runtimeConfig={"mac": "02:00:00:00:00:23"}, _args="MAC=02:00:00:00:00:22"),
    mv("mac of a group", mac="01:00:5e:00:00:01", _fails=True),
    mv("mac of zeros", mac="00:00:00:00:00:00", _fails=True),
    mv("dns of the config", POOL, dns={"nameservers": ["10.0.0.53"]}),
    mv("dns of ipam is dropped", {"type": "static", "addresses": [{"address": "10.9.0.5/24"}], "dns": {"domain": "c"}}),
    mv("spec 0.4.0", BOTH, _version="0.4.0"),
    mv("spec 0.2.0", POOL, _version="0.2.0"),
    br(
        "flat range",
        {"type": "host-local", "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.20", "rangeEnd": "10.9.0.29"},
    ),
    br("flat gateway", {"type": "host-local", "subnet": "10.9.0.0/24", "gateway": "10.9.0.254"}, isDefaultGateway=True),
    br(
        "two ranges in a set",
        {
            "type": "host-local",
            "ranges": [
                [
                    {"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.9"},
                    {"subnet": "10.10.0.0/24"},
                ]
            ],
        },
        _pods=3,
    ),
    br(
        "two sets of a family",
        {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "10.10.0.0/24"}]]},
    ),
    br("full", {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/30"}]]}, _pods=2, _fails=True),
    br("subnet too small", {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/31"}]]}, _fails=True),
    br("subnet with host bits", {"type": "host-local", "ranges": [[{"subnet": "10.9.0.1/24"}]]}, _fails=True),
    br(
        "start outside",
        {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.8.0.1"}]]},
        _fails=True,
    ),
    br(
        "mixed families",
        {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}, {"subnet": "fd09::/64"}]]},
        _fails=True,
    ),
    br(
        "sets overlap",
        {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "10.9.0.0/16"}]]},
        _fails=True,
    ),
    br(
        "two of a family in 0.2.0",
        {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "10.10.0.0/24"}]]},
        _version="0.2.0",
        _fails=True,
    ),
    br("no ranges", {"type": "host-local"}, _fails=True),
    br("address by CNI_ARGS", POOL, _args="IgnoreUnknown=1;IP=10.9.0.40"),
    br("address list by CNI_ARGS", POOL, _args="IgnoreUnknown=1;IP=10.9.0.40,10.9.0.41", _fails=True),
    br("address by args.cni", POOL, args={"cni": {"ips": ["10.9.0.41"]}}),
    br("addresses by the runtime", BOTH, runtimeConfig={"ips": ["10.9.0.42/24", "fd09::42"]}),
    br("address of nobody", POOL, runtimeConfig={"ips": ["10.55.0.1"]}, _fails=True),
    br("gateway's address wanted", POOL, runtimeConfig={"ips": ["10.9.0.1"]}, _fails=True),
    br("wanted address is taken", POOL, runtimeConfig={"ips": ["10.9.0.42"]}, _pods=2, _fails=True),
    br("ranges by the runtime", POOL, runtimeConfig={"ipRanges": [[{"subnet": "10.44.0.0/24"}]]}),
    br(
        "static",
        {
            "type": "static",
            "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}, {"address": "fd09::5/64"}],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    ),
    br(
        "static by CNI_ARGS",
        {"type": "static", "addresses": [{"address": "10.9.0.5/24"}], "routes": [{"dst": "0.0.0.0/0"}]},
        _args="IgnoreUnknown=1;IP=10.10.0.6/24,10.11.0.6/24;GATEWAY=10.10.0.1,10.9.0.1",
    ),
    br(
        "static by args.cni",
        {"type": "static", "addresses": [{"address": "10.9.0.5/24"}]},
        args={"cni": {"ips": ["10.10.0.7/24"]}},
    ),
    br(
        "static by the runtime",
        {"type": "static", "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}]},
        runtimeConfig={"ips": ["10.10.0.8/24"]},
        args={"cni": {"ips": ["10.10.0.7/24"]}},
    ),
    br("static with a netmask", {"type": "static", "addresses": [{"address": "10.9.0.5/255.255.255.0"}]}, _fails=True),
    br("static route without its length", static("10.9.0.5/24", "10.9.0.1", "0.0.0.0"), _fails=True),
    br("static without prefix", {"type": "static", "addresses": [{"address": "10.9.0.5"}]}, _fails=True),
]

# What differs on purpose, everywhere, and why. Beside it: the length of the transmit queue is not looked at (1.1.1 asks
# for 0, later releases leave it to the kernel, and so do we).
ACCEPTED_SYSCTLS = {
    "net/ipv6/conf/net1/ndisc_notify": "later releases of the reference write 1 for macvlan; so do we",
    "net/ipv6/conf/net1/keep_addr_on_down": "later releases of the reference write 1 for a pod with IPv6; so do we",
}


@dataclass
class Side:
    """One of the two that are compared: how it runs, where, and its own pool."""

    run: Callable[..., dict[str, Any] | None]
    places: list[Site]
    data_dir: Path

    def ask(self, verb: str, case: Case, n: int, previous: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Ask for a verb for the pod *n*, with prevResult where the protocol has it."""
        config = copy.deepcopy({"cniVersion": case.version, "name": "net", **case.config})
        if "ipam" in config and config["ipam"]["type"] == "host-local":
            config["ipam"]["dataDir"] = str(self.data_dir)
        if previous and verb != "ADD" and case.version >= "0.4.0":
            config["prevResult"] = previous
        return self.run(plugin_run.call(verb, config, self.places[n], f"c{n}", case.args), self.places[n])


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Callable[[Case], tuple[Side, Side]]]:
    """Return a maker of twins: hosts alike, with as many pods as a case has."""
    from contextlib import ExitStack

    from namespaces import namespace

    with ExitStack() as stack:

        def twins(case: Case) -> tuple[Side, Side]:
            made = []
            for run, folder in ((plugin_run.native, "native"), (plugin_run.executable, "executable")):
                first = stack.enter_context(site())
                rest = [Site(first.host, stack.enter_context(namespace())) for _ in range(case.pods - 1)]
                with netlink.open(first.host) as kernel:
                    for step in case.before:
                        step(kernel)
                made.append(Side(run, [first, *rest], tmp_path / folder))
            return made[0], made[1]

        yield twins


@dataclass(frozen=True)
class Answer:
    """What ADD answered, and the same without what differs from run to run or on purpose."""

    result: dict[str, Any]
    plain: dict[str, Any]


def attempt(side: Side, case: Case) -> list[Answer | None]:
    """Add all pods; return the answers, None where it was refused."""
    told: list[Answer | None] = []
    for n, place in enumerate(side.places):
        try:
            result = side.ask("ADD", case, n)
        except CniError:
            told.append(None)
            continue
        assert result
        # Compared with the kernel at once: a bridge without an address of its own changes it with the next port.
        plain = {key: value for key, value in witness.named(result, place).items() if key not in case.differs}
        told.append(Answer(result, plain))
    return told


def seen(side: Side) -> set[str]:
    """Return the state of every pod and of the host, less what differs on purpose."""
    lines = {f"{n} {line}" for n, place in enumerate(side.places) for line in witness.state(place)}
    return {line for line in lines if not any(setting in line for setting in ACCEPTED_SYSCTLS)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.config['type']}: {case.name}")
def test_native_and_executable_leave_the_same(case: Case, sides: Callable[[Case], tuple[Side, Side]]) -> None:
    """A config has the same outcome by the native delegate and by the executable, on ADD and after DEL."""
    ours, theirs = sides(case)
    before = seen(ours)

    told, their_told = attempt(ours, case), attempt(theirs, case)

    assert [item and item.plain for item in told] == [item and item.plain for item in their_told]
    assert (told[-1] is None) == case.fails
    if case.fails:
        assert {line for line in seen(ours) ^ before if line.startswith(f"{case.pods - 1} pod ")} == set()
    else:
        assert seen(ours) ^ seen(theirs) == set()
        assert witness.reservations(ours.data_dir / "net") == witness.reservations(theirs.data_dir / "net")
        if case.version >= "0.4.0":
            ours.ask("CHECK", case, 0, told[0] and told[0].result)

    for n in range(case.pods):
        for side, answer in ((ours, told[n]), (theirs, their_told[n])):
            if side is ours or answer:  # the executables refuse DEL with a config that they refused at ADD
                side.ask("DEL", case, n, answer and answer.result)

    if not case.fails:
        assert {witness.without_carrier(line) for line in seen(ours)} == {
            witness.without_carrier(line) for line in seen(theirs)
        }
    left = witness.reservations(ours.data_dir / "net")
    assert [name for name in left if not name.startswith("last_reserved_ip.")] == []
