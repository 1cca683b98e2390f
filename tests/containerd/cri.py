# SPDX-License-Identifier: Apache-2.0
"""A small CRI client: the few messages that a kubelet sends for a sandbox, written as tables of protobuf field numbers.

Field numbers: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto. Wire format: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

# A message is a table: name -> (field number, kind). Kinds: "text", "number", "map" (text to text), or a table.
_METADATA = {"name": (1, "text"), "uid": (2, "text"), "namespace": (3, "text"), "attempt": (4, "number")}
_PORT_MAPPING = {
    "protocol": (1, "number"),
    "container_port": (2, "number"),
    "host_port": (3, "number"),
    "host_ip": (4, "text"),
}
_SANDBOX = {
    "metadata": (1, _METADATA),
    "hostname": (2, "text"),
    "log_directory": (3, "text"),
    "port_mappings": (5, _PORT_MAPPING),
    "labels": (6, "map"),
    "annotations": (7, "map"),
    "linux": (8, {"cgroup_parent": (1, "text")}),
}
_BY_ID = {"pod_sandbox_id": (1, "text"), "verbose": (2, "number")}
_POD_IP = {"ip": (1, "text")}
_STATUS = {
    "id": (1, "text"),
    "state": (3, "number"),
    "network": (5, {"ip": (1, "text"), "additional_ips": (2, _POD_IP)}),
}
_CONDITION = {"type": (1, "text"), "status": (2, "number"), "reason": (3, "text"), "message": (4, "text")}

# Verb -> request table, reply table.
_VERBS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "Version": ({"version": (1, "text")}, {"runtime_name": (2, "text"), "runtime_version": (3, "text")}),
    "Status": ({"verbose": (1, "number")}, {"status": (1, {"conditions": (1, _CONDITION)})}),
    "RunPodSandbox": ({"config": (1, _SANDBOX), "runtime_handler": (2, "text")}, {"pod_sandbox_id": (1, "text")}),
    "PodSandboxStatus": (_BY_ID, {"status": (1, _STATUS), "info": (2, "map")}),
    "ListPodSandbox": ({}, {"items": (1, {"id": (1, "text")})}),
    "StopPodSandbox": (_BY_ID, {}),
    "RemovePodSandbox": (_BY_ID, {}),
}
_REPEATED = {"port_mappings", "additional_ips", "conditions", "items"}
_DEADLINE_SECONDS = 60


@dataclass(frozen=True)
class Cri:
    """A runtime's CRI service."""

    channel: grpc.Channel

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        """Send one request and return the reply's known fields; `grpc.RpcError` when the runtime refuses."""
        asked, answered = _VERBS[verb]
        call = self.channel.unary_unary(f"/runtime.v1.RuntimeService/{verb}")
        return decode(call(encode(request, asked), timeout=_DEADLINE_SECONDS), answered)


def encode(body: Mapping[str, Any], table: Mapping[str, Any]) -> bytes:
    """Write a message."""
    out = b""
    for name, value in body.items():
        number, kind = table[name]
        if kind == "map":
            pair = {"key": (1, "text"), "value": (2, "text")}
            parts = [encode({"key": key, "value": text}, pair) for key, text in value.items()]
        elif name in _REPEATED:
            parts = [encode(item, kind) for item in value]
        elif kind == "number":
            out += _varint(number << 3) + _varint(int(value))
            continue
        else:
            parts = [value.encode() if kind == "text" else encode(value, kind)]
        for part in parts:
            out += _varint(number << 3 | 2) + _varint(len(part)) + part
    return out


def decode(data: bytes, table: Mapping[str, Any]) -> dict[str, Any]:
    """Read a message; fields that the table does not name are passed over."""
    names = {number: (name, kind) for name, (number, kind) in table.items()}
    body: dict[str, Any] = {name: [] for name in table if name in _REPEATED}
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            value, at = _read_varint(data, at)
        elif tag & 7 == 2:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            at += {1: 8, 5: 4}[tag & 7]
            continue
        name, kind = names.get(tag >> 3, ("", None))
        if kind == "map":
            pair = decode(value, {"key": (1, "text"), "value": (2, "text")})
            body.setdefault(name, {})[pair.get("key", "")] = pair.get("value", "")
        elif name in _REPEATED:
            body[name].append(decode(value, kind))
        elif kind is not None:
            body[name] = value if kind == "number" else value.decode() if kind == "text" else decode(value, kind)
    return body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at
