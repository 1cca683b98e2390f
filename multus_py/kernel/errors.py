# SPDX-License-Identifier: Apache-2.0
"""Errors of the kernel, with what to do about them: general advice by errno, and advice by operation."""

import errno
import os
from collections.abc import Mapping

from multus_py.cni.errors import CniError, Code
from multus_py.kernel import wire

_ADVICE = {
    errno.EPERM: "it takes root with CAP_NET_ADMIN and CAP_SYS_ADMIN",
    errno.EOPNOTSUPP: "this kernel is built without it, or its module is not loaded",
    errno.EAFNOSUPPORT: "this kernel is built without this address family",
    errno.EBUSY: "another interface or process holds it",
    errno.ENODEV: "it is not there (any more): was it removed, renamed or moved?",
    errno.ENETDOWN: "the interface is down",
}
# Advice for numbers that have a meaning of their own in one kind of operation.
Advice = Mapping[int, str]
NO_ADVICE: Advice = {}
FOR_LINKS: Advice = {
    errno.EADDRNOTAVAIL: "a hardware address must be one interface's: neither multicast nor zero",
    errno.EEXIST: "another interface has this name",
    errno.EINVAL: "is the MTU one that this kind of interface takes?",
    errno.ENODEV: "an interface that it names is not there (any more): was it removed, renamed or moved?",
    errno.ERANGE: "is the MTU one that this kind of interface takes?",
}
FOR_REMOVALS: Advice = {errno.EOPNOTSUPP: "the kernel lets nobody remove interfaces of this kind"}
FOR_ADDRESSES: Advice = {
    errno.EACCES: "IPv6 is switched off there: net.ipv6.conf.<interface>.disable_ipv6",
    errno.EADDRNOTAVAIL: "the interface does not have it, or nobody can",
    errno.EEXIST: "the interface has it already: does another plugin, or another network of the pod, give it, too?",
    errno.EINVAL: "it is no address that an interface can have",
}
_NO_WAY = (
    "no network of the interface holds the gateway: add a route to it that has no gateway (scope 253), or correct it"
)
FOR_ROUTES: Advice = {
    errno.EACCES: "IPv6 is switched off there: net.ipv6.conf.<interface>.disable_ipv6",
    errno.EEXIST: "another interface has a route of this destination and priority: give one of them another priority",
    errno.EHOSTUNREACH: _NO_WAY,
    errno.EINVAL: "is the gateway an address of this very host, or does its scope leave out gateways?",
    errno.ENETUNREACH: _NO_WAY,
    errno.ESRCH: "it is not there (any more)",
}


class NetlinkError(CniError):
    """The kernel refused an operation; *errno* is the number, *reason* its text and the kernel's own message."""

    def __init__(self, code: int, msg: str, details: str = "", number: int = 0, reason: str = "") -> None:
        super().__init__(code, msg, details)
        self.errno = number
        self.reason = reason

    @classmethod
    def of(cls, operation: str, cause: OSError, advice: Advice = NO_ADVICE) -> "NetlinkError":
        """Return the error for *operation*, with the name of the error number and the kernel's own message.

        *advice* by number takes precedence over the general advice.
        """
        number = cause.errno or 0
        name = "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))
        message = cause.strerror if isinstance(cause, wire.Refused) else ""
        reason = f"{os.strerror(number)} ({name})" + (f": {message}" if message else "") if number else str(cause)
        code = Code.TRY_AGAIN if number in (errno.EINTR, errno.ENOBUFS) else Code.INTERNAL
        details = advice.get(number) or _ADVICE.get(number, "")
        return cls(code, f"cannot {operation}: {reason}", details, number, reason)


class NoNamespace(NetlinkError):
    """The path does not exist or is not a network namespace: everything inside was removed with it."""
