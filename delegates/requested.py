# SPDX-License-Identifier: Apache-2.0
"""What a call requests in addition to its plugin's keys: runtimeConfig, args.cni and CNI_ARGS (CNI CONVENTIONS.md)."""

import re
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields

T = TypeVar("T")
_CACHED = 64  # configs that were parsed for a plan whose ADD did not follow yet

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}|[0-9a-f]{2}(-[0-9a-f]{2}){5}|[0-9a-f]{4}(\.[0-9a-f]{4}){2}")


def cached_for_add(parse: Callable[[Call], T]) -> Callable[[Call], T]:
    """Cache the config of an ADD until it is parsed again: the plan parses every config, then ADD does."""
    cached: dict[tuple[str, str], tuple[Call, T]] = {}

    @wraps(parse)
    def read(call: Call) -> T:
        key = (call.container_id, call.ifname)
        before = cached.pop(key, None)
        if before and before[0] == call:
            return before[1]
        config = parse(call)
        if call.verb == "ADD":
            if len(cached) >= _CACHED:
                cached.clear()
            cached[key] = (call, config)
        return config

    return read


def runtime(call: Call) -> Fields:
    """Return runtimeConfig: the values of the capabilities that the config declares."""
    return Fields(Fields(call.config, "config").table("runtimeConfig"), "runtimeConfig")


def cni_args(call: Call) -> Fields:
    """Return the config's `args.cni`."""
    return Fields(Fields(Fields(call.config, "config").table("args"), "args").table("cni"), "args.cni")


Source = tuple[str, str]  # where a value was requested, and the value


def mac(call: Call, *less: Source) -> str:
    """Return the requested hardware address with colons: that of runtimeConfig, else the first of *less*.

    "" when none is requested; code 7 names the source of one that no interface can have.
    """
    sources = (("runtimeConfig: 'mac'", runtime(call).text("mac")), *less)
    where, wanted = next((source for source in sources if source[1]), ("", ""))
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


def cni_arg_mac(call: Call) -> Source:
    """Return MAC of CNI_ARGS, empty when it is absent."""
    return "CNI_ARGS: MAC", call.arg("MAC")
