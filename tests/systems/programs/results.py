# SPDX-License-Identifier: Apache-2.0
"""Results as the scripted executables tell them, each in the dialect of its call."""

from typing import Any

from executable import Call


def address(call: Call, cidr: str, gateway: str = "", interface: int | None = None) -> dict[str, Any]:
    """Return one element of `ips` in the call's dialect (0.3.0 to 1.1.0)."""
    body: dict[str, Any] = {} if call.version >= "1.0.0" else {"version": "6" if ":" in cidr else "4"}
    body |= {} if interface is None else {"interface": interface}
    return body | {"address": cidr} | ({"gateway": gateway} if gateway else {})


def result(call: Call, **parts: Any) -> dict[str, Any]:
    """Return a result with the parts that have content; before 1.0.0 `dns` is always there."""
    body = {"cniVersion": call.version, **{key: value for key, value in parts.items() if value}}
    return body if call.version >= "1.0.0" else {**body, "dns": {}}
