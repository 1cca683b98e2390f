# SPDX-License-Identifier: Apache-2.0
"""Virtual functions as listed for their physical function's interface (IFLA_VFINFO_LIST, linux/if_link.h)."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from multus_py.kernel import rtnl, wire

LINK_STATES = ("auto", "enable", "disable")  # IFLA_VF_LINK_STATE_*
VLAN_PROTOCOLS = {"802.1q": 0x8100, "802.1ad": 0x88A8}
NO_MAC = "00:00:00:00:00:00"
_UNKNOWN = 0xFFFFFFFF  # the driver does not report it
WITH_VFS = wire.number(rtnl.IFLA_EXT_MASK, rtnl.RTEXT_FILTER_VF)


@dataclass(frozen=True)
class VirtualFunction:
    """One virtual function. *vlan* is id, priority and protocol; *rates* least and most Mbit/s, 0 for none.

    *spoofchk* and *trust* are None where the driver does not report them.
    """

    number: int
    mac: str = ""
    vlan: tuple[int, int, int] = (0, 0, 0x8100)
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str = "auto"
    rates: tuple[int, int] = (0, 0)


ATTRIBUTES = ("trust", "spoofchk", "vlan", "rates", "link_state", "mac")


def read(body: bytes) -> list[VirtualFunction]:
    """Read the functions in the attributes of an interface (behind its ifinfomsg)."""
    listed = wire.attributes(body, 16).get(rtnl.IFLA_VFINFO_LIST, b"")
    return [_function(wire.attributes(info)) for kind, info in wire.pairs(listed) if kind == rtnl.IFLA_VF_INFO]


def change(number: int, attribute: str, value: Any) -> bytes:
    """Pack one of `ATTRIBUTES` for the function *number* of the interface that is changed."""
    return wire.nested(rtnl.IFLA_VFINFO_LIST, wire.nested(rtnl.IFLA_VF_INFO, _PACKERS[attribute](number, value)))


def _function(attributes: wire.Attributes) -> VirtualFunction:
    number, mac = struct.unpack_from("=I6s", attributes[rtnl.IFLA_VF_MAC])
    state = _setting(attributes.get(rtnl.IFLA_VF_LINK_STATE)) or 0
    return VirtualFunction(
        number=number,
        mac=mac.hex(":"),
        vlan=_vlan(attributes),
        spoofchk=_flag(attributes.get(rtnl.IFLA_VF_SPOOFCHK)),
        trust=_flag(attributes.get(rtnl.IFLA_VF_TRUST)),
        link_state=LINK_STATES[state] if state < len(LINK_STATES) else "auto",
        rates=_rates(attributes),
    )


def _rates(attributes: wire.Attributes) -> tuple[int, int]:
    """Read IFLA_VF_RATE, else the older IFLA_VF_TX_RATE, which has no least rate."""
    if rtnl.IFLA_VF_RATE in attributes:
        least, most = struct.unpack_from("=II", attributes[rtnl.IFLA_VF_RATE], 4)
        return least, most
    return 0, _setting(attributes.get(rtnl.IFLA_VF_TX_RATE)) or 0


def _setting(data: bytes | None) -> int | None:
    """Read the value after the function's number; None when the driver does not report it."""
    if data is None:
        return None
    value: int = struct.unpack_from("=II", data)[1]
    return None if value == _UNKNOWN else value


def _flag(data: bytes | None) -> bool | None:
    value = _setting(data)
    return None if value is None else bool(value)


def _vlan(attributes: wire.Attributes) -> tuple[int, int, int]:
    """Read IFLA_VF_VLAN_LIST, whose protocol is in network order, else the older IFLA_VF_VLAN without one."""
    for _, item in wire.pairs(attributes.get(rtnl.IFLA_VF_VLAN_LIST, b"")):
        _, vid, qos = struct.unpack_from("=III", item)
        return vid, qos, int.from_bytes(item[12:14], "big") or 0x8100
    _, vid, qos = (
        struct.unpack_from("=III", attributes[rtnl.IFLA_VF_VLAN]) if rtnl.IFLA_VF_VLAN in attributes else (0, 0, 0)
    )
    return vid, qos, 0x8100


def _pack_vlan(number: int, value: tuple[int, int, int]) -> bytes:
    vid, qos, protocol = value
    info = struct.pack("=III", number, vid, qos) + protocol.to_bytes(2, "big") + bytes(2)
    return wire.nested(rtnl.IFLA_VF_VLAN_LIST, wire.attribute(rtnl.IFLA_VF_VLAN_INFO, info))


def _pack_number(kind: int) -> Callable[[int, Any], bytes]:
    return lambda number, value: wire.attribute(kind, struct.pack("=II", number, int(value)))


_PACKERS: dict[str, Callable[[int, Any], bytes]] = {
    "mac": lambda number, value: wire.attribute(
        rtnl.IFLA_VF_MAC, struct.pack("=I32s", number, bytes.fromhex(str(value).replace(":", "")))
    ),
    "vlan": _pack_vlan,
    "spoofchk": _pack_number(rtnl.IFLA_VF_SPOOFCHK),
    "link_state": lambda number, value: _pack_number(rtnl.IFLA_VF_LINK_STATE)(number, LINK_STATES.index(value)),
    "rates": lambda number, value: wire.attribute(rtnl.IFLA_VF_RATE, struct.pack("=III", number, *value)),
    "trust": _pack_number(rtnl.IFLA_VF_TRUST),
}
