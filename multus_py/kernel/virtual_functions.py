# SPDX-License-Identifier: Apache-2.0
"""Virtual functions as their physical function's interface tells of them (IFLA_VFINFO_LIST, linux/if_link.h)."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from multus_py.kernel import wire

LINK_STATES = ("auto", "enable", "disable")  # IFLA_VF_LINK_STATE_*
VLAN_PROTOCOLS = {"802.1q": 0x8100, "802.1ad": 0x88A8}
NO_MAC = "00:00:00:00:00:00"
_UNTOLD = 0xFFFFFFFF  # the driver does not say
WITH_VFS = wire.number(29, 1)  # IFLA_EXT_MASK with RTEXT_FILTER_VF
_LIST, _INFO = 22, 1


@dataclass(frozen=True)
class VirtualFunction:
    """One virtual function. *vlan* is id, priority and protocol; *rates* least and most Mbit/s, 0 for none.

    *spoofchk* and *trust* are None where the driver does not tell them.
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
    listed = wire.attributes(body, 16).get(_LIST, b"")
    return [_function(wire.attributes(info)) for kind, info in wire.pairs(listed) if kind == _INFO]


def change(number: int, attribute: str, value: Any) -> bytes:
    """Pack one of `ATTRIBUTES` for the function *number* of the interface that is changed."""
    return wire.nested(_LIST, wire.nested(_INFO, _PACKERS[attribute](number, value)))


def _function(told: wire.Attributes) -> VirtualFunction:
    number, mac = struct.unpack_from("=I6s", told[1])
    state = _setting(told.get(5)) or 0
    return VirtualFunction(
        number=number,
        mac=mac.hex(":"),
        vlan=_vlan(told),
        spoofchk=_flag(told.get(4)),
        trust=_flag(told.get(9)),
        link_state=LINK_STATES[state] if state < len(LINK_STATES) else "auto",
        rates=struct.unpack_from("=II", told[6], 4) if 6 in told else (0, _setting(told.get(3)) or 0),
    )


def _setting(data: bytes | None) -> int | None:
    """Read the number behind the function's own; None when the driver says nothing."""
    if data is None:
        return None
    value: int = struct.unpack_from("=II", data)[1]
    return None if value == _UNTOLD else value


def _flag(data: bytes | None) -> bool | None:
    value = _setting(data)
    return None if value is None else bool(value)


def _vlan(told: wire.Attributes) -> tuple[int, int, int]:
    """Read IFLA_VF_VLAN_LIST, whose protocol is in network order, else the older IFLA_VF_VLAN without one."""
    for _, item in wire.pairs(told.get(12, b"")):
        _, vid, qos = struct.unpack_from("=III", item)
        return vid, qos, int.from_bytes(item[12:14], "big") or 0x8100
    _, vid, qos = struct.unpack_from("=III", told[2]) if 2 in told else (0, 0, 0)
    return vid, qos, 0x8100


def _pack_vlan(number: int, value: tuple[int, int, int]) -> bytes:
    vid, qos, protocol = value
    info = struct.pack("=III", number, vid, qos) + protocol.to_bytes(2, "big") + bytes(2)
    return wire.nested(12, wire.attribute(1, info))


def _pack_number(kind: int) -> Callable[[int, Any], bytes]:
    return lambda number, value: wire.attribute(kind, struct.pack("=II", number, int(value)))


_PACKERS: dict[str, Callable[[int, Any], bytes]] = {
    "mac": lambda number, value: wire.attribute(
        1, struct.pack("=I32s", number, bytes.fromhex(str(value).replace(":", "")))
    ),
    "vlan": _pack_vlan,
    "spoofchk": _pack_number(4),
    "link_state": lambda number, value: _pack_number(5)(number, LINK_STATES.index(value)),
    "rates": lambda number, value: wire.attribute(6, struct.pack("=III", number, *value)),
    "trust": _pack_number(9),
}
