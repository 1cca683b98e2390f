# SPDX-License-Identifier: Apache-2.0
"""Functions that sriov-cni attached before this node was switched over: its file per attachment, read at DEL."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multus_py.cni import names
from multus_py.cni.errors import CniError
from multus_py.cni.fields import Fields
from multus_py.delegates.sriov.leases import Owner
from multus_py.delegates.sriov.virtual_function import Before
from multus_py.kernel import small_files
from multus_py.kernel.pci import ADDRESS
from multus_py.kernel.virtual_functions import LINK_STATES, NO_MAC, VirtualFunction

log = logging.getLogger("multus_py")
_SIZE_MAX = 64 * 1024  # bytes
_WIDE = (0x88A8, 0xA888)  # 802.1ad; its netlink library has had the number in either byte order


@dataclass(frozen=True)
class SavedState:
    """The content of sriov-cni's file: the device and its original state."""

    path: Path
    device: str
    before: Before


def read_saved(folder: Path, owner: Owner) -> SavedState | None:
    """Read `<folder>/<container id>-<interface>`; None when it does not exist or cannot be read."""
    path = folder / f"{owner.container_id}-{owner.ifname}"
    try:
        body = json.loads(small_files.read_regular(path, _SIZE_MAX))
        return _kept(path, body) if isinstance(body, Mapping) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, CniError) as error:
        log.warning("%s cannot be read, what it tells of is left as it is: %s", path, error)
        return None


def _kept(path: Path, body: Mapping[str, Any]) -> SavedState | None:
    fields = Fields(body, str(path))
    device = fields.text("deviceID").lower()
    state = Fields(fields.table("OrigVfState"), f"{path}: OrigVfState")
    link_state = state.number("LinkState")
    function = VirtualFunction(
        number=fields.number("VFID"),
        mac=state.text("AdminMAC") or NO_MAC,
        vlan=(
            state.number("Vlan"),
            state.number("VlanQoS"),
            0x88A8 if state.number("VlanProto") in _WIDE else 0x8100,
        ),
        spoofchk=state.flag("SpoofChk"),
        trust=None if state.get("Trust") is None else state.flag("Trust"),
        link_state=LINK_STATES[link_state] if link_state < len(LINK_STATES) else "auto",
        rates=(state.number("MinTxRate"), state.number("MaxTxRate")),
    )
    name = state.text("HostIFName")
    if name:
        names.interface(name, f"{path}: HostIFName")
    before = Before(function, name, state.text("EffectiveMAC"))
    return SavedState(path, device, before) if ADDRESS.match(device) else None
