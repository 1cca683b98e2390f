# SPDX-License-Identifier: Apache-2.0
"""The few messages of kubelet's pod-resources API (v1) that we need, written and read by their field numbers.

Field numbers: k8s.io/kubelet, pkg/apis/podresources/v1/api.proto.
Wire format: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator

from multus_py.cni.errors import CniError, Code
from multus_py.kube.store import Device, PodRef

LIST_REQUEST = b""  # ListPodResourcesRequest has no fields
_WHOLE = {1: 8, 5: 4}  # wire types of a fixed size -> bytes
_VARINT, _BYTES = 0, 2
_POD_RESOURCES = 1  # of the replies to Get (one) and to List (many) alike
_NAME, _NAMESPACE, _CONTAINERS = 1, 2, 3
_CONTAINER_NAME, _CONTAINER_DEVICES = 1, 2
_RESOURCE_NAME, _DEVICE_IDS = 1, 2


def get_request(ref: PodRef) -> bytes:
    """Return a GetPodResourcesRequest."""
    return b"".join(_field(number, text) for number, text in ((1, ref.name), (2, ref.namespace)))


def of_pod(reply: bytes, ref: PodRef) -> list[tuple[Device, ...]]:
    """Return what each pod of that name has, from a reply to Get or List; code 6 when it cannot be read.

    There may be two: one that has ended and another of the same name.
    """
    view = memoryview(reply)
    pods = [payload for number, payload in _fields(view) if number == _POD_RESOURCES]
    return [tuple(_devices(pod)) for pod in pods if _named(pod) == (ref.namespace, ref.name)]


def _named(pod: memoryview) -> tuple[str, str]:
    found = {number: payload for number, payload in _fields(pod) if number in (_NAME, _NAMESPACE)}
    return _text(found.get(_NAMESPACE, pod[:0])), _text(found.get(_NAME, pod[:0]))


def _devices(pod: memoryview) -> Iterator[Device]:
    for number, container in _fields(pod):
        if number == _CONTAINERS:
            parts = list(_fields(container))
            name = next((_text(payload) for part, payload in parts if part == _CONTAINER_NAME), "")
            for part, payload in parts:
                if part == _CONTAINER_DEVICES:
                    yield from _of_resource(payload, name)


def _of_resource(devices: memoryview, container: str) -> Iterator[Device]:
    parts = list(_fields(devices))
    resource = next((_text(payload) for number, payload in parts if number == _RESOURCE_NAME), "")
    for number, payload in parts:
        if number == _DEVICE_IDS:
            yield Device(resource, _text(payload), (container,))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of the fields that hold bytes; the others are stepped over."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in _WHOLE:
            size = _WHOLE[kind]
        else:
            raise _malformed(f"wire type {kind}")
        end = at + size
        if end > len(message):
            raise _malformed("a field goes beyond the end")
        if kind == _BYTES:
            yield key >> 3, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number at *at* and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _malformed("it ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _malformed("a number has more than 10 bytes")


def _field(number: int, text: str) -> bytes:
    payload, size = text.encode(), bytearray()
    length = len(payload)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | _BYTES, *size, length]) + payload


def _text(payload: memoryview) -> str:
    try:
        text = str(payload, "utf-8")
    except UnicodeDecodeError as cause:
        raise _malformed("a text is not UTF-8") from cause
    if "\0" in text:
        raise _malformed("a text holds a zero byte")
    return text


def _malformed(why: str) -> CniError:
    return CniError(Code.DECODE, f"cannot read kubelet's pod-resources reply: {why}", "is this socket kubelet's?")
