# SPDX-License-Identifier: Apache-2.0
"""rtnetlink on the wire: messages packed and read, and the socket. What messages mean is in `messages`.

Packed by hand because the attach path pays for it: a request and its reply take 0.01 ms here, through a library's
message classes 0.5 ms, and importing those 150 ms. Layouts: linux/netlink.h, linux/rtnetlink.h, RFC 3549.
"""

import errno
import itertools
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from multus_py.kernel import rtnl

# linux/rtnetlink.h: message types.
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
GETNEIGH = 30
NEWLINKPROP, DELLINKPROP = 108, 109
# linux/netlink.h: flags of a message and types of its answers.
REQUEST, ACK, REPLACE, EXCL, CREATE, DUMP = 0x001, 0x004, 0x100, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED = 0x10
_CAPPED, _ACK_TLVS = 0x100, 0x200
# linux/socket.h and linux/netlink.h: the socket's own options.
_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 270, 1, 2
_EXT_ACK, _STRICT = 11, 12
GROUP_LINK, GROUP_IPV6_IFADDR = 1, 9

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
NESTED = 0x8000
_ROOM = 1 << 18  # bytes for one reply: the kernel sends dumps in pieces of at most 32 KiB
_TRIES = 8  # of a request whose reply changed while it was read, or was lost
_AGAIN = (errno.EINTR, errno.ENOBUFS)

T = TypeVar("T")
Attributes = dict[int, bytes]
_BUFFERS = 16  # of closed sockets, for the next ones: as many as calls need at once
_buffers: deque[bytearray] = deque(maxlen=_BUFFERS)  # a new one would be zeroed each time


def attribute(kind: int, payload: bytes) -> bytes:
    """Pack one attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def number(kind: int, value: int) -> bytes:
    """Pack an attribute that holds 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """Pack an attribute that holds a zero-terminated string."""
    return attribute(kind, value.encode(errors="surrogateescape") + b"\0")


def nested(kind: int, *parts: bytes) -> bytes:
    """Pack an attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(parts))


def pairs(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Walk the attributes in *data*, in order."""
    while start + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[start + 4 : start + length]
        start += (length + 3) & ~3


def attributes(data: bytes, start: int = 0) -> Attributes:
    """Return the attributes in *data* by type; of several of one type the last."""
    # The same walk as `pairs`, without a generator: it reads every answer, and a link has sixty attributes.
    found: Attributes = {}
    unpack, end = _ATTRIBUTE.unpack_from, len(data) - 3
    while start < end:
        length, kind = unpack(data, start)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def string(data: bytes | None) -> str:
    """Read a zero-terminated string; "" when there is none."""
    return data.split(b"\0", 1)[0].decode(errors="surrogateescape") if data else ""


def unsigned(data: bytes | None) -> int:
    """Read an unsigned number of 8, 16, 32 or 64 bits in the machine's order; 0 when there is none."""
    return int.from_bytes(data, "little" if struct.pack("=H", 1)[0] else "big") if data else 0


class Refused(OSError):
    """The kernel refused a request: `errno`, and in `strerror` its message (NLMSGERR_ATTR_MSG), "" without one."""


def _buffer() -> bytearray:
    try:
        return _buffers.pop()
    except IndexError:
        return bytearray(_ROOM)


class Socket:
    """A netlink socket. It stays in the namespace in which the thread was when it was created."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = itertools.count(1)
        self._buffer = _buffer()
        try:
            for option in (_EXT_ACK, _STRICT):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            _buffers.append(self._buffer)

    def request(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send a request that changes something and wait for its acknowledgement; `Refused` when it is an error."""
        for _ in self._answers(self._send(kind, flags | ACK, body)):
            pass

    def get(self, kind: int, body: bytes) -> bytes:
        """Request one object; `Refused` (ENODEV, ...) when there is none."""
        return self._retried(lambda: next(self._answers(self._send(kind, 0, body))))

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Request all objects of a kind."""
        return self._retried(lambda: list(self._answers(self._send(kind, DUMP, body))))

    def _retried(self, question: Callable[[], T]) -> T:
        """Return the reply; retried when it changed while it was read (NLM_F_DUMP_INTR) or had no room (ENOBUFS).

        After `_TRIES` times it is `Refused` with that number: EINTR or ENOBUFS, to be retried later.
        """
        for _ in range(_TRIES):
            try:
                return question()
            except OSError as cause:
                if cause.errno not in _AGAIN:
                    raise
                number = cause.errno
                self._drain()
        why = "the list changed while it was read" if number == errno.EINTR else "events left no room for the answer"
        raise Refused(number, f"{why}, {_TRIES} times over")

    def await_change(self, group: int, seconds: float, settled: Callable[[], Any]) -> bool:
        """Call *settled* now and after each event of the multicast *group*, until it is true; False after *seconds*."""
        if settled():
            return True
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        with self._member(group):
            while not settled():
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    return False
                self._drain()
        return True

    @contextmanager
    def _member(self, group: int) -> Iterator[None]:
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        try:
            yield
        finally:
            self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, group)
            self._drain()

    def _drain(self) -> None:
        """Discard events, and what is left of a reply."""
        while True:
            try:
                self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as cause:
                if cause.errno != errno.ENOBUFS:  # events were dropped: who waits for one checks anyway
                    raise

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        sequence = next(self._sequence)
        self._socket.send(_HEADER.pack(16 + len(body), kind, flags | REQUEST, sequence, 0) + body)
        return sequence

    def _answers(self, sequence: int) -> Iterator[bytes]:
        """Yield the bodies of the replies to *sequence*; replies to other requests are skipped."""
        changed = False
        while True:
            data = bytes(memoryview(self._buffer)[: self._socket.recv_into(self._buffer)])
            start = 0
            while start < len(data):
                length, kind, flags, answered, _ = _HEADER.unpack_from(data, start)
                body = data[start + 16 : start + length]
                start += (length + 3) & ~3
                if answered != sequence:
                    continue
                changed = changed or bool(flags & _DUMP_INTERRUPTED)
                if kind in (_ERROR, _DONE):
                    _refuse(kind, flags, body)
                    if changed:
                        raise InterruptedError(errno.EINTR, "the list changed while it was read")
                    return
                yield body


def _refuse(kind: int, flags: int, body: bytes) -> None:
    """Raise when an NLMSG_ERROR or NLMSG_DONE carries an error number."""
    (code,) = struct.unpack_from("=i", body) if len(body) >= 4 else (0,)
    if code >= 0:
        return
    details = attributes(body, _behind_error(kind, flags, body)) if flags & _ACK_TLVS else {}
    raise Refused(-code, string(details.get(rtnl.NLMSGERR_ATTR_MSG)))


def _behind_error(kind: int, flags: int, body: bytes) -> int:
    """Return where an error's attributes begin: behind its number and, in NLMSG_ERROR, the message it refuses."""
    if kind != _ERROR:
        return 4
    refused: int = 16 if flags & _CAPPED else _HEADER.unpack_from(body, 4)[0]  # capped: its header alone
    return 4 + ((refused + 3) & ~3)
