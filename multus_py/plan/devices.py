# SPDX-License-Identifier: Apache-2.0
"""Assign the devices allocated to a pod to its networks. Pure: the sources of the devices are parameters."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from multus_py.cni.errors import CniError, Code
from multus_py.kube.store import Device

Source = Callable[[], Iterable[Device]]
_PCI = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]\Z")
_LISTED = 16  # devices that a message lists
_Identity = tuple[str, str]


@dataclass(frozen=True)
class DeviceRequest:
    """What one network requests: a device of *resource*, or one of a *claim*, or the *id* of the annotation; "" any.

    *network* is its name in messages, with the interface: a pod may use a definition twice.

    Without resource and claim the device is not an allocated one: the id of the annotation is used as it is.
    """

    network: str
    resource: str = ""
    id: str = ""
    container: str = ""
    claim: str = ""

    @property
    def is_allocated(self) -> bool:
        """Tell whether the device must be one that is allocated to the pod."""
        return bool(self.resource or self.claim)

    def fits(self, device: Device) -> bool:
        """Tell whether *device* is what is requested."""
        return (
            self.resource in ("", device.resource)
            and self.id in ("", device.id)
            and (not self.container or self.container in device.containers)
            and (not self.claim or self.claim in device.claims)
        )

    def __str__(self) -> str:
        parts = [
            f"device {self.id}" if self.id else "a device",
            f"of {self.resource}" if self.resource else "",
            f"of claim {self.claim}" if self.claim else "",
            f"of container {self.container}" if self.container else "",
        ]
        return " ".join(part for part in parts if part)


def is_pci(device_id: str) -> bool:
    """Tell whether *device_id* is a PCI address, dddd:BB:DD.f."""
    return bool(_PCI.match(device_id))


def assign(requests: Sequence[DeviceRequest | None], sources: Iterable[Source]) -> list[Device | None]:
    """Return the device of each request, in order; code 7 when too few are allocated to the pod.

    Each request gets the first device that fits, is not assigned to one before it and leaves one for each after it:
    devices of plugins before those of claims, sorted by id as text (OVN-Kubernetes relies on the same order). No device
    is assigned twice. Only as many *sources* as needed are read.
    """
    _refuse_duplicates(requests)
    counted = {n: request for n, request in enumerate(requests) if request and request.is_allocated}
    foreign = {request.id for request in requests if request and request.id and not request.is_allocated}
    allocated: list[Device] = []
    found: dict[int, Device] = {}
    for source in sources:
        if len(found) < len(counted):
            allocated += [device for device in _merged(_read(source, counted)) if device.id not in foreign]
            found = _matched(counted, allocated)
    if len(found) < len(counted):
        raise _too_few(counted, allocated)
    return [found.get(n) for n in range(len(requests))]


def _read(source: Source, counted: Mapping[int, DeviceRequest]) -> Iterable[Device]:
    try:
        return source()
    except CniError as error:
        needed = ", ".join(f"{request.network} wants {request}" for request in counted.values())
        raise error.with_context(needed) from error


def _merged(devices: Iterable[Device]) -> list[Device]:
    """Return each device once, sorted: an init container and a container after it may have the same one."""
    found: dict[tuple[str, str], Device] = {}
    for device in devices:
        before = found.setdefault((device.id, device.resource), device)
        found[device.id, device.resource] = replace(
            before,
            containers=tuple(dict.fromkeys(before.containers + device.containers)),
            claims=tuple(dict.fromkeys(before.claims + device.claims)),
        )
    return [found[key] for key in sorted(found)]


def _matched(requests: Mapping[int, DeviceRequest], allocated: Sequence[Device]) -> dict[int, Device]:
    """Return a device for each request; nothing when there is none for one of them."""
    match = _Match(requests, allocated)
    if not all(match.place(n, set()) for n in requests):
        return {}
    settled: set[_Identity] = set()
    for n in requests:
        match.advance(n, settled)
        settled.add(match.assigned[n])
    return {n: next(each for each in match.fitting[n] if identity(each) == match.assigned[n]) for n in requests}


class _Match:
    """A bipartite matching of requests and devices, extended by augmenting paths (Kuhn, 1955)."""

    def __init__(self, requests: Mapping[int, DeviceRequest], allocated: Sequence[Device]) -> None:
        self.fitting = {n: [device for device in allocated if request.fits(device)] for n, request in requests.items()}
        self.assigned: dict[int, _Identity] = {}
        self._choices = {n: [identity(device) for device in found] for n, found in self.fitting.items()}
        self._owners: dict[_Identity, int] = {}

    def place(self, n: int, closed: set[_Identity]) -> bool:
        """Assign a device that is not *closed* to request *n*; add those that were tried to *closed*."""
        choices = [candidate for candidate in self._choices[n] if candidate not in closed]
        free = next((candidate for candidate in choices if candidate not in self._owners), None)
        if free:
            self._assign(n, free)
            return True
        for candidate in choices:
            if candidate not in closed:
                closed.add(candidate)
                if self.place(self._owners[candidate], closed):
                    self._assign(n, candidate)
                    return True
        return False

    def advance(self, n: int, settled: Set[_Identity]) -> None:
        """Assign to request *n* the first device that is not *settled* and whose request, if any, can have another."""
        before = self.assigned[n]
        del self._owners[before]
        for candidate in self._choices[n]:
            owner = self._owners.get(candidate)
            if candidate == before or (
                candidate not in settled and (owner is None or self.place(owner, {*settled, candidate}))
            ):
                self._owners[candidate], self.assigned[n] = n, candidate
                return

    def _assign(self, n: int, candidate: _Identity) -> None:
        if (before := self.assigned.get(n)) and self._owners.get(before) == n:
            del self._owners[before]
        self._owners[candidate], self.assigned[n] = n, candidate


def identity(device: Device) -> _Identity:
    """Return what identifies a device."""
    # A PCI address is one device under every resource name; other ids are unique within their resource.
    return ("", device.id.lower()) if is_pci(device.id) else (device.resource, device.id)


def _refuse_duplicates(requests: Sequence[DeviceRequest | None]) -> None:
    named: dict[str, DeviceRequest] = {}
    for request in requests:
        if request and request.id and (rival := named.setdefault(request.id, request)) is not request:
            raise CniError(
                Code.INVALID_CONFIG,
                f"two networks ask for device {request.id}: {rival.network} and {request.network}",
                "a device goes to one network of a pod: name another, or leave 'deviceID' out",
            )


def _too_few(requests: Mapping[int, DeviceRequest], allocated: Sequence[Device]) -> CniError:
    match = _Match(requests, allocated)
    request = next(request for n, request in requests.items() if not match.place(n, set()))
    alike = replace(request, id="", container="")
    rivals = [
        other.network
        for other in requests.values()
        if (other.resource, other.claim) == (request.resource, request.claim)
    ]
    pool = [device for device in allocated if alike.fits(device)]
    listed = ", ".join(_described(device) for device in pool[:_LISTED]) + (", ..." if len(pool) > _LISTED else "")
    more = f"request {len(rivals)} of {alike.resource or alike.claim} in the resources of the pod's containers"
    known = sorted({word for device in allocated for word in device.claims})
    if request.claim and request.claim not in known:
        return CniError(
            Code.INVALID_CONFIG,
            f"network {request.network} wants {request}, and the pod has no such claim that gave it a device",
            f"name one of those that did: {', '.join(known[:_LISTED])}"
            if known
            else "no claim of the pod gave it a device",
        )
    return CniError(
        Code.INVALID_CONFIG,
        f"network {request.network} wants {request} and there is none for it: "
        f"{len(rivals)} wanted ({', '.join(rivals)}), "
        f"{len(pool)} given" + (f" ({listed})" if listed else ""),
        "name one that was given, or leave 'deviceID' out" if request.id else more,
    )


def _described(device: Device) -> str:
    return f"{device.id} to {' and '.join(device.containers)}" if device.containers else device.id
