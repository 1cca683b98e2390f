# SPDX-License-Identifier: Apache-2.0
"""What a call asks for beside its plugin's own keys: runtimeConfig, args.cni and CNI_ARGS (CNI CONVENTIONS.md)."""

import re
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields

T = TypeVar("T")
_REMEMBERED = 64  # configs that were read for a plan and not carried out yet

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}|[0-9a-f]{2}(-[0-9a-f]{2}){5}|[0-9a-f]{4}(\.[0-9a-f]{4}){2}")


def remembered(parse: Callable[[Call], T]) -> Callable[[Call], T]:
    """Keep what *parse* read of an ADD until it is asked for once more: the plan reads every config, then ADD does."""
    known: dict[tuple[str, str], tuple[Call, T]] = {}

    @wraps(parse)
    def read(call: Call) -> T:
        key = (call.container_id, call.ifname)
        before = known.pop(key, None)
        if before and before[0] == call:
            return before[1]
        config = parse(call)
        if call.verb == "ADD":
            if len(known) >= _REMEMBERED:
                known.clear()
            known[key] = (call, config)
        return config

    return read


def runtime(call: Call) -> Fields:
    """Return what the runtime put into the config for the capabilities that it declares."""
    return Fields(Fields(call.config, "config").table("runtimeConfig"), "runtimeConfig")


def cni_args(call: Call) -> Fields:
    """Return the config's `args.cni`."""
    return Fields(Fields(Fields(call.config, "config").table("args"), "args").table("cni"), "args.cni")


Asked = tuple[str, str]  # where something is asked for, and what


def mac(call: Call, *less: Asked) -> str:
    """Return the hardware address that is asked for, colons between bytes: runtimeConfig's, else the first of *less*.

    "" when nobody asks for one; code 7 names the place of what no interface can have.
    """
    asked = (("runtimeConfig: 'mac'", runtime(call).text("mac")), *less)
    where, wanted = next((one for one in asked if one[1]), ("", ""))
    if not wanted:
        return ""
    if not _MAC.fullmatch(wanted.lower()):
        raise _no_mac(f"{where}: {wanted!r:.80} is not a hardware address")
    octets = bytes.fromhex(re.sub("[-:.]", "", wanted))
    if octets[0] & 1 or not any(octets):  # the kernel's is_valid_ether_addr
        what = "a multicast address: it stands for a group" if octets[0] & 1 else "zero: it stands for nobody"
        raise _no_mac(f"{where}: {wanted} is {what}")
    return octets.hex(":")


def _no_mac(why: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, why, "six bytes, the first one even, such as 02:00:00:00:00:01")


def cni_arg_mac(call: Call) -> Asked:
    """Return MAC of CNI_ARGS, empty when it is absent."""
    return "CNI_ARGS: MAC", call.arg("MAC")
