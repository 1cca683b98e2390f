# SPDX-License-Identifier: Apache-2.0
"""The `network-status` annotation, from the results. Pure.

Format: Kubernetes Network Custom Resource Definition De-facto Standard 1.3, section 5.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from multus_py.cni.result import IP, Interface, Result
from multus_py.kube.store import Device
from multus_py.plan import device_info, devices
from multus_py.plan.attachment import Attachment

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5,19}\Z")


def statuses(
    attachment: Attachment, result: Result, netns: str, device: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return the statuses of one attachment: one for each interface of its result in the pod.

    A result may have no interfaces, only the host's end, a `sandbox` that is no path, or two interfaces in the pod. The
    requested interface is always listed; an address without an interface of the pod belongs to it. *device* is the
    device information of the attachment.
    """
    own = _in_pod(result, attachment, netns)
    requested = next((n for n, interface in own.items() if interface.name == attachment.ifname), None)
    if requested is None and len(own) == 1:
        requested = next(iter(own))  # the delegate chose a name of its own
    placed = {n: [ip for ip in result.ips if ip.interface == n] for n in own if n != requested}
    assigned = {id(ip) for ips in placed.values() for ip in ips}
    rest = [ip for ip in result.ips if id(ip) not in assigned]
    main = own[requested] if requested is not None else Interface(attachment.ifname)
    statuses = [_status(attachment, main, rest, result, main=True) | _device_info(device, main, attachment.device)]
    return statuses + [
        _status(attachment, own[n], ips, result, main=False) | _device_info(None, own[n], None)
        for n, ips in placed.items()
    ]


def annotation(statuses: Iterable[dict[str, Any]]) -> str:
    """Return the text of the annotation, formatted as the reference library writes it."""
    return "[" + ",".join(json.dumps(status, indent=4, ensure_ascii=False) for status in statuses) + "]"


def _in_pod(result: Result, attachment: Attachment, netns: str) -> dict[int, Interface]:
    """Return the interfaces in the pod by index: those with its sandbox, else the last one of the requested name.

    A sandbox that is no path ("0" from AWS, an id from Antrea) is ignored. The name decides only when no interface has
    a sandbox: the host's bridge may have the same name as the pod's interface.
    """
    numbered = list(enumerate(result.interfaces))
    placed = {n: item for n, item in numbered if item.sandbox == netns or item.sandbox.startswith("/")}
    return placed or dict([pair for pair in numbered if pair[1].name == attachment.ifname][-1:])


def _status(
    attachment: Attachment, interface: Interface, ips: list[IP], result: Result, *, main: bool
) -> dict[str, Any]:
    defaults = [route for route in result.routes if main and route.is_default]
    gateways = [str(route.gw) for route in defaults if route.gw is not None]
    return {
        "name": attachment.name,
        "interface": interface.name,
        **({"ips": [str(ip.address.ip) for ip in ips]} if ips else {}),
        # AWS VPC CNI keeps a number of its own under this key.
        **({"mac": interface.mac} if _MAC.match(interface.mac) else {}),
        **({"mtu": interface.mtu} if interface.mtu else {}),
        **({"default": True} if attachment.primary and main else {}),
        "dns": result.dns.to_json() if main else {},
        **({"gateway": gateways} if gateways else {}),
    }


def _device_info(file: Mapping[str, Any] | None, interface: Interface, device: Device | None) -> dict[str, Any]:
    """Return the key `device-info`, or nothing: from the file, else the address of the result, else the device's."""
    if file:
        return {"device-info": dict(file)}
    address = interface.pci_id or (device.id if device and devices.is_pci(device.id) else "")
    return {"device-info": device_info.pci(address)} if address else {}
