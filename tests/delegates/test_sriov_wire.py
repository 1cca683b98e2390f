# SPDX-License-Identifier: Apache-2.0
"""What a port tells of its functions, byte by byte, and alternative names on real interfaces."""

import errno
import struct

import pytest
from namespaces import Site

from multus_py.kernel import rtnl, virtual_functions, wire
from multus_py.kernel.errors import NetlinkError
from multus_py.kernel.netlink import Netlink

MAC = bytes.fromhex("020000000001")


def told(*infos: bytes) -> list[virtual_functions.VirtualFunction]:
    """Return what is read of a port's message with these functions."""
    return virtual_functions.read(bytes(16) + wire.nested(rtnl.IFLA_VFINFO_LIST, *infos))


def info(*attributes: bytes) -> bytes:
    """Return one function's part: its address and more."""
    return wire.nested(rtnl.IFLA_VF_INFO, wire.attribute(rtnl.IFLA_VF_MAC, struct.pack("=I32s", 3, MAC)), *attributes)


def setting(kind: int, value: int) -> bytes:
    """Return an attribute that holds the function's number and a value."""
    return wire.attribute(kind, struct.pack("=II", 3, value))


def test_what_a_driver_does_not_tell_is_unknown() -> None:
    """A driver that answers "no idea" (all bits set) or not at all leaves spoofchk and trust unknown, not on or off."""
    assert [virtual_functions.VirtualFunction(3, "02:00:00:00:00:01")] == told(
        info(setting(rtnl.IFLA_VF_SPOOFCHK, 0xFFFFFFFF), setting(rtnl.IFLA_VF_TRUST, 0xFFFFFFFF))
    )
    assert [virtual_functions.VirtualFunction(3, "02:00:00:00:00:01")] == told(info())
    (known,) = told(
        info(setting(rtnl.IFLA_VF_SPOOFCHK, 0), setting(rtnl.IFLA_VF_TRUST, 1), setting(rtnl.IFLA_VF_LINK_STATE, 2))
    )
    assert (False, True, "disable") == (known.spoofchk, known.trust, known.link_state)


def test_old_and_new_kernels_tell_vlan_and_rates() -> None:
    """The list with a protocol comes before the older attribute without one; rates likewise."""
    old = wire.attribute(rtnl.IFLA_VF_VLAN, struct.pack("=III", 3, 100, 5)) + setting(rtnl.IFLA_VF_TX_RATE, 70)
    (function,) = told(info(old))
    assert ((100, 5, 0x8100), (0, 70)) == (function.vlan, function.rates)
    new = wire.nested(
        rtnl.IFLA_VF_VLAN_LIST,
        wire.attribute(rtnl.IFLA_VF_VLAN_INFO, struct.pack("=III", 3, 200, 6) + b"\x88\xa8\0\0"),
    )
    new += wire.attribute(rtnl.IFLA_VF_RATE, struct.pack("=III", 3, 10, 80))
    (function,) = told(info(old, new))
    assert ((200, 6, 0x88A8), (10, 80)) == (function.vlan, function.rates)


CHANGES = [
    ("mac", "02:00:00:00:00:01"), ("vlan", (100, 5, 0x88A8)), ("spoofchk", False), ("trust", True),
    ("link_state", "enable"), ("rates", (10, 80)),
]  # fmt: skip


@pytest.mark.parametrize(("attribute", "value"), CHANGES)
def test_what_is_asked_is_what_would_be_told(attribute: str, value: object) -> None:
    """A change has the layout that the same attribute has when a port tells it."""
    body = bytes(16) + virtual_functions.change(3, attribute, value)
    if attribute != "mac":
        part = wire.attributes(wire.attributes(body, 16)[22])[1]
        body = bytes(16) + wire.nested(rtnl.IFLA_VFINFO_LIST, info(part))
    (function,) = virtual_functions.read(body)
    assert (3, value) == (function.number, getattr(function, attribute))


def test_a_port_without_functions_has_none(host: Netlink) -> None:
    """An interface that is no port tells of no functions, and refuses to set one."""
    host.create_bridge("mptbr0")
    index = host.link("mptbr0").index
    assert [] == host.virtual_functions(index)
    with pytest.raises(NetlinkError) as caught:
        host.set_virtual_function(index, 0, "trust", True)
    assert errno.EOPNOTSUPP == caught.value.errno
    assert "EOPNOTSUPP" in caught.value.reason


def test_alternative_names_come_and_go(host: Netlink, place: Site) -> None:
    """A link has the alternative names that it was given, each once, until they are taken off."""
    host.create_bridge("mptbr0")
    index = host.link("mptbr0").index
    for name in ("mptother", "mpt-a-name-longer-than-fifteen"):
        host.add_altname(index, name)
    with pytest.raises(NetlinkError) as caught:
        host.add_altname(index, "mptother")
    assert errno.EEXIST == caught.value.errno
    assert {"mptother", "mpt-a-name-longer-than-fifteen"} == set(host.link(index).altnames)
    host.delete_altname(index, "mptother")
    assert ("mpt-a-name-longer-than-fifteen",) == host.link(index).altnames


def test_a_device_that_is_not_here_is_not_found(host: Netlink) -> None:
    """An interface without a device below it is nobody's, and waiting for one ends."""
    host.create_bridge("mptbr0")
    assert "" == host.link("mptbr0").device
    assert host.device("0000:01:10.0") is None
    assert host.await_device("0000:01:10.0", 0.05) is None
